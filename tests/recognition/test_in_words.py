"""Which sentences say the same, and why one class rather than another, on the kinds of classes that people have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vlltr_index.data.text import class_prompts
from vlltr_index.recognition.in_words import contrast, numbered, template_groups
from vlltr_index.schemas.records import ClassScore, SentenceShare

BIRDS = {
    "common kestrel": (
        "The common kestrel is a bird.",
        "The common kestrel has pointed wings.",
        "It hovers.",
    ),
    "barn_swallow": ("The barn swallow is a bird.", "The barn swallow has a forked tail.", "It hovers."),
}
GOODS = {
    "Oat drink 1 l": ("Oat drink 1 l, buy online.", "Buy oat drink 1 l in the shop.", "A white carton."),
    "Dish soap": ("Dish soap, buy online.", "Buy dish soap in the shop.", "A white carton."),
}
SIGNS = {
    "round bar": ("A round sign with a bar.", "A white bar on a round plate.", "The plate is round."),
    "tall dot": ("A tall sign with a dot.", "A white dot on a tall plate.", "The plate is tall."),
}
BEST, KITE = "The text's best argument", '"A kite."'
AGAINST = f'{BEST} against it: "A crow."'


@pytest.mark.parametrize(("classes", "groups"), [(BIRDS, [0, 1, 2]), (GOODS, [0, 0, 2]), (SIGNS, [0, 0, 2])])
def test_templates_say_the_same_and_facts_do_not(
    classes: dict[str, tuple[str, ...]], groups: list[int]
) -> None:
    """What other classes have too folds by the words of the name that it has; all 80 prompts fold into one."""
    names = dict(enumerate(classes))
    rows = [(i, text, "texts") for i, name in names.items() for text in classes[name]]
    rows += [(i, p.text, p.source) for i, name in names.items() for p in class_prompts(name, "clip")]
    said = template_groups(rows, names)
    for i in names:
        own = [what for (owner, _, _), what in zip(rows, said, strict=True) if owner == i]
        assert numbered(own) == groups + [3] * 80


def score(name: str, image: float, text: float, unit: str = "log-odds") -> ClassScore:
    """A class with a sentence that argues for it."""
    told = (SentenceShare(f"A {name}.", "texts", None, None, 1.0, 0.4, 0.1, 100.0, 0),)
    return ClassScore(0, name, 0.5, image, text, 0.4, told, unit)


@pytest.mark.parametrize(
    ("image", "text", "why"),
    [
        (
            3.0,
            1.0,
            f"the image (75 % of the difference) and the text (25 %) both speak for it. {BEST}: {KITE}",
        ),
        (3.0, -1.0, f'the image speaks for it, more than the text against it. {BEST} against it: "A crow."'),
        (-1.0, 3.0, f"the text speaks for it, more than the image against it. {BEST}: {KITE}"),
        (0.0, 3.0, f"the text speaks for it. {BEST}: {KITE}"),
        (3.0, 0.0, "the image speaks for it; the text makes no difference"),
    ],
)
def test_one_rather_than_another(image: float, text: float, why: str) -> None:
    """The likelier class comes first, whichever was asked for; parts are those against each other."""
    kite, crow, owl = (
        score("kite", image, text),
        score("crow", -image, -text),
        score("owl", -image - 4, -text - 4),
    )
    assert contrast(kite, crow) == contrast(crow, kite) == f"kite rather than crow because {why}"
    assert contrast(crow, owl).startswith("crow rather than owl because the image (50 % of the difference)")
    new = [replace(score(name, image, text), image_part=-1e5, unknown=True) for name in ("auk", "owl")]
    assert contrast(kite, new[0]) == "kite rather than auk because nothing is known of the latter"
    assert "nothing is known" not in contrast(*new)
    share = score("kite", 0.5 + image / 10, 0.3 + text / 10, "probability")
    other = score("crow", 0.5, 0.3, "probability")
    assert contrast(other, share) == f"kite rather than crow because {why}"


@pytest.mark.parametrize(
    ("image", "text", "prior", "why"),
    [
        (2.0, 0.0, 1.0, "the image speaks for it; the text makes no difference; it is the more common one"),
        (2.0, 0.0, -1.0, "the image speaks for it; the text makes no difference; it is the rarer one"),
        (
            -2.0,
            0.0,
            3.0,
            "the image speaks against it; the text makes no difference; it is the more common one",
        ),
        (
            -2.0,
            -1.0,
            4.0,
            f'neither the image nor the text speaks for it; it is the more common one. {BEST} against it: "A crow."',
        ),
        (0.0, 0.0, 1.0, "image and text make no difference; it is the more common one"),
    ],
)
def test_how_common_a_class_is_may_decide(image: float, text: float, prior: float, why: str) -> None:
    """The likelier class is that by all parts."""
    kite = replace(score("kite", image, text), prior_part=prior)
    crow = replace(score("crow", -image, -text), prior_part=-prior)
    assert contrast(kite, crow) == contrast(crow, kite) == f"kite rather than crow because {why}"


def test_a_sentence_of_both_is_no_argument() -> None:
    """Nor is one of the rival's that the class has word for word."""
    kite, crow = score("kite", 3.0, -1.0), score("crow", -3.0, 1.0)
    crow = replace(
        crow, sentences=(replace(crow.sentences[0], effect=0.1), replace(kite.sentences[0], effect=9.0))
    )
    assert contrast(kite, crow).endswith(AGAINST)
    assert contrast(kite, replace(crow, sentences=kite.sentences)).endswith("more than the text against it")
