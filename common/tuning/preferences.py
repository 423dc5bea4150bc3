"""Log-probabilities of answers, under the model that learns and under its reference, and what pairs of them say."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common import backend as door
from common.data.preferences import PreferenceExamples
from common.errors import UserError
from common.files import sha256_of
from common.oracle.preference import PREFERENCES
from common.preference import Pairs, Preference, reduced, rewards
from common.weights import safetensors_io
from common.weights.stored import stored

FILE = "reference.safetensors"


def log_probs(
    model: door.Model,
    examples: PreferenceExamples,
    batch: int,
    count: int | None = None,
    moved: Callable[[int, int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(sums of log p over the tokens that count, numbers of these) [n, 2] of the chosen and rejected answers of the
    first `count` pairs (None: all), `batch` pairs at once; `moved` is told (done, of how many)."""
    count = len(examples) if count is None else min(count, len(examples))
    sums, counts = [], []
    for start in range(0, count, batch):
        found = model.log_probs(*examples.rows(np.arange(start, min(start + batch, count))))
        sums.append(found[0].reshape(-1, 2))
        counts.append(found[1].reshape(-1, 2))
        if moved is not None:
            moved(min(start + batch, count), count)
    return np.concatenate(sums), np.concatenate(counts)


def measured(
    model: door.Model,
    examples: PreferenceExamples,
    reference: Callable[[], door.Model],
    batch: int,
    count: int | None = None,
) -> dict[str, float]:
    """Mean "loss" of the first `count` pairs (None: all), and their rewards log p - log p of the reference, without
    beta: "chosen", "rejected", "margin", and "accuracy", the share of pairs whose chosen answer has the larger one.

    Where the examples know their reference, nobody else is asked; losses without one have rewards log p.
    """
    preference = examples.preference
    policy = reduced(*log_probs(model, examples, batch, count), preference.reduction)
    if not preference.needs_reference:
        against = np.zeros_like(policy)
    elif examples.reference is not None:
        against = examples.reference[: len(policy)]
    else:
        against = reduced(*log_probs(reference(), examples, batch, count), preference.reduction)
    losses = PREFERENCES[preference.loss](policy, against, preference)
    return {"loss": float(losses.mean()), **rewards(policy.ravel(), against.ravel())}


class Online:
    """Examples whose reference model is asked for every batch, while it is put together."""

    def __init__(self, examples: PreferenceExamples, reference: Callable[[], door.Model]):
        self.examples, self.reference = examples, reference
        self.kind, self.source = examples.kind, examples.source

    def __len__(self) -> int:
        return len(self.examples)

    def describe(self) -> dict[str, Any]:
        return self.examples.describe()

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, Pairs]:
        """See `PreferenceExamples.gather`."""
        preference = self.examples.preference
        inputs, labels = self.examples.rows(indices)
        model, flat = self.reference(), (-1, *labels.shape[-2:])
        asked = zip(inputs.reshape(flat), labels.reshape(flat), strict=True)
        found = [reduced(*model.log_probs(*one), preference.reduction) for one in asked]
        return inputs, Pairs(labels, np.reshape(found, labels.shape[:-1]), preference)


def write(path: Path, found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Keep sums and counts by the name of their part of the data; the SHA-256 of the file."""
    arrays = {f"{part}.sums": np.asarray(sums, np.float64) for part, (sums, _) in found.items()}
    arrays |= {f"{part}.counts": np.asarray(counts, np.int64) for part, (_, counts) in found.items()}
    safetensors_io.write_file(path, stored(arrays))
    return sha256_of(path)


def read(path: Path, sha256: Any, preference: Preference) -> dict[str, np.ndarray]:
    """Log-probabilities [n, 2] under the reference by the name of their part, reduced; the file must be the one that
    was written."""
    if not path.is_file():
        raise UserError(f"{path} is missing, which holds what the reference model said of the data; start a new run.")
    if sha256_of(path) != sha256:
        raise UserError(f"{path} is not what this run wrote there (its SHA-256 is another); start a new run.")
    arrays = safetensors_io.open_file(path)
    parts = [name.removesuffix(".sums") for name in arrays if name.endswith(".sums")]
    whole = {name: one.read() for name, one in arrays.items()}
    return {one: reduced(whole[f"{one}.sums"], whole[f"{one}.counts"], preference.reduction) for one in parts}
