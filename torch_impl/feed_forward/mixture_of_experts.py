"""Mixtures of experts (Shazeer et al. 2017), with what today's models add to them; see common/variants."""

import torch
from torch import nn
from torch.nn import functional as F

from common.errors import UserError
from common.taps import NO_TAPS

from ..layers import GELUS, PRODUCTS, Linear, at_least, matmul
from ..precision import dtype
from .gated_mlp import GatedMLP


class MixtureOfExperts(nn.Module):
    """The weighted sum of what the C experts make of a token that the router chooses for it, of X: E -> E.

    Letters beside the legend's: X experts, C those of a token, G groups and P experts of one, N tokens (B T), M pairs
    of tokens and their experts (N C), I and O what goes in and comes out.
    """

    summed = None  # in a layout: adds up counts over the processes

    def __init__(self, config, entry, execution):
        super().__init__()
        self.top_k, self.normalise, self.scale, self.balance = entry.top_k, entry.normalise, entry.scale, entry.balance
        self.weigh, self.reduce = ROUTINGS[entry.routing], dtype(execution.precision.reduce)
        self.num_groups, self.top_groups, self.by_scores = entry.num_groups, entry.top_groups, entry.chooses_by_scores
        kind = dtype(execution.precision.param)
        self.router = Linear(config.embed_dim, entry.num_experts, entry.router_bias, execution)
        self.choice_bias = nn.Parameter(torch.empty(entry.num_experts, dtype=kind)) if entry.choice_bias else None
        self.experts = Experts(config, entry, execution)
        self.shared_expert = None if entry.shared_dim is None else GatedMLP(*entry.shared(config), execution)
        self.shared_expert_gate = Linear(config.embed_dim, 1, False, execution) if entry.shared_gate else None

    def forward(self, x_BTE, taps=NO_TAPS):
        # [1] the router: a logit for every expert, in the precision of reductions
        weight_XE = self.router.weight.to(x_BTE.dtype)
        logits_BTX = matmul("bte,xe->btx", x_BTE, weight_XE, self.reduce)
        if self.router.bias is not None:
            logits_BTX = logits_BTX + self.router.bias
        logits_BTX = taps("router", logits_BTX)
        # [2] the experts of the largest logits or scores, and what they weigh
        scores_BTX = self.scores(logits_BTX, taps) if self.by_scores else logits_BTX
        chosen_BTC = largest(scores_BTX, self.top_k)
        shares_BTC = self.weigh(logits_BTX, chosen_BTC)
        if self.normalise:
            shares_BTC = shares_BTC / shares_BTC.sum(-1, keepdim=True)
        shares_BTC = taps("shares", shares_BTC * self.scale)
        # [3] for those who look: the choice in the order of numbers, and what training adds to its loss
        if taps.wants("chosen"):
            taps("chosen", chosen_BTC.sort(-1).values)
        if self.balance and taps.wants("balance"):
            taps("balance", self.balance * imbalance(logits_BTX, chosen_BTC, self.summed))
        # [4] what the chosen experts make of the token, weighed and added up
        each_BTCE = self.experts(x_BTE, chosen_BTC, taps.under("experts"))
        out_BTE = (at_least(each_BTCE, self.reduce) * shares_BTC[..., None]).sum(2)
        out_BTE = taps("mixture", out_BTE.to(x_BTE.dtype))
        # [5] plus what every token passes, behind a gate
        if self.shared_expert is not None:
            shared_BTE = self.shared_expert(x_BTE, taps.under("shared_expert"))
            if self.shared_expert_gate is not None:
                gate_BT1 = torch.sigmoid(at_least(self.shared_expert_gate(x_BTE), self.reduce))
                shared_BTE = shared_BTE * taps("shared_gate", gate_BT1.to(x_BTE.dtype))
            out_BTE = out_BTE + shared_BTE
        return taps("output", out_BTE)

    def scores(self, logits_BTX, taps):
        """What experts are chosen by where not by their logits. Source: DeepSeek-AI 2024 (DeepSeek-V3), equation 16."""
        # [1] what each would weigh if all were chosen, and a bias that only chooses
        everyone_BTX = torch.arange(logits_BTX.shape[-1], device=logits_BTX.device).expand_as(logits_BTX)
        scores_BTX = self.weigh(logits_BTX.detach(), everyone_BTX)
        if self.choice_bias is not None:
            scores_BTX = scores_BTX + self.choice_bias.detach()
        scores_BTX = taps("choice", scores_BTX)
        # [2] of all groups those whose two best have the largest sum
        if self.num_groups == 1:
            return scores_BTX
        scores_BTGP = scores_BTX.unflatten(-1, (self.num_groups, -1))
        sums_BTG = scores_BTGP.topk(2).values.sum(-1)
        out_BTG = torch.ones_like(sums_BTG, dtype=torch.bool).scatter(-1, largest(sums_BTG, self.top_groups), False)
        return scores_BTGP.masked_fill(out_BTG[..., None], -torch.inf).flatten(-2)


def largest(logits_BTX, count):
    """The numbers of the `count` largest logits, the largest first: [B, T, C]."""
    # [1] of equal logits that of the lower number comes first
    order_BTX = logits_BTX.detach().sort(dim=-1, descending=True, stable=True).indices  # topk promises no order
    return order_BTX[..., :count].clone()  # kept for the way back, without the rest


def softmax_then_top_k(logits_BTX, chosen_BTC):
    """The chosen experts' part of a softmax over all. Source: Shazeer et al. 2017, section 2; Fedus et al. 2022."""
    # [1] a softmax over all experts, of which those chosen
    return torch.softmax(logits_BTX, -1).gather(-1, chosen_BTC)


def top_k_then_softmax(logits_BTX, chosen_BTC):
    """A softmax over the chosen experts alone. Source: Jiang et al. 2024, section 2.1."""
    # [1] the chosen logits, and a softmax over them
    return torch.softmax(logits_BTX.gather(-1, chosen_BTC), -1)


def top_k_then_sigmoid(logits_BTX, chosen_BTC):
    """A sigmoid of each chosen logit by itself. Source: DeepSeek-AI 2024 (DeepSeek-V3), equation 15."""
    # [1] the chosen logits, and their sigmoids
    return torch.sigmoid(logits_BTX.gather(-1, chosen_BTC))


ROUTINGS = {
    "softmax_then_top_k": softmax_then_top_k,
    "top_k_then_softmax": top_k_then_softmax,
    "top_k_then_sigmoid": top_k_then_sigmoid,
}


def imbalance(logits_BTX, chosen_BTC, summed=None):
    """X times the sum over all experts of (its part of all choices) (its mean probability): 1 if either is the same for
    all, more where the router prefers some. No gradient flows through the first, which counts.

    Source: Fedus et al. 2022, equations 4 to 6, for one choice a token. With C, others multiply it by C, for they count
    tokens, not choices. In a layout `summed` adds up the counts of all processes, which have equally many rows: the
    mean of their terms is the term of all rows.
    """
    # [1] parts of all choices
    count = logits_BTX.shape[-1]
    counts_X = torch.bincount(chosen_BTC.flatten(), minlength=count)
    counts_X = counts_X if summed is None else summed(counts_X)
    parts_X = counts_X.to(logits_BTX.dtype) / counts_X.sum()
    # [2] mean probabilities
    means_X = torch.softmax(logits_BTX, -1).mean((0, 1))
    # [3] their product, added up
    return count * (parts_X * means_X).sum()


class Experts(nn.Module):
    """down(activation(gate(x)) * up(x)) of X experts, whose matrices lie one on the other: [X, out, in].

    With a limit, gate and up are clamped. Source: OpenAI 2025 (gpt-oss), the experts' SwiGLU.
    """

    def __init__(self, config, entry, execution):
        super().__init__()
        count, width, embed = entry.num_experts, entry.width(config), config.embed_dim
        if execution.experts == "grouped":
            _check_grouped((embed, width), execution)
        kind = dtype(execution.precision.param)
        self.activation, self.form = GELUS[execution.gelu][config.activation], EXPERTS[execution.experts]
        self.product = PRODUCTS[execution.products]
        self.limit, self.offset, self.reduce = entry.limit, entry.offset, dtype(execution.precision.reduce)
        self.gate_proj = nn.Parameter(torch.empty(count, width, embed, dtype=kind))
        self.up_proj = nn.Parameter(torch.empty(count, width, embed, dtype=kind))
        self.down_proj = nn.Parameter(torch.empty(count, embed, width, dtype=kind))
        self.gate_bias = nn.Parameter(torch.empty(count, width, dtype=kind)) if entry.expert_bias else None
        self.up_bias = nn.Parameter(torch.empty(count, width, dtype=kind)) if entry.expert_bias else None
        self.down_bias = nn.Parameter(torch.empty(count, embed, dtype=kind)) if entry.expert_bias else None
        if execution.compile and execution.experts == "loop":  # how many rows an expert has changes from call to call
            self.forward = torch.compiler.disable(self.forward)

    def forward(self, x_BTE, chosen_BTC, taps=NO_TAPS):
        tokens = chosen_BTC.shape[:2]
        # [1] every token to each of the experts that it chose
        form = self.form(chosen_BTC.flatten(0, 1), self)
        rows = form.take(x_BTE.flatten(0, 1))
        # [2] widen twice, clamp both, bend one, multiply
        gate = form.product(rows, self.gate_proj, self.gate_bias)
        up = form.product(rows, self.up_proj, self.up_bias)
        if self.limit is not None:
            gate, up = clamp(gate, -torch.inf, self.limit), clamp(up, -self.limit, self.limit)
        clamped, gate = gate, self.activation(gate)
        if self.offset:
            hidden = (at_least(gate, self.reduce) * (at_least(up, self.reduce) + self.offset)).to(gate.dtype)
        else:
            hidden = gate * up
        shown = (("clamped", clamped), ("gate", gate), ("hidden", hidden))
        for name, value in shown[self.limit is None :]:
            if taps.wants(name):
                taps(name, form.put(value).reshape(*tokens, -1))
        # [3] back to the width of the model, in the order of the tokens
        return form.put(form.product(hidden, self.down_proj, self.down_bias)).unflatten(0, tokens)


def clamp(x, low, high):
    """x, or the end of the range beyond which it lies. At the ends themselves gradients pass."""
    # [1] what lies outside is a constant
    return x.clamp(low, high)


class LoopExperts:
    """Expert by expert: each multiplies what the tokens that chose it bring, so rows are sorted by their experts.

    How many rows an expert has depends on all tokens, and so does their rounding, in the last bit.
    """

    def __init__(self, chosen_NC, experts):
        self.linear, self.places, expert_M = experts.product, chosen_NC.shape[1], chosen_NC.flatten()
        self.order_M = expert_M.argsort(stable=True)
        self.back_M = self.order_M.argsort()
        self.expert_M = expert_M[self.order_M]
        numbers_X = torch.arange(len(experts.gate_proj), device=expert_M.device)
        self.ends_X = torch.searchsorted(self.expert_M, numbers_X, right=True, out_int32=True)

    def take(self, x_NE):
        # [1] a row for every token and each of its experts
        return x_NE.index_select(0, self.order_M // self.places)

    def product(self, rows, weight_XOI, bias_XO):
        # [1] every row times the matrix of its expert, and its bias
        sizes = self.ends_X.diff(prepend=self.ends_X.new_zeros(1)).tolist()
        biases = len(sizes) * [None] if bias_XO is None else bias_XO.unbind()
        own = zip(rows.split(sizes), weight_XOI.to(rows.dtype).unbind(), biases, strict=True)
        return torch.cat([self.linear(x_RI, weight_OI, bias_O) for x_RI, weight_OI, bias_O in own if len(x_RI)])

    def put(self, rows):
        # [1] rows in the order of tokens and places
        return rows.index_select(0, self.back_M).unflatten(0, (-1, self.places))


class GroupedExperts(LoopExperts):
    """The same by PyTorch's own product of groups of rows. On a CPU that is a loop too, inside of it."""

    def product(self, rows, weight_XOI, bias_XO):
        # [1] every row times the matrix of its expert, and its bias
        y_MO = F.grouped_mm(rows, weight_XOI.to(rows.dtype).transpose(1, 2), offs=self.ends_X)
        return y_MO if bias_XO is None else y_MO + bias_XO.to(rows.dtype)[self.expert_M]


class GatheredExperts:
    """The same with a copy of its expert's matrix for every row: much memory, so for few tokens, but shapes that do not
    depend on the choice, so that a step of decoding can be compiled as a whole.
    """

    def __init__(self, chosen_NC, experts):
        self.chosen_NC = chosen_NC

    def take(self, x_NE):
        # [1] a row for every token and each of its experts
        return x_NE[:, None].expand(-1, self.chosen_NC.shape[1], -1)

    def product(self, rows, weight_XOI, bias_XO):
        # [1] every row times the matrix of its expert, and its bias
        y_NCO = torch.einsum("nci,ncoi->nco", rows, weight_XOI[self.chosen_NC].to(rows.dtype))
        return y_NCO if bias_XO is None else y_NCO + bias_XO.to(rows.dtype)[self.chosen_NC]

    def put(self, rows):
        # [1] rows in the order of tokens and places
        return rows


EXPERTS = {"loop": LoopExperts, "grouped": GroupedExperts, "gathered": GatheredExperts}


def _check_grouped(widths, execution):
    """Refuse what PyTorch's product of groups does not compute, and say what does."""
    kind, device = dtype(execution.precision.compute), execution.device
    if kind == torch.float64:
        told = "multiplies float32 and bfloat16, on a CPU or a GPU, not float64"
    elif any(width * kind.itemsize % 16 for width in widths):
        told = f"takes widths that {16 // kind.itemsize} divides in {execution.dtype}, not {widths[0]} and {widths[1]}"
    elif device.startswith("cuda") and torch.cuda.get_device_capability(device) < (8, 0):
        told = f"runs on a CPU and on GPUs of compute capability 8.0 and more, not on {device!r}"
    elif execution.compile and kind != torch.bfloat16:
        told = f"is compiled in bfloat16 only, not in {execution.dtype}"
    else:
        return
    raise UserError(f"PyTorch's grouped product of experts {told}: use experts='loop'.")
