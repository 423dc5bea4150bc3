"""Grouped-query attention and what today's models add to it, each a setting of its own.

Sources: Ainslie et al. 2023 (groups; one group is multi-query, Shazeer 2019); Beltagy et al. 2020 (window); Xiao et al.
2024 and OpenAI 2025 (sinks); Gemma Team 2024 (soft cap); Dehghani et al. 2023 (query-key norm); Qiu et al. 2025 (gate);
Press et al. 2022 (ALiBi).
"""

from dataclasses import dataclass
from typing import ClassVar

from common.accounting.work import ATTENTION, BOOL, SOFTMAX
from common.errors import UserError, unknown
from common.parameter import Parameter, linear, rms_norm
from common.record import flag, number, positive_int, require
from common.variants.part import SOFTMAX_COST, Attention
from common.variants.rotary import Rotary

QK_NORMS = ("none", "head", "width")


@dataclass(frozen=True)
class GroupedQuery(Attention):
    """`num_kv_heads` keys and values for num_heads queries; heads of `head_dim` (None: embed_dim / num_heads).

    A query sees `window` keys, itself among them (None: all before it), which a ring cache holds. `rotary` turns
    queries and keys; `alibi` lowers scores with the distance; without both the layer knows no positions. `qk_norm`
    normalises queries and keys: every "head" by itself, or the whole "width". `softcap` bends scores into (-softcap,
    softcap). `sinks` adds a learned score to every head's softmax that no value answers. `gate` multiplies contexts by
    sigmoid(W x). `scale` multiplies scores (None: 1 / sqrt(head_dim)). A layer that `shares` makes no keys and values:
    it reads those of the latest layer before it with the same window that makes its own.
    """

    kind = "grouped_query"
    module = "GroupedQueryAttention"
    aliases = (
        "gqa",
        *(f"{word} with num_kv_heads=1" for word in ("mqa", "multi_query")),
        *(f"{word} with a window" for word in ("swa", "sliding_window", "local")),
        *(f"{word} with rotary positions" for word in ("rope", "rotary")),
        "alibi with alibi=true",
        *(f"{word} with sinks=true" for word in ("sinks", "attention_sinks")),
        "gated_attention with gate=true",
    )
    free_order = True
    inputs: ClassVar = Attention.inputs | {"gate_proj": "x"}
    splits: ClassVar = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "gate_proj": 0, "o_proj": 1}
    mapped: ClassVar[bool] = True

    num_kv_heads: int = 1
    head_dim: int | None = None
    window: int | None = None
    rotary: Rotary | None = None
    alibi: bool = False
    qk_norm: str = "none"
    softcap: float | None = None
    sinks: bool = False
    gate: bool = False
    scale: float | None = None
    out_bias: bool = False
    shares: bool = False

    def __post_init__(self):
        positive_int(self, "num_kv_heads")
        for name in ("head_dim", "window"):
            if getattr(self, name) is not None:
                positive_int(self, name)
        if isinstance(self.rotary, dict):
            object.__setattr__(self, "rotary", Rotary.from_dict(self.rotary))
        require(self.rotary is None or isinstance(self.rotary, Rotary), self, "rotary", "settings of Rotary, or none")
        flag(self, "alibi", "sinks", "gate", "out_bias", "shares")
        if self.qk_norm not in QK_NORMS:
            raise unknown("query-key norm", str(self.qk_norm), QK_NORMS)
        for name in ("softcap", "scale"):
            if getattr(self, name) is not None:
                number(self, name, 1e-9, 1e9, "a number > 0, or none")

    def check(self, config):
        heads, groups, dim = self.heads(config)
        require(
            heads % groups == 0, self, "num_kv_heads", f"a divisor of num_heads ({heads}): heads share keys equally"
        )
        if self.rotary is not None and dim % 2:
            raise UserError(f"Rotary positions turn pairs of numbers, but heads of size {dim} are odd.")
        if self.shares:
            self._check_source(config)

    def _check_source(self, config):
        """Every layer that shares must come after one whose keys it can read; the first round of the pattern tells."""
        for layer in range(min(config.num_layers, len(config.attention))):
            if config.attention_of(layer) != self:
                continue
            maker = self.maker(config, layer)
            if maker is None:
                raise UserError(
                    f"A layer shares keys and values of {'all positions' if self.window is None else 'its window'}, but"
                    f" no layer before it makes them{'' if self.window is None else f' for a window of {self.window}'}."
                )
            if maker.heads(config) != self.heads(config):
                raise UserError("A layer that shares keys and values must have the heads of the layer that makes them.")
            if maker.rotary != self.rotary:
                raise UserError(
                    "A layer that shares keys and values must have the rotary positions of the layer that makes them,"
                    " for its queries must turn as their keys do."
                )

    def maker(self, config, layer):
        """The latest layer before that one whose keys it can read if it shares, or None."""
        before = map(config.attention_of, reversed(range(layer)))
        makers = (one for one in before if isinstance(one, GroupedQuery) and not one.shares)
        return next((one for one in makers if one.window == self.window), None)

    def readers(self, config, layer):
        """The layers that attend to the keys that that layer makes: itself, and those behind it that share them."""
        yield self
        for later in range(layer + 1, config.num_layers):
            one = config.attention_of(later)
            if isinstance(one, GroupedQuery) and one.window == self.window:
                if not one.shares:
                    return
                yield one

    def heads(self, config):
        return config.num_heads, self.num_kv_heads, self.head_dim or config.head_dim

    def cached_numbers(self, config, batch, capacity):
        """Keys and values, unless another layer has them."""
        return 0 if self.shares else super().cached_numbers(config, batch, capacity)

    def values(self, config):
        return "v_proj" if self.num_kv_heads == config.num_heads and not self.hands_on(config) else None

    def hands_on(self, config):
        return any(isinstance(one, GroupedQuery) and one.shares for one in config.attention)

    def cut(self, config):
        """Heads; layers whose heads need to know their number, or each other's, are computed whole."""
        heads, groups, _ = self.heads(config)
        alike = not (self.sinks or self.alibi or self.whole or self.hands_on(config))
        return {"heads": heads, "heads of keys": groups} if alike else {}

    @property
    def whole(self):
        """Whether queries and keys are normalised over their whole width, not head by head."""
        return self.qk_norm == "width"

    def normed(self, config, name):
        """The width of "q_norm" or "k_norm"."""
        heads, groups, dim = self.heads(config)
        return dim * {"q_norm": heads, "k_norm": groups}[name] if self.whole else dim

    def rows_of(self, config, name):
        heads, groups, _ = self.heads(config)
        return 1 if self.whole else {"q_norm": heads, "k_norm": groups}[name]

    def parameters(self, config, path):
        heads, groups, dim = self.heads(config)
        yield from linear(f"{path}.q_proj", heads * dim, config.embed_dim, bias=config.qkv_bias)
        if not self.shares:
            bias = {"bias": config.qkv_bias}
            # a key's bias adds the same to all scores of a query, which softmax ignores unless something else reads
            # them: here, or where the keys are shared (whose queries' norm does not change that)
            read = self.rotary is not None or self.qk_norm != "none"
            read = read or any(one.softcap is not None or one.sinks for one in self.readers(config, layer_of(path)))
            yield from linear(f"{path}.k_proj", groups * dim, config.embed_dim, dead_bias=not read, **bias)
            yield from linear(f"{path}.v_proj", groups * dim, config.embed_dim, **bias)
        if self.qk_norm != "none":
            for name in ("q_norm",) if self.shares else ("q_norm", "k_norm"):
                yield from rms_norm(f"{path}.{name}", self.normed(config, name))
        if self.sinks:
            yield Parameter(f"{path}.sinks", (heads,), init="zeros", decays=False, part="scale")
        if self.gate:
            yield from linear(f"{path}.gate_proj", heads * dim, config.embed_dim, bias=config.qkv_bias)
        yield from linear(f"{path}.o_proj", config.embed_dim, heads * dim, bias=self.out_bias, std=config.residual_std)

    def elements(self, config, work):
        """Softmax, in which a sink takes part; 3 for a capped score, 1 for one lowered by distance; 3 for every number
        that turns; 5 for a gate."""
        heads, groups, dim = self.heads(config)
        pairs = work.pairs(self.window) * heads
        cost = SOFTMAX_COST + (3 if self.softcap is not None else 0) + (1 if self.alibi else 0)
        sinks = (SOFTMAX_COST - 1) * work.tokens * heads if self.sinks else 0  # no product of q and k, so no scale
        found = {SOFTMAX: cost * pairs + sinks}
        turning = heads if self.shares else heads + groups
        turned = 0 if self.rotary is None else 3 * work.tokens * turning * self.rotary.width(dim)
        gated = 5 * work.tokens * heads * dim if self.gate else 0
        return found | ({"positions and gates": turned + gated} if turned + gated else {})

    def kept(self, config, at, path):
        """q and k as they are multiplied, v, bent scores, weights with the sinks', angles (of q and of k), the gate."""
        if at.kernel != "plain":
            raise unknown("attention kernel", at.kernel, ("plain",))
        heads, _, dim = self.heads(config)
        numbers, scores = at.tokens * dim, at.batch * heads * at.length * at.length
        keys, values = self._own(config, at, path)
        yield ATTENTION, f"{path} v", numbers * values * at.compute
        yield ATTENTION, f"{path} q, k", numbers * (heads + keys) * at.reduce
        yield ATTENTION, f"{path} mask", (at.length * at.length + at.length) * BOOL
        yield ATTENTION, f"{path} softmax", (scores + (heads * at.tokens if self.sinks else 0)) * at.reduce
        if self.softcap is not None:
            yield ATTENTION, f"{path} bent scores", scores * at.reduce
        if (at.dropout and config.dropout_attn) or at.compute != at.reduce:
            yield ATTENTION, f"{path} weights", scores * at.compute
        yield from at.dropped(f"{path} weights", config.dropout_attn, scores)
        if self.rotary is not None:
            turning = 1 if self.shares else 2
            yield ATTENTION, f"{path} angles", turning * at.length * self.rotary.width(dim) * at.reduce
        if self.gate:
            yield ATTENTION, f"{path} gate", numbers * heads * at.reduce
            yield ATTENTION, f"{path} joined", numbers * heads * at.compute
            if at.compute != at.reduce:
                yield ATTENTION, f"{path} rounded gate", numbers * heads * at.compute

    def _own(self, config, at, path):
        """Heads of keys and of values that it keeps itself. A layer that shares multiplies what its maker kept, unless
        heads that lie between tokens must be put together first, or keys be made wider."""
        _, groups, _ = self.heads(config)
        if not self.shares:
            return groups, groups
        maker = self.maker(config, layer_of(path))
        copied = at.batch > 1 and groups > 1 and at.length > 1
        fresh = at.compute != at.reduce or (copied and maker.rotary is None)  # what has turned is in order
        return (groups if fresh else 0), (groups if copied else 0)


def layer_of(path):
    """The number of the layer that a path such as "model.layers.3.self_attn" lies in."""
    return int(path.split(".")[-2])
