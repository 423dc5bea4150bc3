"""Multi-head latent attention: keys and values of all heads are made from one short vector a token, which is cached.

Source: DeepSeek-AI 2024 (DeepSeek-V2), section 2.1. Without norms and rotary part it is the simple form of Raschka's
*Build a Large Language Model (From Scratch)*, bonus material of chapter 4.
"""

from dataclasses import dataclass
from typing import ClassVar

from common.accounting.work import ATTENTION, BOOL, PROJECTIONS, SCORES, SOFTMAX
from common.errors import unknown
from common.parameter import linear, rms_norm
from common.record import flag, number, positive_int, require
from common.variants.part import SOFTMAX_COST, Attention
from common.variants.rotary import Rotary


@dataclass(frozen=True)
class Latent(Attention):
    """A latent of `rank` numbers (None: max(16, embed_dim // 8)) stands for the keys and values of all heads.

    Queries come from a latent of their own of `query_rank` numbers, or straight from x (None). A head's queries and
    keys have `head_dim` numbers without positions (None: embed_dim / num_heads) and, with `rotary`, `rotary_dim` more
    that turn (None: half as many, even); all heads share the key that turns. Values have `value_dim` (None: head_dim).
    `norm` puts an RMS norm on either latent. `scale` multiplies scores (None: 1 / sqrt(head_dim + rotary_dim));
    DeepSeek's YaRN has (0.1 m ln factor + 1)^2 times that. What reads x has biases with the model's qkv_bias. What
    reads latents has none: softmax would ignore a key's, and a value's is as good as the output's (`out_bias`).
    """

    kind = "latent"
    module = "LatentAttention"
    aliases = ("mla", "multi_head_latent")
    inputs: ClassVar = {
        **dict.fromkeys(("q_proj", "q_down_proj", "kv_down_proj", "k_rotary_proj"), "x"),
        **dict.fromkeys(("k_up_proj", "v_up_proj"), "latent"),
    }
    decodes: ClassVar = {"latent": "absorbed"}
    bare: ClassVar = {**Attention.bare, "latent": {"absorbed": ("k_up_proj", "v_up_proj")}}

    rank: int | None = None
    query_rank: int | None = None
    head_dim: int | None = None
    value_dim: int | None = None
    rotary: Rotary | None = None
    rotary_dim: int | None = None
    norm: bool = True
    scale: float | None = None
    out_bias: bool = False

    def __post_init__(self):
        for name in ("rank", "query_rank", "head_dim", "value_dim", "rotary_dim"):
            if getattr(self, name) is not None:
                positive_int(self, name)
        if isinstance(self.rotary, dict):
            object.__setattr__(self, "rotary", Rotary.from_dict(self.rotary))
        require(self.rotary is None or isinstance(self.rotary, Rotary), self, "rotary", "settings of Rotary, or none")
        if self.rotary_dim is not None:
            require(self.rotary is not None, self, "rotary_dim", "none, for nothing turns without rotary")
            require(self.rotary_dim % 2 == 0, self, "rotary_dim", "an even number, for pairs turn")
        flag(self, "norm", "out_bias")
        if self.scale is not None:
            number(self, "scale", 1e-9, 1e9, "a number > 0, or none")

    def sizes(self, config):
        """(N, P, U): a head's numbers that stay and that turn, of queries and keys, and those of its values."""
        plain = self.head_dim or config.head_dim
        turned = 0 if self.rotary is None else self.rotary_dim or max(2, plain // 4 * 2)
        return plain, turned, self.value_dim or plain

    def rank_of(self, config):
        """R, the size of the latent."""
        return self.rank or max(16, config.embed_dim // 8)

    def width(self, config):
        """W = R + P numbers that a token leaves in the cache: the latent, and behind it the key that turned."""
        return self.rank_of(config) + self.sizes(config)[1]

    def heads(self, config):
        plain, turned, _ = self.sizes(config)
        return config.num_heads, config.num_heads, plain + turned

    def values(self, config):
        return "v_up_proj"

    def cached_numbers(self, config, batch, capacity):
        return batch * self.held(capacity) * self.width(config)

    def parameters(self, config, path):
        heads, (plain, turned, values), rank = config.num_heads, self.sizes(config), self.rank_of(config)
        embed, bias, size = config.embed_dim, config.qkv_bias, heads * (plain + turned)
        if self.query_rank is None:
            yield from linear(f"{path}.q_proj", size, embed, bias=bias)
        else:
            yield from linear(f"{path}.q_down_proj", self.query_rank, embed, bias=bias)
            if self.norm:
                yield from rms_norm(f"{path}.q_norm", self.query_rank)
            yield from linear(f"{path}.q_up_proj", size, self.query_rank, bias=False)
        yield from linear(f"{path}.kv_down_proj", rank, embed, bias=bias)
        if self.norm:
            yield from rms_norm(f"{path}.kv_norm", rank)
        if turned:
            yield from linear(f"{path}.k_rotary_proj", turned, embed, bias=bias)
        yield from linear(f"{path}.k_up_proj", heads * plain, rank, bias=False)
        yield from linear(f"{path}.v_up_proj", heads * values, rank, bias=False)
        yield from linear(f"{path}.o_proj", embed, heads * values, bias=self.out_bias, std=config.residual_std)

    def products(self, config, work):
        """q k^T and weights v of every pair and head.

        Expanded, keys and values are made of all latents that are read, not of the new ones alone. Absorbed, a pair
        meets in the latent, and queries and contexts are multiplied by what makes keys and values: at the same cost as
        the new latents, which is that of the linear maps.
        """
        heads, (plain, turned, values), rank = config.num_heads, self.sizes(config), self.rank_of(config)
        pairs = work.pairs() * heads
        if work.forms.get("latent") == "absorbed":
            return {SCORES: 2 * pairs * (2 * rank + turned)}
        read = work.batch * (work.past + work.length if work.causal else work.slots)
        again = 2 * (read - work.tokens) * rank * heads * (plain + values)
        return {PROJECTIONS: again, SCORES: 2 * pairs * (plain + turned + values)}

    def elements(self, config, work):
        """Softmax; 3 for every number that turns: of all heads' queries, and of the one key."""
        _, turned, _ = self.sizes(config)
        found = {SOFTMAX: SOFTMAX_COST * work.pairs() * config.num_heads}
        if turned:
            found["positions and gates"] = 3 * work.tokens * (config.num_heads + 1) * self.rotary.width(turned)
        return found

    def kept(self, config, at, path):
        """q and k as they are multiplied, v, the weights; angles (of q and of k), and the key behind the latent, which
        the maps of k and v do not read (their input is one buffer, "latent")."""
        if at.kernel != "plain":
            raise unknown("attention kernel", at.kernel, ("plain",))
        heads, (plain, turned, values) = config.num_heads, self.sizes(config)
        scores = at.batch * heads * at.length * at.length
        yield ATTENTION, f"{path} v", at.tokens * heads * values * at.compute
        yield ATTENTION, f"{path} q, k", 2 * at.tokens * heads * (plain + turned) * at.reduce
        yield ATTENTION, f"{path} mask", (at.length * at.length + at.length) * BOOL
        yield ATTENTION, f"{path} softmax", scores * at.reduce
        if (at.dropout and config.dropout_attn) or at.compute != at.reduce:
            yield ATTENTION, f"{path} weights", scores * at.compute
        yield from at.dropped(f"{path} weights", config.dropout_attn, scores)
        if turned:
            yield ATTENTION, f"{path} angles", 2 * at.length * self.rotary.width(turned) * at.reduce
            yield ATTENTION, f"{path} key behind the latent", at.tokens * turned * at.compute
