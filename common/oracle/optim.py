"""AdamW with decoupled weight decay, and clipping by the global norm."""

import numpy as np


def clip_by_global_norm(grads, limit):
    """(gradients scaled so that their common norm is at most `limit`, the norm before). `limit` None only measures."""
    # [1] one norm over all tensors
    norm = np.sqrt(sum((g * g).sum() for g in grads.values()))
    # [2] scale down, never up
    scale = 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))
    return {name: g * scale for name, g in grads.items()}, norm


def adamw(params, grads, slots, scalars, train, decays):
    """One step. `scalars` = (rate, 1 - beta1^t, 1 - beta2^t, t); `decays[name]` says whether the decay applies.

    Returns (params, slots). Source: Loshchilov and Hutter 2019, algorithm 2, without the schedule multiplier on decay.
    """
    rate, correction1, correction2, _ = scalars
    new_params, new_slots = {}, {}
    for name, p in params.items():
        g, m, v = grads[name], slots[f"{name}.exp_avg"], slots[f"{name}.exp_avg_sq"]
        # [1] moving averages of the gradient and of its square
        m = train.beta1 * m + (1 - train.beta1) * g
        v = train.beta2 * v + (1 - train.beta2) * g * g
        # [2] decay, then move
        decay = train.weight_decay if decays[name] else 0.0
        p = p * (1 - rate * decay)
        new_params[name] = p - rate * (m / correction1) / (np.sqrt(v / correction2) + train.adam_eps)
        new_slots[f"{name}.exp_avg"], new_slots[f"{name}.exp_avg_sq"] = m, v
    return new_params, new_slots


OPTIMIZERS = {"plain": adamw}


def empty_slots(params):
    """Zero moving averages, `<name>.exp_avg` and `<name>.exp_avg_sq`, for every parameter."""
    return {f"{name}.{slot}": np.zeros_like(p) for name, p in params.items() for slot in ("exp_avg", "exp_avg_sq")}
