"""One training step: gradients over micro-batches, clipping, the optimizer."""

from common import rng
from common.backend import counted
from common.taps import NO_TAPS, Taps

from .gradient import gradient
from .layers import keyed, layer_key
from .loss import batch_loss
from .optim import clip_by_global_norm, update

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


def mean_loss(model, inputs_ABT, targets_ABT, positions_1T, count, step_key):
    """The mean loss over A micro-batches: what is differentiated."""
    shares = 0.0
    for micro, (inputs_BT, targets_BT) in enumerate(zip(inputs_ABT, targets_ABT, strict=True)):
        key = None if step_key is None else rng.fold_in(step_key, micro)
        shares = shares + objective(model, inputs_BT, targets_BT, positions_1T, count, key)
    return shares


def loss_and_grads(rebuild, params, inputs_ABT, targets_ABT, positions_1T, count, step_key, trained=None):
    """(mean loss, gradients) over A micro-batches, which share one denominator. `rebuild(params)` gives the model.
    `trained[name]` says of which parameters gradients are wanted; None: of all."""

    # [1] sum the shares of the micro-batches
    def loss(params):
        return mean_loss(rebuild(params), inputs_ABT, targets_ABT, positions_1T, count, step_key)

    # [2] differentiate
    return loss(params), gradient(loss, params, [name for name in params if trained is None or trained[name]])


def train_step(
    rebuild, params, slots, inputs_ABT, targets_ABT, positions_1T, count, scalars, train, decays, trained, step_key
):
    """One optimizer step. Returns (params, slots, mean loss, gradient norm before clipping)."""
    # [1] gradients
    loss, grads = loss_and_grads(rebuild, params, inputs_ABT, targets_ABT, positions_1T, count, step_key, trained)
    # [2] clip
    grads, norm = clip_by_global_norm(grads, train.clip_norm)
    # [3] move
    moved, slots = update({name: params[name] for name in grads}, grads, slots, scalars, train, decays)
    return {**params, **moved}, slots, loss, norm
