"""What C0 tries on models with adapters: these merged, taken out again, switched off, and through files of PEFT."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from common import adapters
from common.adapter import Adapter
from common.parity import rows as table
from common.parity.rows import Row
from common.parity.trial import Trial
from common.weights import checkpoint, peft

NAME, TIER = "C0", "float64"
BASE = "base"  # where the model without adapters lies, beside these
Weights = Mapping[str, np.ndarray]


def rows(trial: Trial) -> Iterator[Row]:
    """Each adapter by itself, for one with DoRA cannot be merged where others are; then none of them."""
    config, truth = trial.case.config, trial.truth
    ids, _ = trial.case.tokens()
    weights = {name: array.astype(np.float64) for name, array in trial.case.weights().items()}
    for adapter in config.adapters:
        others = tuple(one.name for one in config.adapters if one.name != adapter.name)
        alone = adapters.without(config, weights, others)
        want = truth.once(f"adapted/{adapter.name}", lambda own=alone: _logits(truth, own, ids))
        merged = adapters.merge(*alone)
        got = {name: trial.build(name, TIER, merged[1], merged[0]).forward(ids).logits for name in trial.names}
        yield table.arrays(NAME, trial.case.name, f"merged/{adapter.name}", TIER, TIER, got, want)
        if not adapter.dora:  # which forgets how long rows were
            _, back = adapters.unmerge(alone[0], alone[1], merged[1])
            names = list(alone[1])
            found, given = (np.concatenate([own[name].ravel() for name in names]) for own in (back, alone[1]))
            yield table.arrays(NAME, trial.case.name, f"unmerged/{adapter.name}", TIER, TIER, {"numpy": found}, given)
    if config.adapters:
        want = truth.once("adapted/none", lambda: _logits(truth, adapters.without(config, weights), ids))
        got = {name: model.base().forward(ids).logits for name, model in trial.each().items()}
        yield table.arrays(NAME, trial.case.name, "switched off", TIER, TIER, got, want)


def declared(trial: Trial) -> set[tuple[str, str]]:
    """What `rows` must yield."""
    own: tuple[Adapter, ...] = trial.case.config.adapters
    found = {(f"merged/{one.name}", TIER) for one in own}
    found |= {(f"unmerged/{one.name}", TIER) for one in own if not one.dora}
    return found | ({("switched off", TIER)} if own else set())


def _logits(truth, model, ids: np.ndarray) -> np.ndarray:
    config, weights = model
    return truth.build(weights=weights, config=config).forward(ids).logits


def write(folder: Path, config, weights: Weights) -> None:
    """The model without adapters as a checkpoint, and each adapter as PEFT stores it."""
    checkpoint.save_checkpoint(folder / BASE, *adapters.without(config, weights))
    for adapter in config.adapters:
        peft.save_adapter(folder / adapter.name, config, weights, adapter.name)


def read(folder: Path, config) -> Weights:
    """The weights of all that `write` wrote, put together; other settings than before are none of these weights."""
    found = checkpoint.load_checkpoint(folder / BASE)
    made = found.config, found.weights
    for adapter in config.adapters:
        made = peft.load_adapter(folder / adapter.name, *made, adapter.name)
    return made[1] if made[0] == config else {}
