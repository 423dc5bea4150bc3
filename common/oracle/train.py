"""One training step: gradients over micro-batches, clipping, AdamW."""

from common import rng

from .gradient import gradient
from .optim import adamw, clip_by_global_norm


def objective(model, inputs_BT, targets_BT, positions_1T, count, dropout_key):
    """This micro-batch's share of the mean loss: its sum divided by the number of targets of the whole step."""
    # [1] hidden states
    hidden_BTE, _ = model.model(inputs_BT, positions_1T, dropout_key=dropout_key)
    # [2] sum of losses / global count
    total, _ = model.loss(model, hidden_BTE, targets_BT)
    return total / count


def mean_loss(model, inputs_ABT, targets_ABT, positions_1T, count, step_key):
    """The mean loss over A micro-batches: what is differentiated."""
    shares = 0.0
    for micro, (inputs_BT, targets_BT) in enumerate(zip(inputs_ABT, targets_ABT, strict=True)):
        key = None if step_key is None else rng.fold_in(step_key, micro)
        shares = shares + objective(model, inputs_BT, targets_BT, positions_1T, count, key)
    return shares


def loss_and_grads(rebuild, params, inputs_ABT, targets_ABT, positions_1T, count, step_key):
    """(mean loss, gradients) over A micro-batches, which share one denominator. `rebuild(params)` gives the model."""

    # [1] sum the shares of the micro-batches
    def loss(params):
        return mean_loss(rebuild(params), inputs_ABT, targets_ABT, positions_1T, count, step_key)

    # [2] differentiate
    return loss(params), gradient(loss, params)


def train_step(rebuild, params, slots, inputs_ABT, targets_ABT, positions_1T, count, scalars, train, decays, step_key):
    """One optimizer step. Returns (params, slots, mean loss, gradient norm before clipping)."""
    # [1] gradients
    loss, grads = loss_and_grads(rebuild, params, inputs_ABT, targets_ABT, positions_1T, count, step_key)
    # [2] clip
    grads, norm = clip_by_global_norm(grads, train.clip_norm)
    # [3] move
    params, slots = adamw(params, grads, slots, scalars, train, decays)
    return params, slots, loss, norm
