"""AdamW with decoupled weight decay, Muon for matrices, and clipping by the global norm."""

import math

import torch

QUINTIC, ROUNDS = (3.4445, -4.7750, 2.0315), 5  # Jordan et al. 2024: singular values of 0.02 and more end in 0.7 to 1.2


def clip_by_global_norm(grads, limit):
    """(gradients scaled so that their common norm is at most `limit`, the norm before). `limit` None only measures."""
    # [1] one norm over all tensors
    # of rows first: in float32 PyTorch's sum over 4e7 numbers at once is off by 3e-3
    rows = [torch.linalg.vector_norm(g, dim=-1) for g in grads.values()]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(row) for row in rows]))
    # [2] scale down, never up
    if limit is not None:
        scale = torch.clamp(limit / (norm + 1e-6), max=1.0)
        for g in grads.values():
            g.mul_(scale)
    return grads, norm


def adamw(params, grads, slots, scalars, train, decays):
    """One step. `scalars` = (rate, 1 - beta1^t, 1 - beta2^t, t); `decays[name]` says whether the decay applies.

    Changes params and slots in place and returns them. Source: Loshchilov and Hutter 2019, algorithm 2, without the
    schedule multiplier on decay.
    """
    rate, correction1, correction2, _ = scalars
    for name, p in params.items():
        g, m, v = grads[name], slots[f"{name}.exp_avg"], slots[f"{name}.exp_avg_sq"]
        # [1] moving averages of the gradient and of its square
        m.mul_(train.beta1).add_(g, alpha=1 - train.beta1)
        v.mul_(train.beta2).addcmul_(g, g, value=1 - train.beta2)
        # [2] decay, then move
        decay = train.weight_decay if decays[name] else 0.0
        p.mul_(1 - rate * decay)
        p.addcdiv_(m, (v / correction2).sqrt_().add_(train.adam_eps), value=-rate / correction1)
    return params, slots


def fused_adamw(params, grads, slots, scalars, train, decays):
    """The same step by PyTorch's own kernel, which reads and writes every number once."""
    rate, _, _, t = scalars
    for decay in sorted({decays[name] for name in params}):  # the kernel takes no empty lists
        names = [name for name in params if decays[name] == decay]
        chosen = ([group[f"{name}{tail}"] for name in names] for group, tail in _groups(params, grads, slots))
        step = torch.full((), float(t), dtype=torch.float32, device=next(iter(params.values())).device)
        # [1] moving averages of the gradient and of its square  [2] decay, then move
        torch._fused_adamw_(
            *chosen,
            [],
            [step] * len(names),
            lr=rate,
            beta1=train.beta1,
            beta2=train.beta2,
            weight_decay=train.weight_decay if decay else 0.0,
            eps=train.adam_eps,
            amsgrad=False,
            maximize=False,
        )
    return params, slots


def _groups(params, grads, slots):
    return (params, ""), (grads, ""), (slots, ".exp_avg"), (slots, ".exp_avg_sq")


OPTIMIZERS = {"plain": adamw, "fused": fused_adamw}


def muon(params, grads, slots, scalars, train, decays):
    """One step of matrices [..., out, in], each along its momentum made orthogonal, as long as steps of AdamW.

    Changes params and slots in place and returns them. Source: Jordan et al. 2024; Liu et al. 2025, section 2.2 (the
    length).
    """
    rate = scalars[0]
    for name, p in params.items():
        g, m = grads[name], slots[f"{name}.momentum"]
        # [1] the moving average of the gradient, and a look ahead (Nesterov)
        m.mul_(train.momentum).add_(g, alpha=1 - train.momentum)
        ahead = train.momentum * m + (1 - train.momentum) * g
        # [2] shrink, then move
        kept = 1 - rate * train.weight_decay * decays[name]
        p.mul_(kept).sub_(orthogonalised(ahead), alpha=rate * 0.2 * math.sqrt(max(p.shape[-2:])))
    return params, slots


def orthogonalised(x):
    """The matrices [..., out, in] with the same singular vectors and singular values near 1, by a quintic iteration
    after Newton and Schulz. Source: Jordan et al. 2024."""
    # [1] no more rows than columns, and no singular value above 1
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / torch.clamp(torch.linalg.matrix_norm(x, keepdim=True), min=1e-7)
    # [2] every singular value s becomes a s + b s^3 + c s^5
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


def update(params, grads, slots, scalars, train, decays, adam=adamw):
    """One step of all parameters: those with a momentum by Muon, the others by AdamW. Returns (params, slots)."""
    # [1] matrices that have a momentum
    turned = {name: p for name, p in params.items() if f"{name}.momentum" in slots}
    muon(turned, grads, slots, scalars, train, decays)
    # [2] all others
    adam({name: p for name, p in params.items() if name not in turned}, grads, slots, scalars, train, decays)
    return params, slots


def empty_slots(params, turned=()):
    """Zeros for what is remembered: `<name>.momentum` of those that Muon turns, `<name>.exp_avg` and
    `<name>.exp_avg_sq` of all others."""
    # [1] by the parameter's name
    kinds = {name: ("momentum",) if name in turned else ("exp_avg", "exp_avg_sq") for name in params}
    return {f"{name}.{slot}": torch.zeros_like(p) for name, p in params.items() for slot in kinds[name]}
