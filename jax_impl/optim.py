"""AdamW with decoupled weight decay, Muon for matrices, and clipping by the global norm."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from common.errors import UserError

QUINTIC, ROUNDS = (3.4445, -4.7750, 2.0315), 5  # Jordan et al. 2024: singular values of 0.02 and more end in 0.7 to 1.2


def clip_by_global_norm(grads, limit):
    """(gradients scaled so that their common norm is at most `limit`, the norm before). `limit` None only measures."""
    # [1] one norm over all tensors
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in grads.values()))
    # [2] scale down, never up
    scale = 1.0 if limit is None else jnp.minimum(1.0, limit / (norm + 1e-6))
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
        new_params[name] = p - rate / correction1 * m / (jnp.sqrt(v / correction2) + train.adam_eps)
        new_slots[f"{name}.exp_avg"], new_slots[f"{name}.exp_avg_sq"] = m, v
    return new_params, new_slots


def fused_adamw(params, grads, slots, scalars, train, decays):
    """The same step by optax's own AdamW.

    In float32 it finds few digits of 1 - beta^t, so its count of steps stays at the end, where this is 1; rate, epsilon
    and decay are handed on so that the averages are corrected all the same.
    """
    rate, correction1, correction2, _ = scalars
    kind, tails = jnp.result_type(float, *params.values()), ("exp_avg", "exp_avg_sq")
    if max(np.array((train.beta1, train.beta2), kind)) == 1:
        raise UserError(f"A beta is 1 in {kind}, which optax cannot correct: use optimizer='plain'.")
    root, (means, squares) = jnp.sqrt(correction2), ({n: slots[f"{n}.{tail}"] for n in params} for tail in tails)
    rule = optax.adamw(
        rate * root / correction1,
        train.beta1,
        train.beta2,
        train.adam_eps * root,
        weight_decay=train.weight_decay * correction1 / root,
        mask={name: decays[name] for name in params},
    )
    adam, *others = jax.eval_shape(rule.init, params)
    adam = adam._replace(count=jnp.array(jnp.finfo(kind).max, kind), mu=means, nu=squares)
    # [1] moving averages of the gradient and of its square  [2] decay, then move
    moves, (adam, *_) = rule.update({name: grads[name] for name in params}, (adam, *others), params)
    averages = zip(tails, (adam.mu, adam.nu), strict=True)
    return optax.apply_updates(params, moves), {f"{n}.{tail}": one[n] for tail, one in averages for n in params}


OPTIMIZERS = {"plain": adamw, "fused": fused_adamw}


def muon(params, grads, slots, scalars, train, decays):
    """One step of matrices [..., out, in], each along its momentum made orthogonal, as long as steps of AdamW.

    Returns (params, slots). Source: Jordan et al. 2024; Liu et al. 2025, section 2.2 (the length).
    """
    rate, new_params, new_slots = scalars[0], {}, {}
    for name, p in params.items():
        g, m = grads[name], slots[f"{name}.momentum"]
        # [1] the moving average of the gradient, and a look ahead (Nesterov)
        m = train.momentum * m + (1 - train.momentum) * g
        ahead = train.momentum * m + (1 - train.momentum) * g
        # [2] shrink, then move
        kept = 1 - rate * train.weight_decay * decays[name]
        new_params[name] = kept * p - rate * 0.2 * math.sqrt(max(p.shape[-2:])) * orthogonalised(ahead)
        new_slots[f"{name}.momentum"] = m
    return new_params, new_slots


def orthogonalised(x):
    """The matrices [..., out, in] with the same singular vectors and singular values near 1, by a quintic iteration
    after Newton and Schulz. Source: Jordan et al. 2024."""
    # [1] no more rows than columns, and no singular value above 1
    tall = x.shape[-2] > x.shape[-1]
    x = x.swapaxes(-2, -1) if tall else x
    x = x / jnp.maximum(jnp.sqrt(jnp.square(x).sum((-2, -1), keepdims=True)), 1e-7)
    # [2] every singular value s becomes a s + b s^3 + c s^5
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        square = x @ x.swapaxes(-2, -1)
        x = a * x + (b * square + c * square @ square) @ x
    return x.swapaxes(-2, -1) if tall else x


def update(params, grads, slots, scalars, train, decays, adam=adamw):
    """One step of all parameters: those with a momentum by Muon, the others by AdamW. Returns (params, slots)."""
    # [1] matrices that have a momentum
    turned = {name: p for name, p in params.items() if f"{name}.momentum" in slots}
    turned, momenta = muon(turned, grads, slots, scalars, train, decays)
    # [2] all others
    others = {name: p for name, p in params.items() if name not in turned}
    others, averages = adam(others, grads, slots, scalars, train, decays)
    return {name: turned[name] if name in turned else others[name] for name in params}, momenta | averages


def empty_slots(params, turned=()):
    """Zeros for what is remembered: `<name>.momentum` of those that Muon turns, `<name>.exp_avg` and
    `<name>.exp_avg_sq` of all others."""
    # [1] by the parameter's name
    kinds = {name: ("momentum",) if name in turned else ("exp_avg", "exp_avg_sq") for name in params}
    return {f"{name}.{slot}": jnp.zeros_like(p) for name, p in params.items() for slot in kinds[name]}
