"""AdamW with decoupled weight decay, and clipping by the global norm."""

import torch


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
    for decay in (True, False):
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


def empty_slots(params):
    """Zero moving averages, `<name>.exp_avg` and `<name>.exp_avg_sq`, for every parameter."""
    return {f"{name}.{slot}": torch.zeros_like(p) for name, p in params.items() for slot in ("exp_avg", "exp_avg_sq")}
