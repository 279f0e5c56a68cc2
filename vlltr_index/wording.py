"""Text for the user: counts in sentences, and escaping of text that a terminal or a spreadsheet would interpret."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# Control characters with tabs and line feeds, line separators, marks of the writing direction, lone surrogates, and
# characters without width or ink: soft hyphen, zero-width spaces, fillers, tags.
_NEVER = (
    "\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u2800\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
)
# Joiners and variation selectors have a meaning in emoji and in scripts such as Arabic; elsewhere they hide.
_SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
_INK = "\u0590-\u1fff\u2070-\ufdff\ufe10-\U000dffff"
_UNSEEN = re.compile(
    f"[{_NEVER}]|(?<![{_INK}{_SELECTORS}])[\u200c\u200d]|[\u200c\u200d](?![{_INK}])|(?<![{_INK}])[{_SELECTORS}]"
)
NOTHING_KNOWN = "that of a class nothing is known of"
"""What the image side of a class without training pictures is, in the terminal, the page and the report."""
UNKNOWN = "nothing is known of it: it has no training image, and texts do not predict class means"
"""What is said there of such a class where the text gave nothing, in place of its parts."""
NO_DIFFERENCE = "the text contributes less than a tenth of the answer: no sentence is shown"
"""What is said there of classes with sentences whose text contribution is below a tenth."""
# What a spreadsheet takes for a formula, and what `cell` makes of it, so that `uncell` gives back either.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def plural(count: int, one: str, several: str | None = None) -> str:
    """Return a count with its noun in singular or plural: `1 image`, `2,000 images`.

    Args:
        count: At least 0.
        one: The noun, or noun and verb, in the singular.
        several: The same in the plural; None: `one` with an s.
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def have(count: int) -> str:
    """Return the verb for some of several: `1 of 4 classes has`, `2 of 4 classes have`."""
    return "has" if count == 1 else "have"


def units_of_pictures(units: int) -> str:
    """Say how many observations some pictures are, of which some belong together."""
    return f"{plural(units, 'unit')}: what belongs together is one"


def share_within(share: float, ends: tuple[float, float] | None) -> str:
    """Give a share in per cent, with the ends of its 95 % interval if they are known: `81 % (95 %: 68 to 90)`."""
    said = f"{100 * share:.0f} %"
    return said if ends is None else f"{said} (95 %: {100 * ends[0]:.0f} to {100 * ends[1]:.0f})"


def preview(names: Iterable[str], most: int = 3) -> str:
    """List the first few of `names`, and say how many more there are."""
    quoted = [repr(name) for name in names]
    listed = ", ".join(quoted[:most])
    return f"{listed} and {len(quoted) - most:,} more" if len(quoted) > most else listed


def shown(text: str) -> str:
    """Escape what cannot be seen in a line of text, or changes how the rest of it is seen, as in JSON: \\u001b.

    A string in JSON keeps its value.
    """
    return _UNSEEN.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    """Return the escape of a character, of two units beyond U+FFFF."""
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def uncell(text: str) -> str:
    """Return what `cell` made a field of."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text, 1) else text


def cell(value: Any) -> Any:
    """Make a field of a CSV file; a text that a spreadsheet would take for a formula gets an apostrophe in front.

    So does one with apostrophes before what would be one.
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def option_words(**options: object) -> list[str]:
    """Return the options of a command that have a value, as they are typed: `--hold-out 0.2 --sync`."""
    words: list[str] = []
    for name, value in options.items():
        option = f"--{name.strip('_').replace('_', '-')}"
        if name == "resume":  # on by default
            words += [] if value else ["--restart"]
        elif value is True:
            words.append(option)
        elif value is not None and value is not False:
            words += [option, f"{value:g}" if isinstance(value, float) else str(value)]
    return words
