"""What comes in by the door: ids, targets, positions, checked on the host: the frameworks disagree on wrong ones."""

from typing import Any

import numpy as np

from common.config import ModelConfig
from common.errors import UserError
from common.preference import Pairs

IGNORED = -100  # the label of a position that does not count


def check_ids(ids: Any, config: ModelConfig, what: str = "token ids") -> np.ndarray:
    """ids as int32, or an error that names the first id outside the vocabulary. JAX would clamp it silently."""
    try:
        array = np.asarray(ids)
    except ValueError as error:
        raise UserError(
            f"The {what} have rows of unequal length; pad them, and mark padding in the positions."
        ) from error
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"The {what} are {array.dtype}; they must be whole numbers.")
    label = what == "targets" and config.num_labels is not None
    limit = config.outputs if label else config.vocab_size
    wrong = (array < 0) | (array >= limit)
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        kind, kinds = ("Label", "labels") if label else ("Token id", "vocabulary")
        raise UserError(
            f"{kind} {int(array[place])} at {list(place)} of the {what} is outside the {kinds} (0 to {limit - 1})."
        )
    return array.astype(np.int32)


def check_targets(targets: Any, config: ModelConfig) -> np.ndarray:
    """Labels as int32: token ids (of a classifier, labels), or IGNORED where a position does not count."""
    array = np.asarray(targets)
    check_ids(np.where(array == IGNORED, np.zeros_like(array), array), config, "targets")
    return array.astype(np.int32)


def check_pairs(pairs: Pairs, config: ModelConfig) -> Pairs:
    """Pairs of responses with their numbers: rows chosen, rejected, …, and as many log-probabilities of a reference."""
    labels, reference = check_targets(pairs.labels, config), np.asarray(pairs.reference, np.float64)
    if labels.ndim < 2 or labels.shape[-2] % 2:
        raise UserError(f"Labels of pairs have shape {list(labels.shape)}; they must be [2P, T], two rows a pair.")
    if reference.shape != labels.shape[:-1] or not np.isfinite(reference).all():
        told = f"The reference has shape {list(reference.shape)}"
        raise UserError(f"{told}; it needs a finite log-probability for every row, {list(labels.shape[:-1])}.")
    return Pairs(labels, reference, pairs.preference)


def check_length(length: int, config: ModelConfig) -> None:
    """The model has no position beyond its context."""
    if length > config.context_length:
        raise UserError(f"{length} tokens do not fit in the context of {config.context_length}.")


def positions_of(ids: np.ndarray, positions: np.ndarray | None, start: int, config: ModelConfig) -> np.ndarray:
    """Absolute positions [1 or B, T] int32: those given (checked), or start, start+1, …"""
    if ids.ndim != 2:
        raise UserError(f"The token ids have shape {list(ids.shape)}; they must be [B, T], a row for every text.")
    if not ids.shape[1]:
        raise UserError("There are no token ids; give at least one for every row.")
    if positions is None:
        check_length(start + ids.shape[1], config)
        return np.arange(start, start + ids.shape[1], dtype=np.int32)[None]
    positions = np.asarray(positions)
    if positions.shape != ids.shape:
        raise UserError(f"Positions have shape {list(positions.shape)}; they need that of the ids, {list(ids.shape)}.")
    if positions.size and not np.issubdtype(positions.dtype, np.integer):
        raise UserError(f"The positions are {positions.dtype}; they must be whole numbers.")
    check_length(int(positions.max(initial=-1)) + 1, config)
    if positions.min(initial=0) < -1:
        raise UserError("A position is below -1; -1 marks padding, all others count from 0.")
    return positions.astype(np.int32)


def counted(targets: Any) -> Any:
    """How much of a batch its loss is summed over: targets that count, or pairs."""
    return targets.count if isinstance(targets, Pairs) else (targets != IGNORED).sum()


def step_inputs(
    inputs: Any, targets: Any, config: ModelConfig
) -> tuple[np.ndarray, np.ndarray | Pairs, np.ndarray, int]:
    """A training step's arrays: (inputs [A, B, T], targets [A, B, T], positions [1, T], count of counted targets).

    [B, T] becomes one micro-batch. The count is at least 1, so that a step without targets has loss 0, not NaN.
    Instead of targets there may be pairs, which are counted then.
    """
    check = check_pairs if isinstance(targets, Pairs) else check_targets
    inputs, targets = check_ids(inputs, config, "inputs"), check(targets, config)
    if inputs.shape != targets.shape or inputs.ndim not in (2, 3):
        raise UserError(
            f"Inputs {list(inputs.shape)} and targets {list(targets.shape)} must both be [A, B, T] or [B, T]."
        )
    if inputs.ndim == 2:
        inputs, targets = inputs[None], targets[None]
    positions = positions_of(inputs[0], None, 0, config)
    return inputs, targets, positions, max(1, int(counted(targets)))


def loss_inputs(ids: Any, targets: Any, config: ModelConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """A batch's arrays: (ids [B, T], targets [B, T], positions [1, T], count of counted targets, at least 1)."""
    inputs, targets, positions, count = step_inputs(ids, targets, config)
    if len(inputs) != 1:
        raise UserError(f"The token ids have shape {list(inputs.shape)}; a loss takes one batch, [B, T].")
    return inputs[0], targets[0], positions, count
