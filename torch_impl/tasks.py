"""What benchmarks time: tasks by name, each made ready once and then run as often as one likes.

A task gives a function without arguments whose outputs are a flat dictionary of tensors on the device.
"""

import numpy as np
import torch

from common import backend as door
from common.backend import SHOWN
from common.config import SamplingConfig
from common.decoding import Progress, crop_prompts
from common.rng import DROPOUT

from .attention import empty_cache
from .generate import fill
from .generate import go_on as continued
from .layers import dropout
from .optim import OPTIMIZERS, clip_by_global_norm, update
from .precision import dtype
from .sampling import sample

RATE, SEED = 0.1, 0  # of the task "dropout"


def forward(model, inputs, targets):
    """Logits of ids [B, T]: {"logits"}."""
    ids, positions = _ids_and_positions(model, inputs)
    ids, positions = model._put(ids), model._places(positions)

    def run():
        with torch.inference_mode():
            return {"logits": model._logits(ids, positions)}

    return run


def train(model, inputs, targets):
    """A whole step, as `train_step` does it: {"loss", "grad_norm"}, and averages of gradients for who judges it."""
    names = door.shown(model.config, model.train)

    def run():
        loss, norm = model._train_step(inputs, targets)
        return {"loss": loss, "grad_norm": norm, **_averages(model, names)}

    return run


def gradients(model, inputs, targets):
    """Loss and gradients without dropout: {"loss", "grad/<parameter>"}."""
    inputs, targets, positions, count = door.step_inputs(inputs, targets, model.config)
    arrays = model._put(inputs), model._put(targets), model._places(positions)

    def run():
        value, grads = model.differentiated(model.net, *arrays, count, None)
        return {"loss": value, **{f"grad/{name}": g for name, g in grads.items()}}

    return run


def loss(model, inputs, targets):
    """The mean loss alone, nothing to differentiate: {"loss"}."""
    ids, targets, positions, count = door.loss_inputs(inputs, targets, model.config)
    ids, targets, positions = model._put(ids), model._put(targets), model._places(positions)

    def run():
        with torch.inference_mode():
            return {"loss": model.summed(model.net, ids, targets, positions) / count}

    return run


def prefill(model, inputs, targets):
    """Prompts [B, T] into a cache of their size, which is allocated too: {"logits"} of the last position."""
    ids, positions = map(model._put, _ids_and_positions(model, inputs))

    def run():
        with torch.inference_mode():
            caches = empty_cache(model.config, *ids.shape, model.execution)
            hidden, _ = model.net.model(ids, positions, caches)
            return {"logits": model.net.head(hidden[:, -1])}

    return run


def optimizer(model, inputs, targets):
    """Clipping and one step of the optimizer with the gradients of a batch: {"grad_norm", "param/<parameter>"}."""
    found, params = gradients(model, inputs, targets)(), dict(model.net.named_parameters())
    step = optimised(model, params, {name: found[f"grad/{name}"] for name in params}, model.slots)

    def run():
        norm = step()
        return {"grad_norm": norm, **{f"param/{name}": params[name] for name in SHOWN}, **_averages(model, SHOWN)}

    return run


def optimised(model, params, grads, slots):
    """The step of parameters with gradients and averages that are there, by name, which gives the norm."""
    adam, scalars = OPTIMIZERS[model.execution.optimizer], model.train.adam_scalars(0)

    def run():
        with torch.no_grad():
            clipped, norm = clip_by_global_norm(grads, model.train.clip_norm)
            update(params, clipped, slots, scalars, model.train, model.decays, adam)
        return norm

    return run


def both_ways(model, path, inputs, cotangent):
    """A function that runs a module forwards and backwards: its output, the sum of that under a cotangent, and the
    gradients of the sum by name."""
    module = model.net.get_submodule(path).requires_grad_()  # a run may have frozen some
    x = model._put(np.asarray(inputs)).to(dtype(model.execution.precision.compute)).requires_grad_()
    positions = model._places(np.arange(x.shape[1], dtype=np.int32)[None])
    cotangent, own = model._put(np.asarray(cotangent)), dict(module.named_parameters(prefix=path))

    def run():
        out = door.call(module.forward, x, positions)
        value = (out * cotangent.to(out.dtype)).sum()
        grads = torch.autograd.grad(value, [x, *own.values()], materialize_grads=True)
        return out.detach(), value.detach(), dict(zip(["input", *own], grads, strict=True))

    return run


def component(model, inputs, cotangent, path):
    """The module at `path` on [B, T, E], and gradients for a cotangent [B, T, E]: {"output", "grad/<parameter>"}."""
    passes = both_ways(model, path, inputs, cotangent)

    def run():
        output, _, grads = passes()
        return {"output": output, **{f"grad/{name}": g for name, g in grads.items()}}

    return run


def drop(model, inputs, targets):
    """Dropout at rate 0.1 of an activation [B, T, E]: {"output"}."""
    return dropped(model, model._put(np.asarray(inputs)))


def dropped(model, x):
    """The same of a tensor."""
    return lambda: {"output": dropout(x, RATE, model.address(SEED, DROPOUT), 0)}


def choose(model, inputs, targets, sampling=None):
    """The next tokens from logits [B, V]: {"tokens"}; the settings default to a draw at temperature 1."""
    return chosen(model, model._put(np.asarray(inputs)), sampling)


def chosen(model, logits, sampling=None):
    """The same from a tensor."""
    sampling, positions = sampling or SamplingConfig(temperature=1.0), np.zeros(len(logits), np.int32)
    return lambda: {"tokens": sample(logits, positions, sampling, sampling.seed, model.address)}


def go_on(model, inputs, targets, sampling):
    """`max_new_tokens` tokens [B, N] after prompts [B, T] in a cache, whose first was chosen beforehand: {"tokens"}."""
    config, execution = model.config, model.execution
    rows = crop_prompts(inputs, sampling, config)
    begun = Progress(rows, sampling, config)
    hidden_BTE, caches = fill(model.net, config, execution, begun)
    first = next(continued(model.net, None, execution, begun, hidden_BTE, caches))

    def run():
        progress, tokens = Progress(rows, sampling, config), [first]
        progress.take(first)
        if not progress.finished:
            own, fed = model._serving(), (progress.last_tokens[:, None], progress.last_positions[:, None])
            with torch.inference_mode():
                hidden_BTE, layers = own.model(*(model._put(array) for array in fed), list(map(_as_it_was, caches)))
            tokens += continued(own, model._serving, execution, progress, hidden_BTE, layers)
        return {"tokens": np.array(tokens).T}

    return run


def _as_it_was(layer):
    """A filled cache to write into once more. Slots behind those in use hold what the last call wrote: hidden, for they
    stand later than any query. What has no such slots is copied."""
    return layer if hasattr(layer, "used") else type(layer)(*(value.clone() for value in layer))


TASKS = {
    "forward": forward,
    "train": train,
    "gradients": gradients,
    "loss": loss,
    "prefill": prefill,
    "optimizer": optimizer,
    "component": component,
    "dropout": drop,
    "sample": choose,
    "continue": go_on,
}


def _averages(model, names):
    return {f"exp_avg/{name}": model.slots[f"{name}.exp_avg"] for name in names}


def _ids_and_positions(model, inputs):
    ids = door.check_ids(inputs, model.config)
    return ids, door.positions_of(ids, None, 0, model.config)
