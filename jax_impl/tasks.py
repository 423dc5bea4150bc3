"""What benchmarks time: tasks by name, each made ready once and then run as often as one likes.

A task gives a function without arguments whose outputs are a flat dictionary of arrays on the device.
"""

import jax
import jax.numpy as jnp
import numpy as np

from common import backend as door
from common.backend import SHOWN
from common.config import SamplingConfig
from common.decoding import Progress, crop_prompts

from .attention import empty_cache
from .generate import bucket, fill, recipe
from .precision import dtype

RATE, SEED = 0.1, 0  # of the task "dropout"


def forward(model, inputs, targets):
    """Logits of ids [B, T]: {"logits"}."""
    ids, positions = _ids_and_positions(model, inputs)
    positions = model._places(positions)
    return lambda: {"logits": model.programs.forward(model.params, ids, positions, ())[0]}


def train(model, inputs, targets):
    """A whole step, as `train_step` does it: {"loss", "grad_norm"}, and averages of gradients for who judges it."""
    names = door.shown(model.config, model.train)

    def run():
        loss, norm = model._train_step(inputs, targets)
        for value in (*model.params.values(), *model.slots.values()):
            value.block_until_ready()
        return {"loss": loss, "grad_norm": norm, **_averages(model, names)}

    return run


def gradients(model, inputs, targets):
    """Loss and gradients without dropout: {"loss", "grad/<parameter>"}."""
    inputs, targets, positions, count = door.step_inputs(inputs, targets, model.config)
    arrays = inputs, targets, model._places(positions)
    rest = model._scalar(count), np.uint32(0), np.uint32(0), False

    def run():
        value, grads = model.programs.gradients(model.params, *arrays, *rest)
        return {"loss": value, **{f"grad/{name}": g for name, g in model.programs.unfold(grads).items()}}

    return run


def loss(model, inputs, targets):
    """The mean loss alone, nothing to differentiate: {"loss"}."""
    ids, targets, positions, count = door.loss_inputs(inputs, targets, model.config)
    positions = model._places(positions)
    return lambda: {"loss": model.programs.loss_sum(model.params, ids, targets, positions) / count}


def prefill(model, inputs, targets):
    """Prompts [B, T] into a cache of their size, which is allocated too: {"logits"} of the last position."""
    ids, positions = _ids_and_positions(model, inputs)

    def run():
        caches = empty_cache(model.config, *ids.shape, model.execution)
        return {"logits": model.programs.prefill(model.params, caches, ids, positions)[0]}

    return run


def optimizer(model, inputs, targets):
    """Clipping and one AdamW step with the gradients of a batch: {"grad_norm", "param/<parameter>"}."""
    inputs, targets, positions, count = door.step_inputs(inputs, targets, model.config)
    arrays = inputs, targets, model._places(positions)
    rest = model._scalar(count), np.uint32(0), np.uint32(0), False
    grads = model.programs.gradients(model.params, *arrays, *rest)[1]
    scalars = np.array(model.train.adam_scalars(0), dtype(model.execution.precision.param))

    def run():
        model.params, model.slots, norm = model.programs.optimize(
            model.params, grads, model.slots, scalars, model.recipe
        )
        for value in (*model.params.values(), *model.slots.values()):
            value.block_until_ready()
        return {"grad_norm": norm, **{f"param/{name}": model.params[name] for name in SHOWN}, **_averages(model, SHOWN)}

    return run


def both_ways(model, path, inputs, cotangent):
    """A function that runs a module forwards and backwards: its output, the sum of that under a cotangent, and the
    gradients of the sum by name."""
    x = jnp.array(inputs, dtype(model.execution.precision.compute))
    positions = model._places(np.arange(x.shape[1], dtype=np.int32)[None])
    cotangent = jnp.array(cotangent, dtype(model.execution.precision.reduce))
    return lambda: model.programs.component(path, model.params, x, positions, cotangent)


def component(model, inputs, cotangent, path):
    """The module at `path` on [B, T, E], and gradients for a cotangent [B, T, E]: {"output", "grad/<parameter>"}."""
    passes = both_ways(model, path, inputs, cotangent)

    def run():
        output, _, grads = passes()
        return {"output": output, **{f"grad/{name}": g for name, g in grads.items()}}

    return run


def drop(model, inputs, targets):
    """Dropout at rate 0.1 of an activation [B, T, E]: {"output"}."""
    x = jnp.asarray(inputs)
    return lambda: {"output": model.programs.dropout(x, RATE, np.uint32(SEED))}


def choose(model, inputs, targets, sampling=None):
    """The next tokens from logits [B, V]: {"tokens"}; the settings default to a draw at temperature 1."""
    logits, sampling = jnp.asarray(inputs), sampling or SamplingConfig(temperature=1.0)
    positions, seed = np.zeros(len(logits), np.int32), np.uint32(sampling.seed)
    return lambda: {"tokens": model.programs.choose(logits, positions, seed, recipe(sampling))}


def go_on(model, inputs, targets, sampling):
    """`max_new_tokens` tokens [B, N] after prompts [B, T] in a cache, whose first was chosen beforehand: {"tokens"}."""
    progress = Progress(crop_prompts(inputs, sampling, model.config), sampling, model.config)
    logits_BV, caches = fill(model.programs, model.params, model.config, model.execution, progress)
    kept = [np.asarray(layer.used) if hasattr(layer, "used") else jax.tree.map(np.asarray, layer) for layer in caches]
    seed, steps = np.uint32(sampling.seed), sampling.max_new_tokens
    rest = progress.positions, progress.ended, seed, np.int32(steps - 1), bucket(steps - 1, 64), recipe(sampling)
    first_B = model.programs.choose(logits_BV, progress.positions, seed, recipe(sampling))

    def run():
        nonlocal caches
        if steps == 1:
            return {"tokens": first_B[:, None]}
        filled = list(map(_as_it_was, caches, kept))
        caches, _, tokens_BN = model.programs.decode(model._serving(), filled, first_B, *rest)
        return {"tokens": np.concatenate([np.asarray(first_B)[:, None], np.asarray(tokens_BN)[:, : steps - 1]], 1)}

    return run


def _as_it_was(layer, kept):
    """A filled cache to write into once more. Slots behind those in use hold what the last call wrote: hidden, for they
    stand later than any query. What has no such slots is copied."""
    return layer._replace(used=jnp.asarray(kept)) if hasattr(layer, "used") else jax.tree.map(jnp.array, kept)


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
    """Of a scan's arrays, which are those of several layers, a layer's own."""
    found = {}
    for name in names:
        folded, repeat = model.programs.place(name)
        array = model.slots[f"{folded}.exp_avg"]
        found[f"exp_avg/{name}"] = array if repeat is None else array[repeat]
    return found


def _ids_and_positions(model, inputs):
    ids = door.check_ids(inputs, model.config)
    return ids, door.positions_of(ids, None, 0, model.config)
