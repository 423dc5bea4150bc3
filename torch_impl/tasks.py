"""What benchmarks time: tasks by name, each made ready once and then run as often as one likes.

A task gives a function without arguments whose outputs are a flat dictionary of tensors on the device.
"""

import numpy as np
import torch

from common import backend as door
from common.config import SamplingConfig
from common.rng import DROPOUT

from .kv_cache import empty_cache
from .layers import dropout
from .optim import OPTIMIZERS, clip_by_global_norm
from .sampling import sample
from .train import loss_and_grads

RATE, SEED = 0.1, 0  # of the task "dropout"


def forward(model, inputs, targets, sampling):
    """Logits of ids [B, T]: {"logits"}."""
    ids, positions = _ids_and_positions(model, inputs)
    ids, positions = model._put(ids), model._places(positions)

    def run():
        with torch.inference_mode():
            return {"logits": model.net(ids, positions)[0]}

    return run


def train(model, inputs, targets, sampling):
    """A whole step, as `train_step` does it: {"loss", "grad_norm"}."""
    return lambda: dict(zip(("loss", "grad_norm"), model._train_step(inputs, targets), strict=True))


def gradients(model, inputs, targets, sampling):
    """Loss and gradients without dropout: {"loss", "grad/<parameter>"}."""
    inputs, targets, positions, count = door.step_inputs(inputs, targets, model.config)
    arrays = model._put(inputs), model._put(targets), model._places(positions)

    def run():
        value, grads = loss_and_grads(model.net, *arrays, count, None)
        return {"loss": value, **{f"grad/{name}": g for name, g in grads.items()}}

    return run


def loss(model, inputs, targets, sampling):
    """The mean loss alone, nothing to differentiate: {"loss"}."""
    ids, targets, positions, count = door.loss_inputs(inputs, targets, model.config)
    ids, targets, positions = model._put(ids), model._put(targets), model._places(positions)

    def run():
        with torch.inference_mode():
            hidden, _ = model.net.model(ids, positions)
            return {"loss": model.net.loss(model.net, hidden, targets)[0] / count}

    return run


def prefill(model, inputs, targets, sampling):
    """Prompts [B, T] into a cache of their size, which is allocated too: {"logits"} of the last position."""
    ids, positions = map(model._put, _ids_and_positions(model, inputs))

    def run():
        with torch.inference_mode():
            caches = empty_cache(model.config, *ids.shape, model.execution)
            hidden, _ = model.net.model(ids, positions, caches)
            return {"logits": model.net.head(hidden[:, -1])}

    return run


def optimizer(model, inputs, targets, sampling):
    """Clipping and one AdamW step with the gradients of a batch, always the same ones: {"grad_norm"}."""
    found = gradients(model, inputs, targets, sampling)()
    params = dict(model.net.named_parameters())
    grads = {name: found[f"grad/{name}"] for name in params}
    update, scalars = OPTIMIZERS[model.execution.optimizer], model.train.adam_scalars(0)

    def run():
        with torch.no_grad():
            clipped, norm = clip_by_global_norm(grads, model.train.clip_norm)
            update(params, clipped, model.slots, scalars, model.train, model.decays)
        return {"grad_norm": norm}

    return run


def drop(model, inputs, targets, sampling):
    """Dropout at rate 0.1 of an activation [B, T, E]: {"output"}."""
    x = model._put(np.asarray(inputs))
    return lambda: {"output": dropout(x, RATE, model.address(SEED, DROPOUT), 0)}


def choose(model, inputs, targets, sampling):
    """The next tokens from logits [B, V]: {"tokens"}; the settings default to a draw at temperature 1."""
    logits, sampling = model._put(np.asarray(inputs)), sampling or SamplingConfig(temperature=1.0)
    positions = np.zeros(len(logits), np.int32)
    return lambda: {"tokens": sample(logits, positions, sampling, sampling.seed, model.address)}


TASKS = {
    "forward": forward,
    "train": train,
    "gradients": gradients,
    "loss": loss,
    "prefill": prefill,
    "optimizer": optimizer,
    "dropout": drop,
    "sample": choose,
}


def _ids_and_positions(model, inputs):
    ids = door.check_ids(inputs, model.config)
    return ids, door.positions_of(ids, None, 0, model.config)
