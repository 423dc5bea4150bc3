"""One training step: gradients over micro-batches, clipping, the optimizer."""

import torch

from common.backend import counted
from common.keyed import keyed
from common.taps import NO_TAPS, Taps

from . import rng
from .layers import layer_key
from .loss import batch_loss
from .optim import adamw, clip_by_global_norm, update

TERMS = ("*.self_attn.index_loss", "*.mlp.balance")  # what indexers and mixtures of experts add to the loss


def objective(model, inputs_BT, targets_BT, positions_1T, count, dropout_key, term_weight=None):
    """This micro-batch's share of the mean loss: its sum divided by the number of targets (or pairs) of the whole step.

    With it goes the same share of what layers add: each micro-batch's terms weigh like its targets, or as
    `term_weight` says: in a layout this process has some of its rows only.
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
        term_weight = counted(targets_BT) if term_weight is None else term_weight
        total = total + term_weight * sum(taps.found.values())
    return total / count


def loss_and_grads(model, inputs_ABT, targets_ABT, positions_1T, count, step_key, trained=None):
    """(mean loss, gradients) over A micro-batches, which share one denominator. `trained[name]` says of which
    parameters gradients are wanted; None: of all."""
    # [1] sum the shares of the micro-batches
    shares = 0.0
    for name, p in model.named_parameters():
        p.requires_grad_(trained is None or trained[name])
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for micro, (inputs_BT, targets_BT) in enumerate(zip(inputs_ABT, targets_ABT, strict=True)):
        key = None if step_key is None else rng.fold_in(step_key, micro)
        share = objective(model, inputs_BT, targets_BT, positions_1T, count, key)
        # [2] differentiate
        share.backward()
        shares = shares + share.detach()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in params.items()}
    for p in params.values():
        p.grad = None
    return shares, grads


def clipped_gradients(model, inputs_ABT, targets_ABT, positions_1T, count, step_key, trained, limit):
    """(mean loss, gradients clipped by their common norm, that norm before)."""
    # [1] gradients
    loss, grads = loss_and_grads(model, inputs_ABT, targets_ABT, positions_1T, count, step_key, trained)
    # [2] clip
    with torch.no_grad():
        grads, norm = clip_by_global_norm(grads, limit)
    return loss, grads, norm


def train_step(
    model,
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
    clipped=clipped_gradients,
):
    """One optimizer step, in place. Returns (slots, mean loss, gradient norm before clipping)."""
    # [1] gradients  [2] clip
    batch = inputs_ABT, targets_ABT, positions_1T, count
    loss, grads, norm = clipped(model, *batch, step_key, trained, train.clip_norm)
    with torch.no_grad():
        # [3] move
        params = {name: p for name, p in model.named_parameters() if trained[name]}
        _, slots = update(params, grads, slots, scalars, train, decays, adam)
    return slots, loss, norm
