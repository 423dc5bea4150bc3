"""Mixtures of experts (Shazeer et al. 2017), with what today's models add to them; see common/variants."""

import numpy as np

from common.taps import NO_TAPS

from ..attention.kernels import softmax
from ..layers import ACTIVATIONS, Linear, sigmoid
from ..module import Module, Slot
from .gated_mlp import GatedMLP


class MixtureOfExperts(Module):
    """The weighted sum of what the C experts make of a token that the router chooses for it, of X: E -> E.

    Letters beside the legend's: X experts, C those of a token, G groups and P experts of one, N tokens (B T), I and O
    what goes in and comes out.
    """

    def __init__(self, config, entry):
        self.top_k, self.normalise, self.scale, self.balance = entry.top_k, entry.normalise, entry.scale, entry.balance
        self.weigh = ROUTINGS[entry.routing]
        self.num_groups, self.top_groups, self.by_scores = entry.num_groups, entry.top_groups, entry.chooses_by_scores
        self.router = Linear(config.embed_dim, entry.num_experts, bias=entry.router_bias)
        self.choice_bias = Slot(entry.num_experts) if entry.choice_bias else None
        self.experts = Experts(config, entry)
        self.shared_expert = None if entry.shared_dim is None else GatedMLP(*entry.shared(config))
        self.shared_expert_gate = Linear(config.embed_dim, 1, bias=False) if entry.shared_gate else None

    def __call__(self, x_BTE, taps=NO_TAPS):
        # [1] the router: a logit for every expert, in the precision of reductions
        logits_BTX = taps("router", self.router(x_BTE))
        # [2] the experts of the largest logits or scores, and what they weigh
        scores_BTX = self.scores(logits_BTX, taps) if self.by_scores else logits_BTX
        chosen_BTC = largest(scores_BTX, self.top_k)
        shares_BTC = self.weigh(logits_BTX, chosen_BTC)
        if self.normalise:
            shares_BTC = shares_BTC / shares_BTC.sum(-1, keepdims=True)
        shares_BTC = taps("shares", shares_BTC * self.scale)
        # [3] for those who look: the choice in the order of numbers, and what training adds to its loss
        if taps.wants("chosen"):
            taps("chosen", np.sort(chosen_BTC, -1))
        if self.balance and taps.wants("balance"):
            taps("balance", self.balance * imbalance(logits_BTX, chosen_BTC))
        # [4] what the chosen experts make of the token, weighed and added up
        each_BTCE = self.experts(x_BTE, chosen_BTC, taps.under("experts"))
        out_BTE = taps("mixture", (each_BTCE * shares_BTC[..., None]).sum(2))
        # [5] plus what every token passes, behind a gate
        if self.shared_expert is not None:
            shared_BTE = self.shared_expert(x_BTE, taps.under("shared_expert"))
            if self.shared_expert_gate is not None:
                shared_BTE = shared_BTE * taps("shared_gate", sigmoid(self.shared_expert_gate(x_BTE)))
            out_BTE = out_BTE + shared_BTE
        return taps("output", out_BTE)

    def scores(self, logits_BTX, taps):
        """What experts are chosen by where not by their logits. Source: DeepSeek-AI 2024 (DeepSeek-V3), equation 16."""
        # [1] what each would weigh if all were chosen, and a bias that only chooses
        everyone_BTX = np.broadcast_to(np.arange(logits_BTX.shape[-1]), logits_BTX.shape)
        scores_BTX = self.weigh(logits_BTX, everyone_BTX)
        if self.choice_bias is not None:
            scores_BTX = scores_BTX + self.choice_bias
        scores_BTX = taps("choice", scores_BTX)
        # [2] of all groups those whose two best have the largest sum
        if self.num_groups == 1:
            return scores_BTX
        scores_BTGP = scores_BTX.reshape(*scores_BTX.shape[:-1], self.num_groups, -1)
        sums_BTG = np.sort(scores_BTGP.real, -1)[..., -2:].sum(-1)
        out_BTG = np.ones(sums_BTG.shape, bool)
        np.put_along_axis(out_BTG, largest(sums_BTG, self.top_groups), False, -1)
        return np.where(out_BTG[..., None], -np.inf, scores_BTGP.real).reshape(scores_BTX.shape)


def largest(logits_BTX, count):
    """The numbers of the `count` largest logits, the largest first: [B, T, C]."""
    # [1] of equal logits that of the lower number comes first
    return np.argsort(-logits_BTX.real, -1, kind="stable")[..., :count]


def softmax_then_top_k(logits_BTX, chosen_BTC):
    """The chosen experts' part of a softmax over all. Source: Shazeer et al. 2017, section 2; Fedus et al. 2022."""
    # [1] a softmax over all experts, of which those chosen
    return np.take_along_axis(softmax(logits_BTX), chosen_BTC, -1)


def top_k_then_softmax(logits_BTX, chosen_BTC):
    """A softmax over the chosen experts alone. Source: Jiang et al. 2024, section 2.1."""
    # [1] the chosen logits, and a softmax over them
    return softmax(np.take_along_axis(logits_BTX, chosen_BTC, -1))


def top_k_then_sigmoid(logits_BTX, chosen_BTC):
    """A sigmoid of each chosen logit by itself. Source: DeepSeek-AI 2024 (DeepSeek-V3), equation 15."""
    # [1] the chosen logits, and their sigmoids
    return sigmoid(np.take_along_axis(logits_BTX, chosen_BTC, -1))


ROUTINGS = {
    "softmax_then_top_k": softmax_then_top_k,
    "top_k_then_softmax": top_k_then_softmax,
    "top_k_then_sigmoid": top_k_then_sigmoid,
}


def imbalance(logits_BTX, chosen_BTC):
    """X times the sum over all experts of (its part of all choices) (its mean probability): 1 if either is the same for
    all, more where the router prefers some. No gradient flows through the first, which counts.

    Source: Fedus et al. 2022, equations 4 to 6, for one choice a token. With C, others multiply it by C, for they count
    tokens, not choices.
    """
    # [1] parts of all choices
    count = logits_BTX.shape[-1]
    parts_X = np.bincount(chosen_BTC.ravel(), minlength=count) / chosen_BTC.size
    # [2] mean probabilities
    means_X = softmax(logits_BTX).mean((0, 1))
    # [3] their product, added up
    return count * (parts_X * means_X).sum()


class Experts(Module):
    """down(activation(gate(x)) * up(x)) of X experts, whose matrices lie one on the other: [X, out, in].

    With a limit, gate and up are clamped. Source: OpenAI 2025 (gpt-oss), the experts' SwiGLU.
    """

    def __init__(self, config, entry):
        count, width, embed = entry.num_experts, entry.width(config), config.embed_dim
        self.activation, self.form = ACTIVATIONS[config.activation], EXPERTS["loop"]
        self.limit, self.offset = entry.limit, entry.offset
        self.gate_proj = Slot(count, width, embed)
        self.up_proj = Slot(count, width, embed)
        self.down_proj = Slot(count, embed, width)
        self.gate_bias = Slot(count, width) if entry.expert_bias else None
        self.up_bias = Slot(count, width) if entry.expert_bias else None
        self.down_bias = Slot(count, embed) if entry.expert_bias else None

    def __call__(self, x_BTE, chosen_BTC, taps=NO_TAPS):
        batch, length, places = chosen_BTC.shape

        def shown(name, value):
            return taps(name, value.reshape(batch, length, -1)).reshape(value.shape)

        # [1] every token to each of the experts that it chose
        form = self.form(chosen_BTC.reshape(-1, places), self)
        rows = form.take(x_BTE.reshape(batch * length, -1))
        # [2] widen twice, clamp both, bend one, multiply
        gate = form.product(rows, self.gate_proj, self.gate_bias)
        up = form.product(rows, self.up_proj, self.up_bias)
        if self.limit is not None:
            gate, up = clamp(gate, -np.inf, self.limit), clamp(up, -self.limit, self.limit)
            gate = shown("clamped", gate)
        gate = shown("gate", self.activation(gate))
        hidden = shown("hidden", gate * (up + self.offset if self.offset else up))
        # [3] back to the width of the model, in the order of the tokens
        return form.put(form.product(hidden, self.down_proj, self.down_bias)).reshape(batch, length, places, -1)


def clamp(x, low, high):
    """x, or the end of the range beyond which it lies. At the ends themselves gradients pass."""
    # [1] what lies outside is a constant
    return np.where(x.real > high, high, np.where(x.real < low, low, x))


class LoopExperts:
    """Expert by expert: each multiplies what the tokens that chose it bring."""

    def __init__(self, chosen_NC, experts):
        self.chosen_NC = chosen_NC

    def take(self, x_NE):
        # [1] a row for every token and each of its experts
        return np.broadcast_to(x_NE[:, None], (*self.chosen_NC.shape, x_NE.shape[-1]))

    def product(self, rows, weight_XOI, bias_XO):
        # [1] every row times the matrix of its expert, and its bias
        shape = *self.chosen_NC.shape, weight_XOI.shape[1]
        y_NCO = np.zeros_like(rows, np.result_type(rows, weight_XOI), "C", shape=shape)
        for expert, weight_OI in enumerate(weight_XOI):
            mine_NC = self.chosen_NC == expert  # multiplied one by one, so that no row's rounding depends on others
            y_NCO[mine_NC] = (weight_OI @ rows[mine_NC][..., None])[..., 0]
        return y_NCO if bias_XO is None else y_NCO + bias_XO[self.chosen_NC]

    def put(self, rows):
        # [1] rows in the order of tokens and places
        return rows


EXPERTS = {"loop": LoopExperts}
