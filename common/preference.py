"""Learning from preferences: which loss, and the batches of it.

Of a prompt there are two responses, one preferred. With log p(response | prompt) under the model (l) and under a frozen
reference (r), d = (l_chosen - l_rejected) - (r_chosen - r_rejected), the losses of a pair are

    dpo    -log sigmoid(beta d)                                        Rafailov et al. 2023, equation 7
    cdpo   -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d)       Mitchell 2023: e is the share of wrong labels
    ipo    (d - 1 / (2 beta))^2                                        Azar et al. 2023, equation 17
    hinge  max(0, 1 - beta d)                                          Zhao et al. 2023 (SLiC)
    simpo  -log sigmoid(beta (l_chosen - l_rejected) - gamma)          Meng et al. 2024, equation 6: no reference
    orpo   -l_chosen - beta log sigmoid(log (odds_chosen / odds_rejected))    Hong et al. 2024, equation 6: no reference

where odds = p / (1 - p). Each implementation has them in its `loss.py`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import UserError, unknown
from common.record import Record, number

REDUCTIONS = ("sum", "mean")
# what is summed or averaged over a response's tokens if nothing is said, as the papers have it
LOSSES = {"dpo": "sum", "cdpo": "sum", "ipo": "mean", "hinge": "sum", "simpo": "mean", "orpo": "mean"}
ALONE = ("simpo", "orpo")  # without a reference model; of mean log-probabilities only


@dataclass(frozen=True)
class Preference(Record):
    """A loss of pairs, by name: see the head of this file.

    `smoothing` is cdpo's e, `gamma` simpo's margin; both must be 0 elsewhere. `reduction` says whether the tokens' log-
    probabilities are added or averaged (the book averages for DPO; None is what the loss's paper does).
    """

    loss: str = "dpo"
    beta: float = 0.1
    smoothing: float = 0.0
    gamma: float = 0.0
    reduction: str | None = None

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise unknown("preference loss", str(self.loss), LOSSES)
        number(self, "beta", 1e-9, 1e9, "a number > 0")
        number(self, "smoothing", 0.0, 0.5, "a share in [0, 0.5]")
        number(self, "gamma", 0.0, 1e9, "a number >= 0")
        if self.reduction is None:
            object.__setattr__(self, "reduction", LOSSES[self.loss])
        if self.reduction not in REDUCTIONS:
            raise unknown("reduction", str(self.reduction), REDUCTIONS)
        for field, owner in (("smoothing", "cdpo"), ("gamma", "simpo")):
            if getattr(self, field) and self.loss != owner:
                raise UserError(f"{field} {getattr(self, field)} is {owner}'s; the loss here is {self.loss}.")
        if self.loss in ALONE and self.reduction != "mean":
            raise UserError(f"{self.loss} is a loss of mean log-probabilities; reduction={self.reduction!r} is not.")

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with a reference model."""
        return self.loss not in ALONE


@dataclass(frozen=True)
class Pairs:
    """What stands in the place of targets where preferences are learned: rows chosen, rejected, chosen, rejected, …

    `labels` [..., 2P, T] are the targets of the tokens of the responses, ignored elsewhere; `reference` [..., 2P] the
    log-probabilities of these rows under the reference model, reduced as `preference` says (0 where there is none).
    """

    labels: Any
    reference: Any
    preference: Preference

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the labels."""
        return tuple(self.labels.shape)

    @property
    def count(self) -> int:
        """Pairs in all batches together."""
        return math.prod(self.shape[:-1]) // 2

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> "Pairs":
        """One of several batches, or some."""
        return Pairs(self.labels[index], self.reference[index], self.preference)

    def __iter__(self) -> Iterator["Pairs"]:
        return (self[index] for index in range(len(self)))

    def put(self, place: Callable[[Any], Any]) -> "Pairs":
        """The same with both arrays somewhere else."""
        return Pairs(place(self.labels), place(self.reference), self.preference)


def reduced(sums: np.ndarray, counts: np.ndarray, reduction: str) -> np.ndarray:
    """Log-probabilities of responses from those of their tokens, added up: as they are, or by token."""
    return sums / np.maximum(counts, 1) if reduction == "mean" else sums


def rewards(policy: np.ndarray, reference: np.ndarray, beta: float = 1.0) -> dict[str, float]:
    """{"chosen", "rejected", "margin", "accuracy"}: mean rewards beta (l - r) of both responses, their difference, and
    the share of pairs whose chosen one has the larger. `policy` and `reference` are [2P], as rows of `Pairs`."""
    chosen, rejected = (beta * (policy - reference)).reshape(-1, 2).T
    margin = chosen - rejected
    told = {"chosen": chosen, "rejected": rejected, "margin": margin, "accuracy": margin > 0}
    return {name: float(np.mean(value)) for name, value in told.items()}
