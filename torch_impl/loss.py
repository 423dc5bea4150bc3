"""Cross-entropy over next tokens, and perplexity."""

import math

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from common.backend import IGNORED
from common.preference import Pairs

from .layers import wide_product
from .precision import at_least

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


def row_log_probs(logits_BTV, targets_BT):
    """(sum of log p(target) in nats, number of targets that count) of every row, [B] each."""
    # [1] log p of every target
    counts_BT = targets_BT != IGNORED
    log_probs_BTV = torch.log_softmax(logits_BTV, -1)
    picked_BT = log_probs_BTV.gather(-1, torch.where(counts_BT, targets_BT, 0)[..., None].long())[..., 0]
    # [2] sum over the targets that count
    return torch.where(counts_BT, picked_BT, 0.0).sum(-1), counts_BT.sum(-1)


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
        grads = (torch.empty_like(hidden_NE), torch.zeros_like(weight_VE)) if differentiate else None
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
                _add_product(grads[1], errors_CV.T, hidden_CE)
        ctx.grads = grads
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, share):
        (grad_NE, grad_VE), ctx.grads = ctx.grads, None  # scaled in place: they serve once
        return grad_NE.mul_(share.to(grad_NE.dtype)), grad_VE.mul_(share.to(grad_VE.dtype)), None, None, None, None


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


def preference_loss(model, hidden_BTE, pairs):
    """(sum of the losses of pairs of responses, their number); see `common/preference.py`. All logits exist at once."""
    # [1] log-probabilities of responses, a row each
    preference = pairs.preference
    sums_B, counts_B = row_log_probs(model.head(hidden_BTE), pairs.labels)
    if preference.reduction == "mean":
        sums_B = sums_B / counts_B.clamp(min=1)
    # [2] what is better about the chosen one than about the rejected, and how much of it the reference finds too
    policy_P2, reference_P2 = sums_B.reshape(-1, 2), pairs.reference.to(sums_B.dtype).reshape(-1, 2)
    # [3] the loss of every pair, summed
    losses_P = PREFERENCES[preference.loss](policy_P2, reference_P2, preference)
    return losses_P.sum(), len(losses_P)


def _gain(policy_P2, reference_P2):
    """By how much more the model prefers the chosen response than the reference does, [P]."""
    ahead_P2 = policy_P2 - reference_P2
    return ahead_P2[:, 0] - ahead_P2[:, 1]


def dpo(policy_P2, reference_P2, settings):
    """Direct preference optimisation. Source: Rafailov et al. 2023, equation 7."""
    # [1] -log sigmoid(beta d)
    return -F.logsigmoid(settings.beta * _gain(policy_P2, reference_P2))


def cdpo(policy_P2, reference_P2, settings):
    """DPO of labels that are wrong with probability `smoothing`. Source: Mitchell 2023."""
    # [1] both ways round, by their probabilities
    gain_P = settings.beta * _gain(policy_P2, reference_P2)
    return -(1 - settings.smoothing) * F.logsigmoid(gain_P) - settings.smoothing * F.logsigmoid(-gain_P)


def ipo(policy_P2, reference_P2, settings):
    """Identity preference optimisation. Source: Azar et al. 2023, equation 17."""
    # [1] (d - 1 / (2 beta))^2
    off_P = _gain(policy_P2, reference_P2) - 1 / (2 * settings.beta)
    return off_P * off_P


def hinge(policy_P2, reference_P2, settings):
    """Sequence likelihood calibration. Source: Zhao et al. 2023, with a reference as in DPO."""
    # [1] max(0, 1 - beta d)
    short_P = 1 - settings.beta * _gain(policy_P2, reference_P2)
    return torch.where(short_P > 0, short_P, 0.0)


def simpo(policy_P2, reference_P2, settings):
    """Simple preference optimisation, without a reference. Source: Meng et al. 2024, equation 6."""
    # [1] -log sigmoid(beta (l_chosen - l_rejected) - gamma)
    return -F.logsigmoid(settings.beta * (policy_P2[:, 0] - policy_P2[:, 1]) - settings.gamma)


def orpo(policy_P2, reference_P2, settings):
    """Odds ratio preference optimisation, without a reference. Source: Hong et al. 2024, equation 6."""
    # [1] log odds, log p - log(1 - p)
    odds_P2 = policy_P2 - torch.log(-torch.expm1(policy_P2))
    # [2] likelihood of the chosen one, and of the ratio of odds
    return -policy_P2[:, 0] - settings.beta * F.logsigmoid(odds_P2[:, 0] - odds_P2[:, 1])


PREFERENCES = {"dpo": dpo, "cdpo": cdpo, "ipo": ipo, "hinge": hinge, "simpo": simpo, "orpo": orpo}


def perplexity(loss):
    """exp of a mean loss in nats: the size of an equally uncertain uniform choice."""
    return math.exp(loss)
