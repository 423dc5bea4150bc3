"""Mixtures of experts: many gated feed-forward layers, of which every token takes a few.

Sources: Shazeer et al. 2017, section 2 (the top-k of a softmax); Fedus et al. 2022, section 2.2 (balance); Jiang et al.
2024 (a softmax of the top-k); Dai et al. 2024 (shared experts); Qwen3-Next (a gate for the shared expert); DeepSeek-AI
2024 (DeepSeek-V3, section 2.1.2: a bias of the choice, groups); OpenAI 2025 (gpt-oss: biases, a clamped SwiGLU).
"""

from dataclasses import dataclass

from common.accounting.work import ACTIVATION, FEED_FORWARD
from common.errors import unknown
from common.parameter import Parameter
from common.record import flag, number, positive_int, require
from common.variants.gated_mlp import GatedMLP
from common.variants.part import ACTIVATION_COST, FeedForward

ROUTINGS = ("softmax_then_top_k", "top_k_then_softmax", "top_k_then_sigmoid")
COPIES = "weights in compute format"
INT64 = 8


@dataclass(frozen=True)
class MixtureOfExperts(FeedForward):
    """Of `num_experts` gated feed-forward layers, `expert_dim` wide (None: ff_dim), a token takes the `top_k` to which
    the router gives the largest logits; of equal ones those of lower numbers.

    `routing` says what they weigh: their part of a softmax over all experts ("softmax_then_top_k"), or a softmax over
    themselves ("top_k_then_softmax"), or a sigmoid of each logit ("top_k_then_sigmoid"). `normalise` divides these
    weights by their sum, which makes the first two the same; `scale` multiplies them. `router_bias` and `expert_bias`
    give the router's linear map and the three of every expert a bias.

    With `choice_bias` or more than one of `num_groups`, experts are chosen by scores: by what each would weigh if all
    were chosen, plus a number of its own that no gradient reaches (whoever trains moves it, so that experts are used
    evenly), and only in the `top_groups` groups whose two best scores have the largest sum. What the chosen ones weigh
    depends on neither. `limit` clamps what an expert multiplies, gate from above before it is bent, up from both
    sides, to which `offset` is then added: down(activation(gate) * (up + offset)). The experts of gpt-oss have
    limit=7.0, offset=1.0 and the model's activation="quick_gelu". A shared expert is not clamped.

    Every token also passes a shared expert of width `shared_dim` (None: there is none; n side
    by side are one n times as wide), which `shared_gate` multiplies by sigmoid(w x). `balance` is the weight of a term
    that training adds to its loss (`imbalance` in the implementations): over all tokens of a micro-batch, which holds
    no padding.
    """

    kind = "mixture_of_experts"
    module = "MixtureOfExperts"
    aliases = ("moe",)

    num_experts: int = 8
    top_k: int = 2
    expert_dim: int | None = None
    routing: str = "softmax_then_top_k"
    normalise: bool = True
    scale: float = 1.0
    router_bias: bool = False
    choice_bias: bool = False
    num_groups: int = 1
    top_groups: int = 1
    expert_bias: bool = False
    limit: float | None = None
    offset: float = 0.0
    shared_dim: int | None = None
    shared_gate: bool = False
    balance: float = 0.0

    def __post_init__(self):
        positive_int(self, "num_experts", "top_k")
        upto = f"a whole number up to num_experts ({self.num_experts}): a token takes an expert once"
        require(self.top_k <= self.num_experts, self, "top_k", upto)
        for name in ("expert_dim", "shared_dim"):
            if getattr(self, name) is not None:
                positive_int(self, name)
        if self.routing not in ROUTINGS:
            raise unknown("routing of experts", str(self.routing), ROUTINGS)
        flag(self, "normalise", "router_bias", "choice_bias", "expert_bias", "shared_gate")
        number(self, "scale", 1e-9, 1e9, "a number > 0")
        self._check_groups()
        if self.limit is not None:
            number(self, "limit", 1e-9, 1e9, "a number > 0, or none")
        number(self, "offset", -1e6, 1e6, "a number")
        number(self, "balance", 0.0, 1e6, "a number >= 0")
        if self.shared_dim is None:
            require(not self.shared_gate, self, "shared_gate", "false where no shared expert (shared_dim) is")

    def _check_groups(self):
        positive_int(self, "num_groups", "top_groups")
        size, rest = divmod(self.num_experts, self.num_groups)
        even = f"1, or a number that cuts num_experts ({self.num_experts}) into groups of two and more"
        require(self.num_groups == 1 or (rest == 0 and size >= 2), self, "num_groups", even)
        upto = f"a whole number up to num_groups ({self.num_groups})"
        require(self.top_groups <= self.num_groups, self, "top_groups", upto)
        held = self.top_groups * size
        require(self.top_k <= held, self, "top_k", f"a whole number up to {held}, the experts in top_groups groups")

    @property
    def chooses_by_scores(self):
        """Whether experts are chosen by anything but their logits."""
        return self.choice_bias or self.num_groups > 1

    def width(self, config):
        """F of one expert."""
        return self.expert_dim or config.ff_dim

    def shared(self, config):
        """(config, entry) with which the shared expert is built: a gated feed-forward of its own width."""
        return config.with_(ff_dim=self.shared_dim), GatedMLP()

    def unreached(self):
        return self.choice_bias

    def parameters(self, config, path):
        count, width, embed = self.num_experts, self.width(config), config.embed_dim
        # one expert alone always weighs 1, whatever its logit: only the balance of several could read it
        alone = self.top_k == 1 and (self.normalise or self.routing == "top_k_then_softmax") and not self.balance
        alone |= count == 1 and (self.normalise or self.routing != "top_k_then_sigmoid")
        decides = self.top_k < count
        dead = {"dead": alone, "chooses": alone and decides}
        yield Parameter(f"{path}.router.weight", (count, embed), part="router", **dead)
        shift = {"init": "zeros", "decays": False}
        if self.router_bias:
            yield Parameter(f"{path}.router.bias", (count,), part="router", **dead, **shift)
        if self.choice_bias:
            yield Parameter(f"{path}.choice_bias", (count,), dead=True, chooses=decides, part="scale", **shift)
        stds = {"gate": 0.02, "up": 0.02, "down": config.residual_std}
        for name, std in stds.items():
            shape = (embed, width) if name == "down" else (width, embed)
            yield Parameter(f"{path}.experts.{name}_proj", (count, *shape), std=std, part="experts")
            if self.expert_bias:
                yield Parameter(f"{path}.experts.{name}_bias", (count, shape[0]), part="experts", **shift)
        if self.shared_dim is not None:
            settings, entry = self.shared(config)
            yield from entry.parameters(settings, f"{path}.shared_expert")
        if self.shared_gate:
            yield Parameter(f"{path}.shared_expert_gate.weight", (1, embed), part="router")

    def multiplied(self, work):
        """By how many experts' matrices a token is multiplied: in JAX's loop, where shapes are static, by all."""
        everyone = work.wing == "jax" and work.forms.get("experts", "loop") == "loop"
        return self.num_experts if everyone else self.top_k

    def elements(self, config, work):
        """Logits turned round to be sorted; softmax or sigmoid, its sum, its scale; experts, weighed and added up;
        what is shared. Without the term of balance, which only training makes.
        """
        bent = ACTIVATION_COST[config.activation] + 1
        soft = {"softmax_then_top_k": 5 * self.num_experts, "top_k_then_sigmoid": 4 * self.top_k}
        routed = self.num_experts + soft.get(self.routing, 5 * self.top_k) + (3 if self.normalise else 1) * self.top_k
        routed += 2 * self.top_k * config.embed_dim
        if self.router_bias:
            routed += self.num_experts
        if self.chooses_by_scores:  # softmax or sigmoid of all, bias, sums of two, turned round to be sorted
            routed += {"top_k_then_sigmoid": 4}.get(self.routing, 5) * self.num_experts
            routed += self.choice_bias * self.num_experts + (self.num_groups > 1) * 3 * self.num_groups
        inner = self.top_k * self.width(config)
        if self.offset:
            routed += inner
        if self.expert_bias:
            routed += 2 * inner + self.top_k * config.embed_dim
        if self.shared_dim is not None:
            inner += self.shared_dim
            routed += config.embed_dim + (4 + config.embed_dim if self.shared_gate else 0)
        return {ACTIVATION: work.tokens * bent * inner, "routing": work.tokens * routed}

    def kept(self, config, at, path):
        """Of the loop over experts. Rows are pairs of a token and an expert that it chose."""
        tokens, rows, count = at.tokens, at.tokens * self.top_k, self.num_experts
        embed, width, first = config.embed_dim, self.width(config), self.routing == "softmax_then_top_k"
        if at.compute != at.reduce:  # the router multiplies in the precision of reductions
            yield FEED_FORWARD, f"{path} wide x", tokens * embed * at.reduce
            yield COPIES, f"{path} router", count * embed * at.reduce
        elif self.shared_dim is None:
            yield FEED_FORWARD, f"{path} x", tokens * embed * at.compute
        yield FEED_FORWARD, f"{path} chosen", rows * INT64
        yield FEED_FORWARD, f"{path} probabilities", (tokens * count if first else rows) * at.reduce
        if not first:
            yield FEED_FORWARD, f"{path} logits", tokens * count * at.reduce
        if self.normalise:
            yield FEED_FORWARD, f"{path} sums", (tokens + rows if first else tokens) * at.reduce
        yield FEED_FORWARD, f"{path} orders", 2 * rows * INT64
        yield FEED_FORWARD, f"{path} rows", rows * embed * at.compute
        if self.limit is not None:
            for what in ("gate", "up"):
                yield FEED_FORWARD, f"{path} {what} before it is clamped", rows * width * at.compute
        yield from self.bent(config, at, path, rows * width)
        shifted = at.reduce if self.offset else at.compute  # added to, and multiplied, in the precision of reductions
        for what, size in (("gate", shifted), ("up", shifted), ("hidden", at.compute)):
            yield FEED_FORWARD, f"{path} {what}", rows * width * size
        yield FEED_FORWARD, f"{path} each", rows * embed * at.reduce
        yield FEED_FORWARD, f"{path} weights", rows * at.reduce
        if at.copies:
            yield COPIES, f"{path} experts", 3 * count * width * embed * at.compute
        if self.shared_dim is not None:
            settings, entry = self.shared(config)
            yield from entry.kept(settings, at, f"{path}.shared_expert")
        if self.shared_gate:
            yield FEED_FORWARD, f"{path} sigmoid", tokens * at.reduce
            yield FEED_FORWARD, f"{path} shared", tokens * embed * at.compute
            if at.compute != at.reduce:
                yield FEED_FORWARD, f"{path} narrow sigmoid", tokens * at.compute
            if at.copies:
                yield COPIES, f"{path} shared_expert_gate", embed * at.compute
        if self.balance:  # in a training step
            yield FEED_FORWARD, f"{path} balance", (tokens + 1) * count * at.reduce
            yield "loss", "targets of what layers add", INT64
