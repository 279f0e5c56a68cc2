"""What stage 2 decided, in sentences for the user."""

from __future__ import annotations

from vlltr_index.heads.checkpoint import RuleParameters
from vlltr_index.heads.configuration import FEWEST_GROUPS, Chosen, OutOfFold, TextLevel
from vlltr_index.heads.rejection import ACCEPTED
from vlltr_index.heads.weighing import balanced_shares, paired_mean, share_range
from vlltr_index.train.training_set import TrainingSet
from vlltr_index.wording import plural, share_within

_NO_SENTENCE = "There is no sentence: images alone decide."


def what_was_decided(
    data: TrainingSet, table: OutOfFold, chosen: Chosen, parts: RuleParameters
) -> tuple[list[str], str]:
    """Return sentences on what was decided, and the one of them that says what texts are used for."""
    texts = _of_texts(data, chosen, parts)
    notes = [
        *_of_accuracy(data, table, chosen),
        texts,
        *_of_readings(data, parts),
        *_of_text_only(data, parts),
    ]
    if parts.unknown_accepted is not None:
        notes.append(
            f"Rejection (--reject) accepts {100 * ACCEPTED:.0f}% of held-out images of known classes, and"
            f" {share_within(parts.unknown_accepted, parts.unknown_range)} of images of classes left out."
        )
    elif parts.ood_threshold is None:
        notes.append("Unknown images cannot be rejected (--reject): too few groups of images were held out.")
    if parts.text_trust < 1.0:
        notes.append(
            f"Texts of added classes shift their means by {100 * parts.text_trust:.0f}% of what those of existing"
            " classes would: stage 1 saw the latter's."
        )
    if parts.correlation < 1.0:
        notes.append(
            f"The intraclass correlation of answers in a group is {parts.correlation:g}: five images together (predict"
            f" --group) are worth {5.0 / (1.0 + 4.0 * parts.correlation):.1f} independent ones."
        )
    return notes, texts


def _of_accuracy(data: TrainingSet, table: OutOfFold, chosen: Chosen) -> list[str]:
    """Report the accuracy on the table."""
    right = (chosen.log_probabilities.argmax(1) == table.labels).double()
    shares = balanced_shares(table.labels)
    accuracy = float(right @ shares)
    ends = share_range(right, shares, table.groups)
    interval = "" if ends is None else f" (95% CI {100 * ends[0]:.1f}-{100 * ends[1]:.1f})"
    covered = len(table.labels.unique())
    classes = int(data.rows.sum())
    notes = [
        f"Balanced accuracy {100 * accuracy:.1f}%{interval} on {plural(len(right), 'held-out image')} in"
        f" {plural(len(table.groups.unique()), 'group')}, {covered:,} of {plural(classes, 'class', 'classes')}."
    ]
    chance = 1.0 / max(classes, 1)
    mean, error = paired_mean((right - chance)[None], shares, table.groups)
    if classes > 1 and float(mean) <= 2.0 * float(error):
        notes.append(
            f"That is near chance ({100 * chance:.0f}%): the encoder may not suit these images, or they are too few."
        )
    if len(table.groups.unique()) < FEWEST_GROUPS:
        notes.append("Too few groups of images were held out to choose anything by.")
    return notes


def _of_texts(data: TrainingSet, chosen: Chosen, parts: RuleParameters) -> str:
    """Say what texts are used for."""
    if not data.has_text:
        return _NO_SENTENCE
    level = chosen.configuration.level
    share = f"{100 * parts.shared.text_r2:.0f}%"
    if level == TextLevel.NONE or (not parts.shared.text_r2 and not parts.weights.text):
        return (
            "Texts are not used for classes that have images: with them the held-out images are no likelier."
        )
    attends = level == TextLevel.ATTENTION and parts.weights.text
    if not parts.shared.text_r2:
        return "Attention over anchor sentences adds to the answer; texts do not predict class means."
    of_prior = f"Texts predict {share} of the variance of class means, and shift those of small classes"
    return f"{of_prior}; attention over anchor sentences adds to the answer." if attends else f"{of_prior}."


def _of_readings(data: TrainingSet, parts: RuleParameters) -> list[str]:
    """Say whether the prior uses a sentence-embedding model that read the sentences."""
    if data.bank.readings is None:
        return []
    kernel = parts.shared.kernel
    if kernel is not None and kernel.knows_readings(data.bank.dim):
        return ["The prior uses the sentence-embedding model."]
    return ["The prior does not use the sentence-embedding model: it predicts class means no better."]


def _of_text_only(data: TrainingSet, parts: RuleParameters) -> list[str]:
    """Say whether a class can be recognised by its text alone."""
    if not data.has_text:
        return []
    if parts.texts_are_mute:
        return ["Text-only classes cannot be recognised: the texts do not predict class means."]
    return ["Text-only classes can be recognised; such a class may attract unknown images, too."]
