"""Mixtures of experts (Shazeer et al. 2017), with what today's models add to them; see common/variants."""

import jax
import jax.numpy as jnp
from flax import nnx

from common.taps import NO_TAPS

from ..layers import GELUS, PRODUCTS, Linear, at_least, matmul
from ..precision import dtype
from .gated_mlp import GatedMLP


class MixtureOfExperts(nnx.Module):
    """The weighted sum of what the C experts make of a token that the router chooses for it, of X: E -> E.

    Letters beside the legend's: X experts, C those of a token, G groups and P experts of one, N tokens (B T), M pairs
    of tokens and their experts (N C), I and O what goes in and comes out.
    """

    def __init__(self, config, entry, execution):
        self.top_k, self.normalise, self.scale, self.balance = entry.top_k, entry.normalise, entry.scale, entry.balance
        self.weigh, self.reduce = ROUTINGS[entry.routing], dtype(execution.precision.reduce)
        self.num_groups, self.top_groups, self.by_scores = entry.num_groups, entry.top_groups, entry.chooses_by_scores
        kind = dtype(execution.precision.param)
        self.router = Linear(config.embed_dim, entry.num_experts, entry.router_bias, execution)
        self.choice_bias = nnx.Param(jnp.zeros(entry.num_experts, kind)) if entry.choice_bias else None
        self.experts = Experts(config, entry, execution)
        self.shared_expert = None if entry.shared_dim is None else GatedMLP(*entry.shared(config), execution)
        self.shared_expert_gate = Linear(config.embed_dim, 1, False, execution) if entry.shared_gate else None

    def __call__(self, x_BTE, taps=NO_TAPS):
        # [1] the router: a logit for every expert, in the precision of reductions
        weight_XE = self.router.weight[...].astype(x_BTE.dtype)
        logits_BTX = matmul("bte,xe->btx", x_BTE, weight_XE, self.reduce)
        if self.router.bias is not None:
            logits_BTX = logits_BTX + self.router.bias[...]
        logits_BTX = taps("router", logits_BTX)
        # [2] the experts of the largest logits or scores, and what they weigh
        scores_BTX = self.scores(logits_BTX, taps) if self.by_scores else logits_BTX
        chosen_BTC = largest(scores_BTX, self.top_k)
        shares_BTC = self.weigh(logits_BTX, chosen_BTC)
        if self.normalise:
            shares_BTC = shares_BTC / shares_BTC.sum(-1, keepdims=True)
        shares_BTC = taps("shares", shares_BTC * self.scale)
        # [3] for those who look: the choice in the order of numbers, and what training adds to its loss
        if taps.wants("chosen"):
            taps("chosen", jnp.sort(chosen_BTC, -1))
        if self.balance and taps.wants("balance"):
            taps("balance", self.balance * imbalance(logits_BTX, chosen_BTC))
        # [4] what the chosen experts make of the token, weighed and added up
        each_BTCE = self.experts(x_BTE, chosen_BTC, taps.under("experts"))
        out_BTE = (at_least(each_BTCE, self.reduce) * shares_BTC[..., None]).sum(2)
        out_BTE = taps("mixture", out_BTE.astype(x_BTE.dtype))
        # [5] plus what every token passes, behind a gate
        if self.shared_expert is not None:
            shared_BTE = self.shared_expert(x_BTE, taps.under("shared_expert"))
            if self.shared_expert_gate is not None:
                gate_BT1 = jax.nn.sigmoid(at_least(self.shared_expert_gate(x_BTE), self.reduce))
                shared_BTE = shared_BTE * taps("shared_gate", gate_BT1.astype(x_BTE.dtype))
            out_BTE = out_BTE + shared_BTE
        return taps("output", out_BTE)

    def scores(self, logits_BTX, taps):
        """What experts are chosen by where not by their logits. Source: DeepSeek-AI 2024 (DeepSeek-V3), equation 16."""
        # [1] what each would weigh if all were chosen, and a bias that only chooses
        everyone_BTX = jnp.broadcast_to(jnp.arange(logits_BTX.shape[-1]), logits_BTX.shape)
        scores_BTX = self.weigh(jax.lax.stop_gradient(logits_BTX), everyone_BTX)
        if self.choice_bias is not None:
            scores_BTX = scores_BTX + jax.lax.stop_gradient(self.choice_bias[...])
        scores_BTX = taps("choice", scores_BTX)
        # [2] of all groups those whose two best have the largest sum
        if self.num_groups == 1:
            return scores_BTX
        scores_BTGP = scores_BTX.reshape(*scores_BTX.shape[:-1], self.num_groups, -1)
        sums_BTG = jax.lax.top_k(scores_BTGP, 2)[0].sum(-1)
        chosen_BTKG = largest(sums_BTG, self.top_groups)[..., None] == jnp.arange(self.num_groups)
        out_BTG = ~chosen_BTKG.any(-2)
        return jnp.where(out_BTG[..., None], -jnp.inf, scores_BTGP).reshape(scores_BTX.shape)


def largest(logits_BTX, count):
    """The numbers of the `count` largest logits, the largest first: [B, T, C]."""
    # [1] of equal logits that of the lower number comes first
    logits_BTX = jax.lax.stop_gradient(logits_BTX)
    return jax.lax.top_k(jnp.where(logits_BTX == 0, 0.0, logits_BTX), count)[1]  # it would put -0.0 behind 0.0


def softmax_then_top_k(logits_BTX, chosen_BTC):
    """The chosen experts' part of a softmax over all. Source: Shazeer et al. 2017, section 2; Fedus et al. 2022."""
    # [1] a softmax over all experts, of which those chosen
    return jnp.take_along_axis(jax.nn.softmax(logits_BTX, -1), chosen_BTC, -1)


def top_k_then_softmax(logits_BTX, chosen_BTC):
    """A softmax over the chosen experts alone. Source: Jiang et al. 2024, section 2.1."""
    # [1] the chosen logits, and a softmax over them
    return jax.nn.softmax(jnp.take_along_axis(logits_BTX, chosen_BTC, -1), -1)


def top_k_then_sigmoid(logits_BTX, chosen_BTC):
    """A sigmoid of each chosen logit by itself. Source: DeepSeek-AI 2024 (DeepSeek-V3), equation 15."""
    # [1] the chosen logits, and their sigmoids
    return jax.nn.sigmoid(jnp.take_along_axis(logits_BTX, chosen_BTC, -1))


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
    parts_X = jnp.bincount(chosen_BTC.ravel(), length=count).astype(logits_BTX.dtype) / chosen_BTC.size
    # [2] mean probabilities
    means_X = jax.nn.softmax(logits_BTX, -1).mean((0, 1))
    # [3] their product, added up
    return count * (parts_X * means_X).sum()


class Experts(nnx.Module):
    """down(activation(gate(x)) * up(x)) of X experts, whose matrices lie one on the other: [X, out, in].

    With a limit, gate and up are clamped. Source: OpenAI 2025 (gpt-oss), the experts' SwiGLU.
    """

    def __init__(self, config, entry, execution):
        count, width, embed = entry.num_experts, entry.width(config), config.embed_dim
        kind, self.reduce = dtype(execution.precision.param), dtype(execution.precision.reduce)
        self.activation, self.form = GELUS[execution.gelu][config.activation], EXPERTS[execution.experts]
        self.product = PRODUCTS[execution.decode]
        self.limit, self.offset = entry.limit, entry.offset
        self.gate_proj = nnx.Param(jnp.zeros((count, width, embed), kind))
        self.up_proj = nnx.Param(jnp.zeros((count, width, embed), kind))
        self.down_proj = nnx.Param(jnp.zeros((count, embed, width), kind))
        self.gate_bias = nnx.Param(jnp.zeros((count, width), kind)) if entry.expert_bias else None
        self.up_bias = nnx.Param(jnp.zeros((count, width), kind)) if entry.expert_bias else None
        self.down_bias = nnx.Param(jnp.zeros((count, embed), kind)) if entry.expert_bias else None

    def __call__(self, x_BTE, chosen_BTC, taps=NO_TAPS):
        batch, length, places = chosen_BTC.shape
        # [1] every token to each of the experts that it chose
        form = self.form(chosen_BTC.reshape(-1, places), self)
        rows = form.take(x_BTE.reshape(batch * length, -1))
        # [2] widen twice, clamp both, bend one, multiply
        gate = form.product(rows, self.gate_proj, self.gate_bias)
        up = form.product(rows, self.up_proj, self.up_bias)
        if self.limit is not None:
            gate, up = clamp(gate, -jnp.inf, self.limit), clamp(up, -self.limit, self.limit)
        clamped, gate = gate, self.activation(gate)
        if self.offset:
            hidden = (at_least(gate, self.reduce) * (at_least(up, self.reduce) + self.offset)).astype(gate.dtype)
        else:
            hidden = gate * up
        shown = (("clamped", clamped), ("gate", gate), ("hidden", hidden))
        for name, value in shown[self.limit is None :]:
            if taps.wants(name):
                taps(name, form.put(value).reshape(batch, length, -1))
        # [3] back to the width of the model, in the order of the tokens
        return form.put(form.product(hidden, self.down_proj, self.down_bias)).reshape(batch, length, places, -1)


def clamp(x, low, high):
    """x, or the end of the range beyond which it lies. At the ends themselves gradients pass."""
    # [1] what lies outside is a constant
    # (`jnp.clip` would halve the gradients at the ends)
    return jnp.where(x > high, high, jnp.where(x < low, low, x)).astype(x.dtype)


class LoopExperts:
    """Expert by expert. Shapes are static here, so each multiplies all N tokens, of which those that did not choose it
    bring zeros: X / C times the work that has to be done, and on the way back as much memory.
    """

    def __init__(self, chosen_NC, experts):
        self.linear, self.reduce, self.chosen_NC = experts.product, experts.reduce, chosen_NC

    def take(self, x_NE):
        # [1] a row for every token and each of its experts
        return jnp.broadcast_to(x_NE[:, None], (*self.chosen_NC.shape, x_NE.shape[-1]))

    def product(self, rows, weight_XOI, bias_XO):
        def add(y_NCO, own):
            expert, weight_OI, bias_O = own
            mine_NC1 = (self.chosen_NC == expert)[..., None]
            x_NI = jnp.where(mine_NC1, rows, 0).sum(1)  # of one row at most: no token takes an expert twice
            y_NO = self.linear(x_NI, weight_OI, bias_O, self.reduce).astype(rows.dtype)
            return y_NCO + jnp.where(mine_NC1, y_NO[:, None], 0), None

        # [1] every row times the matrix of its expert, and its bias
        weight_XOI, bias_XO = weight_XOI[...], None if bias_XO is None else bias_XO[...]
        nothing_NCO = jnp.zeros((*self.chosen_NC.shape, weight_XOI.shape[1]), rows.dtype)
        return jax.lax.scan(add, nothing_NCO, (jnp.arange(len(weight_XOI)), weight_XOI, bias_XO))[0]

    def put(self, rows):
        # [1] rows in the order of tokens and places
        return rows


class GroupedExperts:
    """The same by JAX's own product of groups of rows, which are sorted by their experts. A kernel of a GPU or TPU does
    the work that has to be done; on a CPU XLA multiplies all rows by all experts: X times as much.
    """

    def __init__(self, chosen_NC, experts):
        self.reduce, self.places, expert_M = experts.reduce, chosen_NC.shape[1], chosen_NC.ravel()
        self.order_M = jnp.argsort(expert_M, stable=True)
        self.back_M = jnp.argsort(self.order_M)
        self.expert_M = expert_M[self.order_M]
        self.sizes_X = jnp.bincount(expert_M, length=experts.gate_proj[...].shape[0])

    def take(self, x_NE):
        # [1] a row for every token and each of its experts
        return x_NE[self.order_M // self.places]

    def product(self, rows, weight_XOI, bias_XO):
        # [1] every row times the matrix of its expert, and its bias
        dims = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), (0,), (0,))
        wide = jnp.promote_types(rows.dtype, self.reduce)
        y_MO = jax.lax.ragged_dot_general(
            rows, weight_XOI[...].astype(rows.dtype), self.sizes_X, dims, preferred_element_type=wide
        )
        return (y_MO if bias_XO is None else y_MO + bias_XO[...][self.expert_M]).astype(rows.dtype)

    def put(self, rows):
        # [1] rows in the order of tokens and places
        return rows[self.back_M].reshape(-1, self.places, rows.shape[-1])


class GatheredExperts:
    """The same with a copy of its expert's matrix for every row: much memory, so for few tokens, but only the work that
    has to be done.
    """

    def __init__(self, chosen_NC, experts):
        self.reduce, self.chosen_NC = experts.reduce, chosen_NC

    def take(self, x_NE):
        # [1] a row for every token and each of its experts
        return jnp.broadcast_to(x_NE[:, None], (*self.chosen_NC.shape, x_NE.shape[-1]))

    def product(self, rows, weight_XOI, bias_XO):
        # [1] every row times the matrix of its expert, and its bias
        weight_NCOI = weight_XOI[...][self.chosen_NC].astype(rows.dtype)
        y_NCO = matmul("nci,ncoi->nco", rows, weight_NCOI, self.reduce)
        return (y_NCO if bias_XO is None else y_NCO + bias_XO[...][self.chosen_NC]).astype(rows.dtype)

    def put(self, rows):
        # [1] rows in the order of tokens and places
        return rows


EXPERTS = {"loop": LoopExperts, "grouped": GroupedExperts, "gathered": GatheredExperts}
