"""Cross-entropy over next tokens, and perplexity."""

import math

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from common.backend import IGNORED
from common.preference import Pairs

from .layers import wide_product
from .precision import at_least
from .preference import preference_loss

CHUNK = 256  # positions whose logits exist at once


def token_loss(logits_BTV, targets_BT):
    """(sum of -log p(target) in nats, number of targets that count); a target of -100 does not count."""
    # [1] log of the normaliser
    log_probs_BTV = torch.log_softmax(logits_BTV, -1)  # subtracted at once: logsumexp's backward rounds more
    # [2] the target's logit
    counts_BT = targets_BT != IGNORED
    picked_BT = log_probs_BTV.gather(-1, torch.where(counts_BT, targets_BT, 0)[..., None].long())[..., 0]
    # [3] sum over the targets that count
    return torch.where(counts_BT, -picked_BT, 0.0).sum(), counts_BT.sum()


def plain_loss(model, hidden_BTE, targets_BT):
    """`token_loss` of the logits of hidden states, all of them at once."""
    # [1] logits, then their loss
    return token_loss(model.head(hidden_BTE), targets_BT)


def chunked_loss(model, hidden_BTE, targets_BT):
    """The same for CHUNK positions at a time: logits [B, T, V] never exist. Gradients are made on the way."""
    # [1] rows of hidden states and of targets
    hidden_NE, targets_N = hidden_BTE.flatten(0, 1), targets_BT.flatten()
    # [2] the sum over all chunks
    kind = hidden_NE.dtype
    work = torch.promote_types(kind, torch.float32) if model.product is wide_product else kind
    total = _Chunks.apply(hidden_NE, model.head_weight, targets_N, model.reduce, work, torch.is_grad_enabled())
    return total, (targets_N != IGNORED).sum()


LOSSES = {"plain": plain_loss, "chunked": chunked_loss}


class _Chunks(torch.autograd.Function):
    """Sum of token losses of hidden states [N, E] and head weights [V, E]; `work` is the type of all products."""

    @staticmethod
    def forward(ctx, hidden_NE, weight_VE, targets_N, reduce, work, differentiate):
        kind, own_VE = hidden_NE.dtype, weight_VE.to(hidden_NE.dtype).to(work)
        total = torch.zeros((), dtype=torch.promote_types(kind, reduce), device=hidden_NE.device)
        learns = differentiate and ctx.needs_input_grad[1]  # a frozen head needs no gradient of its own size
        own = torch.zeros_like(weight_VE) if learns else None
        grads = (torch.empty_like(hidden_NE), own) if differentiate else None
        for start in range(0, len(targets_N), CHUNK):
            rows = slice(start, start + CHUNK)
            hidden_CE, targets_C = hidden_NE[rows].to(work), targets_N[rows]
            counts_C1 = (targets_C != IGNORED)[:, None]
            at_C1 = torch.where(counts_C1[:, 0], targets_C, 0)[:, None].long()
            log_probs_CV = torch.log_softmax(at_least(F.linear(hidden_CE, own_VE).to(kind), reduce), -1)
            total = total - torch.where(counts_C1, log_probs_CV.gather(-1, at_C1), 0.0).sum()
            if differentiate:  # softmax minus one at the target, zero where the target does not count
                errors_CV = log_probs_CV.exp_()
                errors_CV.scatter_add_(-1, at_C1, torch.full_like(at_C1, -1, dtype=errors_CV.dtype))
                errors_CV = errors_CV.mul_(counts_C1).to(kind).to(work)
                _put_product(grads[0][rows], errors_CV, own_VE)
                if learns:
                    _add_product(grads[1], errors_CV.T, hidden_CE)
        ctx.grads = grads
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, share):
        (grad_NE, grad_VE), ctx.grads = ctx.grads, None  # scaled in place: they serve once
        scaled = (None if grad is None else grad.mul_(share.to(grad.dtype)) for grad in (grad_NE, grad_VE))
        return *scaled, None, None, None, None


def _put_product(out, a, b):
    """out = a b, in place where the types agree."""
    return torch.mm(a, b, out=out) if out.dtype == a.dtype else out.copy_(a @ b)


def _add_product(total, a, b):
    """total += a b, in one pass where the types agree."""
    return total.addmm_(a, b) if total.dtype == b.dtype else total.add_(a @ b)


def batch_loss(model, hidden_BTE, targets_BT):
    """(sum of losses, how much it is summed over) of a batch: of tokens, in the model's way, or of pairs."""
    # [1] by what stands in the place of targets
    if isinstance(targets_BT, Pairs):
        return preference_loss(model, hidden_BTE, targets_BT)
    return model.loss(model, hidden_BTE, targets_BT)


def perplexity(loss):
    """exp of a mean loss in nats: the size of an equally uncertain uniform choice."""
    return math.exp(loss)
