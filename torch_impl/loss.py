"""Cross-entropy over next tokens, and perplexity."""

import math

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from common.backend import IGNORED
from common.preference import Pairs

from .layers import wide_product
from .lora import widened
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
    # [1] what is multiplied by which matrix: hidden states by the head, and what its adapters add
    head = model.lm_head if model.score is None else model.score
    pairs = [(hidden_BTE, model.head_weight)] if head is None else widened(head, hidden_BTE)
    # [2] rows of these inputs, and of targets
    rows, targets_N = [(x_BTI.flatten(0, 1), weight_VI) for x_BTI, weight_VI in pairs], targets_BT.flatten()
    # [3] the sum over all chunks
    kind = hidden_BTE.dtype
    work = torch.promote_types(kind, torch.float32) if model.product is wide_product else kind
    total = _Chunks.apply(targets_N, model.reduce, work, torch.is_grad_enabled(), *sum(rows, ()))
    return total, (targets_N != IGNORED).sum()


LOSSES = {"plain": plain_loss, "chunked": chunked_loss}


class _Chunks(torch.autograd.Function):
    """Sum of token losses of logits that are a sum of products: of inputs [N, I] and matrices [V, I], which come in
    turn; `work` is the type of all products. What learns nothing needs no gradient of its own size."""

    @staticmethod
    def forward(ctx, targets_N, reduce, work, differentiate, *pairs):
        inputs, weights = pairs[::2], pairs[1::2]
        kind, learn = inputs[0].dtype, [differentiate and needed for needed in ctx.needs_input_grad[-len(pairs) :]]
        own = [weight_VI.to(kind).to(work) for weight_VI in weights]
        total = torch.zeros((), dtype=torch.promote_types(kind, reduce), device=inputs[0].device)
        grads = [torch.zeros_like(one) if learns else None for one, learns in zip(pairs, learn, strict=True)]
        for start in range(0, len(targets_N), CHUNK):
            rows = slice(start, start + CHUNK)
            parts, targets_C = [x_NI[rows].to(work) for x_NI in inputs], targets_N[rows]
            counts_C1 = (targets_C != IGNORED)[:, None]
            at_C1 = torch.where(counts_C1[:, 0], targets_C, 0)[:, None].long()
            logits_CV = F.linear(parts[0], own[0])
            for x_CI, own_VI in zip(parts[1:], own[1:], strict=True):
                logits_CV.addmm_(x_CI, own_VI.T)
            log_probs_CV = torch.log_softmax(at_least(logits_CV.to(kind), reduce), -1)
            total = total - torch.where(counts_C1, log_probs_CV.gather(-1, at_C1), 0.0).sum()
            if any(learn):  # softmax minus one at the target, zero where the target does not count
                errors_CV = log_probs_CV.exp_()
                errors_CV.scatter_add_(-1, at_C1, torch.full_like(at_C1, -1, dtype=errors_CV.dtype))
                errors_CV = errors_CV.mul_(counts_C1).to(kind).to(work)
            for x_CI, own_VI, into_NI, into_VI in zip(parts, own, grads[::2], grads[1::2], strict=True):
                if into_NI is not None:
                    _put_product(into_NI[rows], errors_CV, own_VI)
                if into_VI is not None:
                    _add_product(into_VI, errors_CV.T, x_CI)
        ctx.grads = grads
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, share):
        grads, ctx.grads = ctx.grads, None  # scaled in place: they serve once
        return None, None, None, None, *(None if grad is None else grad.mul_(share.to(grad.dtype)) for grad in grads)


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
