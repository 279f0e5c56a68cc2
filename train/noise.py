"""The anchors as the head is trained with them: some left out in each step, and strays of other classes among them.

Attention that has only ever seen well chosen sentences trusts any that resembles the image. So each class also has
a few anchors of other classes, with the loss that AnSS would give them there. Where sentences of other classes come
among a class's anchors later, the head has learned to pass over them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.tensors import unit_rows

__all__ = ["TrainingAnchors", "with_strays"]


class TrainingAnchors:
    """The anchors of a training run.

    Args:
        bank: The anchors, strays after the others; see `with_strays`.
        own: How many of them are the classes' own.
        dropout: The chance with which each is left out of a step, 0 <= dropout < 1.
    """

    def __init__(self, bank: AnchorBank, own: int, dropout: float) -> None:
        self.bank, self.dropout = bank, dropout
        self._class_of_row, self._own = bank.class_of_row.cpu(), (bank.rows < own).cpu()

    def kept(self, generator: torch.Generator) -> Tensor | None:
        """Draw the anchors of a step, bool [A] on the bank's device; each class keeps one of its own. None: all."""
        if not self.dropout:
            return None
        draws = torch.rand(len(self._own), generator=generator)
        best = torch.zeros(self.bank.num_classes).scatter_reduce(
            0, self._class_of_row, draws * self._own, "amax"
        )
        kept = (draws >= self.dropout) | (self._own & (draws == best[self._class_of_row]))
        return kept.to(self.bank.vectors.device, non_blocking=True)


def with_strays(
    bank: AnchorBank, centres: Tensor, logit_scale: float, share: float, generator: torch.Generator
) -> AnchorBank:
    """Put anchors of other classes among those of each class, drawn at random.

    The loss of sentence t of class o in class c is L(t) + scale * (t . m_o - t . m_c): its logsumexp stays, and its
    mean cosine is that with the images of c.

    Args:
        bank: The anchors of C classes, with their losses.
        centres: Float [C, D], the mean of each class's normalised image vectors, itself not normalised.
        logit_scale: The multiplier of the cosine.
        share: Strays of a class by the number of its anchors, rounded up.
        generator: Where the randomness comes from.

    Returns:
        The bank with the strays, whose `rows` are len(bank.vectors) and above; with one class alone there are none.
    """
    classes, counts = torch.arange(bank.num_classes), torch.tensor(bank.bounds).diff()
    host = torch.repeat_interleave(classes, (counts * share).ceil().long())
    others = len(bank.vectors) - counts[host]
    if not len(host) or bank.num_classes == 1:
        return bank
    drawn = (torch.rand(len(host), generator=generator, dtype=torch.float64) * others).long()
    drawn += counts[host] * (drawn >= torch.tensor(bank.bounds)[host])  # past the host's own
    host, drawn = host.to(bank.vectors.device), drawn.to(bank.vectors.device)
    owner, unit = bank.class_of_row[drawn], unit_rows(bank.vectors[drawn])
    nearer = (unit * (centres[owner] - centres[host]).to(unit)).sum(1)
    return AnchorBank.build(
        torch.cat([bank.vectors, bank.vectors[drawn]]),
        bank.class_ids[torch.cat([bank.class_of_row, host])],
        bank.class_ids,
        torch.cat([bank.losses, bank.losses[drawn] + logit_scale * nearer]),
    )
