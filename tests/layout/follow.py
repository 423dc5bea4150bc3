"""A process of a run that is spread over several: trains, and says how far it is from a run in one process.

`python follow.py SETTINGS`, a JSON object: backend, config, train, execution, steps, length, and the preference that is
learned, or none. The first process prints the largest errors, relative to the largest number of what is compared.
"""

import json
import sys

import numpy as np
import pytest

from common import backend as door
from common import layout as layouts
from common import nf4, params
from common.accounting import spread
from common.config import Execution, SamplingConfig, TrainConfig, model_from_dict
from common.errors import UserError
from common.preference import Pairs, Preference

NOISE = 1e-10  # of the largest average of a parameter's gradient


def batch(config, train, length, step, preference=None):
    rng = np.random.default_rng(step)
    shape = train.accumulate, train.batch_size * (2 if preference else 1), length + 1
    ids = rng.integers(0, config.vocab_size, shape, dtype=np.int32)
    targets = ids[..., 1:] % config.outputs
    targets[0, 0, : length // 3] = door.IGNORED  # rows count differently, and so do micro-batches
    if preference is not None:
        targets = Pairs(targets, -rng.uniform(20, 40, targets.shape[:-1]), preference)
    return ids[..., :-1], targets


def turned(ids):
    """Positions of rows that are padded differently."""
    rows, length = ids.shape
    return np.maximum(np.arange(length) - np.arange(rows)[:, None] % 3, -1)


def only_the_leader(model):
    """What a checkpoint takes lies where it is written; failures of who generates reach all."""
    state = model.state()
    whole = model.weights(), model.optimizer_slots()
    for kept, all_of_it in zip(state, whole, strict=True):
        assert kept.keys() == (all_of_it.keys() if model.leads else set())
        assert all((value == all_of_it[name]).all() for name, value in kept.items())
    if model.config.num_labels is None:
        with pytest.raises(UserError, match="Prompt 0 has 17 tokens"):
            model.generate([[1] * 17], SamplingConfig(max_new_tokens=1))


def trained(backend, config, execution, train, steps, length, preference):
    model = backend.build(config, params.randomise(config, 3), execution)
    model.start_training(train)
    told = []
    for step in range(steps):
        result = model.train_step(*batch(config, train, length, step, preference))
        told += [result.loss, result.grad_norm]
    inputs, targets = batch(config, train, length, 99, preference)
    found = {"told": np.array(told), "held out": np.array(model.loss(inputs[0], targets[0]))}
    found |= {f"weight {name}": value for name, value in model.weights().items()}
    found |= {f"slot {name}": value for name, value in model.optimizer_slots().items()}
    asked = inputs[0], getattr(targets, "labels", targets)[0]
    found["held out log-probabilities"] = model.log_probs(*asked)[0]
    found["held out logits"] = model.forward(inputs[0]).logits
    found["held out logits of other places"] = model.forward(inputs[0], turned(inputs[0])).logits
    more = model.gradients(*batch(config, train, length, 7, preference), (5, 2))
    chosen = params.trained(config, train)
    found |= {f"grad {name}": value for name, value in more.grads.items() if chosen[name]}
    return model, found


def main(asked):
    config, train = model_from_dict(asked["config"]), TrainConfig.from_dict(asked["train"])
    execution = Execution.from_dict(asked["execution"])
    backend = door.load(asked["backend"])
    preference = None if asked.get("preference") is None else Preference.from_dict(asked["preference"])
    rest = train, asked["steps"], asked["length"], preference
    model, found = trained(backend, config, execution, *rest)
    leads = model.leads
    kinds = {name: kind for name, (_, kind) in nf4.parts(config, execution.base).items()}
    local = model.local_shapes()
    held = sum(np.prod(shape) * np.dtype(kinds.get(n, execution.dtype)).itemsize for n, shape in local.items())
    own = spread.share(config, execution.spread, train, asked["length"], execution.dtype, base=execution.base)
    only_the_leader(model)
    alone, due = trained(backend, config, execution.with_(layout=""), *rest)
    sampling = SamplingConfig(max_new_tokens=4, temperature=0.8, seed=5)
    for way in ("generate", "stream") if config.num_labels is None else ():
        texts = [list(getattr(one, way)([[1, 2, 3], [4]], sampling)) for one in (model, alone)]
        assert texts[0] == texts[1], f"process {layouts.processes()[0]}, {way}"
    errors: dict[str, float] = {}
    dead = {name for name, one in params.table(config).items() if one.dead}
    assert found.keys() == due.keys()
    for name, value in due.items():
        kind = name.split(" ")[0]
        gaps = np.abs(found[name] - value)
        moved = due.get(f"slot {name.removeprefix('weight ')}.exp_avg")
        if kind == "weight" and moved is not None:  # AdamW turns a gradient that is rounding noise into whole steps
            gaps = np.where(np.abs(moved) > NOISE * np.abs(moved).max(), gaps, 0.0)
        error = float(gaps.max() / max(np.abs(value).max(), 1e-30))
        if not any(part in name for part in dead):  # a gradient that is zero in theory is noise
            errors[kind] = max(errors.get(kind, 0.0), error)
    if leads:
        told = {"errors": errors, "held": int(held), "due": own.parameters}
        print("FOUND", json.dumps(told))
    model.close()


main(json.loads(sys.argv[1]))
