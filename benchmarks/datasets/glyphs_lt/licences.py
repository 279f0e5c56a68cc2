"""Which font packages may be used, under what terms, and the check of each package's copyright file."""

from __future__ import annotations

import re
from pathlib import Path

OFL = "OFL-1.1"

_OFL_PACKAGES = """
adobe-sourcesans3 allerta amiga anonymous-pro apropal atkinson-hyperlegible-ttf averia-sans-gwf averia-serif-gwf
b612 babelstone-modern bajaderka bebas-neue blankenburg cabin cabinsketch campania cantarell cardo cascadia-code
cherrybomb chomsky cmu comfortaa comic-neue compagnon courier-prime croscore crosextra-caladea crosextra-carlito
dancingscript dosis dotgothic16 ebgaramond ecolier-court elstob essays1743 eurofurence evertype-conakry
fantasque-sans ferrite-core firacode gamaliel gemunu-libre georgewilliams gfs-artemisia gfs-baskerville
gfs-bodoni-classic gfs-complutum gfs-didot gfs-didot-classic gfs-gazis gfs-neohellenic gfs-olga gfs-porson
gfs-solomos gfs-theokritos gnutypewriter gotico-antiqua havana hosny-amiri hosny-thabit humor-sans inter joscelyn
junction junicode jura karla karmilla kaushanscript klaudia-berenika klee kode-mono kristi lato ldco le-murmure
league-mono league-spartan leckerli-one lemonada liberation linuxlibertine lobster lobstertwo lxgw-wenkai manrope
millimetre monofur monoid mononoki montserrat morisawa-bizud-gothic morisawa-bizud-mincho mplus nanum
national-park naver-d2coding noto-core noto-mono oflb-asana-math okolaks opendin ottilie play pretendard
quattrocento quicksand radisnoir rampart reggae rit-sundar rocknroll routed-gothic sahel schraubenkiste
sil-abyssinica sil-akatab sil-andika sil-annapurna sil-charis sil-doulos sil-galatia sil-gentium
sil-gentium-basic sil-gentiumplus sil-harmattan sil-lateef sil-mingzat sil-padauk sil-scheherazade
sil-sophia-nubian sil-tagmukay sil-zaghawa-beria sixtyfour smc-chilanka smiley-sans sn-pro solide-mirage sora
stick stix train triod-postnaja tt2020 uniol vazirmatn vollkorn yanone-kaffeesatz yrsa-rasa
yusei-magic
"""

_OTHER_PACKAGES = {
    "OFL-1.0": "breip century-catalogue inconsolata levien-museum levien-typoscript oldstandard",
    "Apache-2.0": "clear-sans jetbrains-mono motoya-l-cedar open-sans roboto-slab roboto-unhinted",
    "Bitstream Vera": "dejavu-core dejavu-extra dejavu-mono hack",
    "GUST Font License (LPPL)": "lmodern texgyre texgyre-math",
    "MIT": "agave fanwood lindenhill roadgeek",
    "BSD": "3270 go spleen",
    "Unlicense": "glasstty",
    "public domain": "goudybookletter prociono tuffy ocr-b",
}

# Words that the copyright file of a package must hold before the package is used.
_MARKERS = {
    OFL: r"open\s+font\s+licen[sc]e",
    "OFL-1.0": r"open\s+font\s+licen[sc]e",
    "Apache-2.0": r"apache",
    "Bitstream Vera": r"bitstream",
    "GUST Font License (LPPL)": r"gust\s+font\s+licen[sc]e|GUST-Font-License",
    "MIT": r"permission\s+is\s+hereby\s+granted,\s+free\s+of\s+charge",
    "BSD": r"redistribution\s+and\s+use\s+in\s+source\s+and\s+binary\s+forms",
    "Unlicense": r"unlicen[sc]e",
    "public domain": r"public[\s-]+domain",
}


def licence_table() -> dict[str, str]:
    """Return package name -> licence for every package that the recipe may use."""
    table = {f"fonts-{name}": OFL for name in _OFL_PACKAGES.split()}
    for licence, names in _OTHER_PACKAGES.items():
        table.update({f"fonts-{name}": licence for name in names.split()})
    return dict(sorted(table.items()))


def copyright_text(folder: Path, package: str) -> str:
    """Return the text of an unpacked package's copyright file, or an empty string where there is none."""
    path = folder / "usr" / "share" / "doc" / package / "copyright"
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def is_confirmed(licence: str, text: str) -> bool:
    """Say whether a copyright file's text holds the words that its listed licence must have."""
    return re.search(_MARKERS[licence], text, re.IGNORECASE) is not None


def copyright_holder(text: str) -> str:
    """Return the first copyright line of a Debian copyright file, shortened, or an empty string."""
    stated = re.search(r"Font Software is Copyright\s+(\(c\).*)", text, re.IGNORECASE)
    if stated:
        return stated.group(1).replace("|", "/").strip(" .")[:90]
    for line in text.splitlines():
        found = re.match(
            r"\s*(?:Copyright:|Copyright \(c\)|Copyright ©|©|\(c\))\s*(\S.*)", line, re.IGNORECASE
        )
        if found and not re.search(r"debian|notice|holder|licen[sc]e", found.group(1), re.IGNORECASE):
            return re.sub(r"\s*<[^>]*>", "", found.group(1)).replace("|", "/").strip()[:90]
    return ""
