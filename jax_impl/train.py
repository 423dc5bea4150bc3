"""One training step: gradients over micro-batches, clipping, the optimizer."""

import jax
import jax.numpy as jnp

from common import nf4
from common.backend import counted
from common.keyed import keyed
from common.taps import NO_TAPS, Taps

from . import rng
from .layers import layer_key
from .loss import batch_loss
from .optim import adamw, clip_by_global_norm, update

TERMS = ("*.self_attn.index_loss", "*.mlp.balance")  # what indexers and mixtures of experts add to the loss


def objective(model, inputs_BT, targets_BT, positions_1T, count, dropout_key):
    """This micro-batch's share of the mean loss: its sum divided by the number of targets (or pairs) of the whole step.

    With it goes the same share of what layers add: each micro-batch's terms weigh like its targets.
    """
    # [1] hidden states
    layers = model.model.layers
    weights = [(getattr(layer.self_attn, "index_loss", 0), getattr(layer.mlp, "balance", 0)) for layer in layers]
    taps = Taps(TERMS) if any(map(any, weights)) else NO_TAPS
    hidden_BTE, _ = model.model(inputs_BT, positions_1T, dropout_key=dropout_key, taps=taps)
    # [2] sum of losses / global count
    with keyed(layer_key(dropout_key, 0)):
        total, _ = batch_loss(model, hidden_BTE, targets_BT)
    if taps.found:
        total = total + counted(targets_BT) * sum(taps.found.values())
    return total / count


def loss_and_grads(rebuild, params, inputs_ABT, targets_ABT, positions_1T, count, step_key, trained=None):
    """(mean loss, gradients) over A micro-batches, which share one denominator. `rebuild(params)` gives the model.
    `trained[name]` says of which parameters gradients are wanted; None: of all."""
    # [1] sum the shares of the micro-batches
    inputs_ABT, targets_ABT = jax.tree.map(jnp.asarray, (inputs_ABT, targets_ABT))  # without jit they come as NumPy's
    numbers = {name: p for name, p in params.items() if not nf4.is_part(name)}  # bits have no gradient
    own = {name: p for name, p in numbers.items() if trained is None or trained[name]}

    def share(own, micro):
        key = None if step_key is None else rng.fold_in(step_key, micro)
        model = rebuild({**params, **own})
        return objective(model, inputs_ABT[micro], targets_ABT[micro], positions_1T, count, key)

    # [2] differentiate
    differentiate = jax.value_and_grad(share)
    if len(inputs_ABT) == 1:
        return differentiate(own, 0)

    def add(sums, micro):
        return jax.tree.map(jnp.add, sums, differentiate(own, micro)), None

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(differentiate, own, 0))
    return jax.lax.scan(add, nothing, jnp.arange(len(inputs_ABT), dtype=jnp.int32))[0]


def train_step(
    rebuild,
    params,
    slots,
    inputs_ABT,
    targets_ABT,
    positions_1T,
    count,
    scalars,
    train,
    decays,
    trained,
    step_key,
    adam=adamw,
):
    """One optimizer step. Returns (params, slots, mean loss, gradient norm before clipping)."""
    # [1] gradients
    loss, grads = loss_and_grads(rebuild, params, inputs_ABT, targets_ABT, positions_1T, count, step_key, trained)
    # [2] clip
    grads, norm = clip_by_global_norm(grads, train.clip_norm)
    # [3] move
    moved, slots = update({name: params[name] for name in grads}, grads, slots, scalars, train, decays, adam)
    return {**params, **moved}, slots, loss, norm
