"""Sparse attention: an indexer chooses the keys that a query attends to, and a decoding step reads no others.

Source: DeepSeek-AI 2025 (DeepSeek-V3.2-Exp), section 2.1; here on grouped-query heads in place of latent ones.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from common.accounting.work import ATTENTION, BOOL, PROJECTIONS, SCORES, Component
from common.errors import UserError, unknown
from common.parameter import layer_norm, linear
from common.record import flag, number, positive_int, require
from common.variants.grouped_query import GroupedQuery
from common.variants.part import SCORED
from common.variants.rotary import Rotary

INDEXER, INDEX_SCORES = "indexer", "index scores"  # components of FLOPs: its linear maps; scores and their sum
TAUGHT, TAUGHT_SCORES = "taught indexer", "taught index scores"  # the same where training goes back through them
INT64 = 8
WEIGHTINGS = ("linear", "softmax")


@dataclass(frozen=True)
class Sparse(GroupedQuery):
    """Grouped-query attention to the `top_k` visible keys with the largest index scores, of equal ones to the first.

    The indexer has `index_heads` query heads of `index_dim` and one key head, normalised if `index_norm`; they turn by
    `index_rotary`. I_ts = sum over heads of w_tj ReLU(q_tj . k_s / sqrt(index_dim)). The weights w come from x, as they
    are, over sqrt(index_heads) ("linear"), or through a softmax over the heads. The cache holds all tokens, so there is
    no window; and such a layer makes keys and values of its own, all of which layers that share them read.

    `index_loss` is the weight of a term that training adds to its loss: the mean, over all queries of a micro-batch, of
    the KL divergence of the indexer from attention (`indexer_loss` in the implementations). Of it only the indexer
    learns, and it learns of nothing else: with 0 it stays as it is.
    """

    kind = "sparse"
    module = "SparseAttention"
    aliases = ("dsa", "sparse_attention", "lightning_indexer")
    free_order, chooses = False, True
    components = (
        Component(PROJECTIONS),
        Component(INDEXER, backward=0),
        Component(TAUGHT, backward=1),
        Component(INDEX_SCORES, backward=0, again={"checkpointed": 2}),
        Component(TAUGHT_SCORES, again={"checkpointed": 2}),
        SCORED,
    )
    inputs: ClassVar = GroupedQuery.inputs | dict.fromkeys(("index_queries", "index_keys", "index_weights"), "x")
    window: ClassVar[None] = None
    shares: ClassVar[bool] = False
    mapped: ClassVar[bool] = False

    top_k: int = 64
    index_heads: int = 4
    index_dim: int = 64
    index_rotary: Rotary | None = None
    index_norm: bool = True
    weighting: str = "linear"
    index_loss: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        positive_int(self, "top_k", "index_heads", "index_dim")
        if isinstance(self.index_rotary, dict):
            object.__setattr__(self, "index_rotary", Rotary.from_dict(self.index_rotary))
        good = self.index_rotary is None or isinstance(self.index_rotary, Rotary)
        require(good, self, "index_rotary", "settings of Rotary, or none")
        flag(self, "index_norm")
        number(self, "index_loss", 0.0, 1e6, "a number >= 0")
        if self.weighting not in WEIGHTINGS:
            raise unknown("weighting of index heads", str(self.weighting), WEIGHTINGS)

    def cut(self, config):
        """Nothing: an indexer chooses for all heads."""
        return {}

    def check(self, config):
        super().check(config)
        if self.index_rotary is not None and self.index_dim % 2:
            raise UserError(
                f"Rotary positions turn pairs of numbers, but index heads of size {self.index_dim} are odd."
            )

    def parameters(self, config, path):
        yield from super().parameters(config, path)
        # of the model's loss no gradient reaches the indexer: without a loss of its own, decay would only wear it away
        for parameter in self._indexer(config, path):
            yield replace(parameter, decays=parameter.decays and self.index_loss > 0)

    def _indexer(self, config, path):
        yield from linear(f"{path}.index_queries", self.index_heads * self.index_dim, config.embed_dim, bias=False)
        yield from linear(f"{path}.index_keys", self.index_dim, config.embed_dim, bias=False)
        if self.index_norm:
            yield from layer_norm(f"{path}.index_norm", self.index_dim)
        yield from linear(f"{path}.index_weights", self.index_heads, config.embed_dim, bias=False)

    def quiet(self, name):
        """Whether nothing flows back through that linear map or norm: what the indexer computes is only chosen by."""
        return name.startswith("index_") and not self.index_loss

    def unreached(self):
        return not self.index_loss

    def shut(self, name):
        """Whether no gradient leaves that linear map by its input: an indexer's changes nothing before it."""
        return name.startswith("index_")

    def component(self, name):
        if not self.shut(name):
            return super().component(name)
        return TAUGHT if self.index_loss else INDEXER

    def cached_numbers(self, config, batch, capacity):
        """Keys and values, and the indexer's keys."""
        return super().cached_numbers(config, batch, capacity) + batch * capacity * self.index_dim

    def read_numbers(self, config, batch, slots):
        """Numbers of its cache that a decoding step reads: all keys of the indexer, the chosen keys and values."""
        return super().cached_numbers(config, batch, min(slots, self.top_k)) + batch * slots * self.index_dim

    def attended(self, work):
        """(query, key) pairs that attention multiplies: a single query takes its chosen keys out of the cache, several
        hide the others. With `causal` the chosen ones in either case."""
        picks = work.causal or (work.cached and work.length == 1)
        return work.pairs(self.top_k if picks else None)

    def products(self, config, work):
        """q k^T and weights v of the pairs that are attended to; index scores and their sum over heads of all pairs."""
        heads, _, dim = self.heads(config)
        return {
            SCORES: 2 * 2 * self.attended(work) * heads * dim,
            TAUGHT_SCORES if self.index_loss else INDEX_SCORES: 2
            * work.pairs()
            * self.index_heads
            * (self.index_dim + 1),
        }

    def elements(self, config, work):
        """As of grouped-query attention; of the indexer what turns, its weights, a division for every score of a head,
        and one for every pair that is put in order. Without its loss, which only training makes."""
        per_weight = {"linear": 1, "softmax": 5}[self.weighting]
        width = 0 if self.index_rotary is None else self.index_rotary.width(self.index_dim)
        turned = 3 * work.tokens * (self.index_heads + 1) * width
        scored = work.pairs() * (self.index_heads + 1)
        return super().elements(config, work) | {INDEXER: turned + per_weight * work.tokens * self.index_heads + scored}

    def kept(self, config, at, path):
        """As of grouped-query attention, with a mask for every row; of an indexer that learns its queries, keys,
        weights and angles, what ReLU lets through (and in the order of its sum), and of its loss logs and shares.
        """
        for component, name, size in super().kept(config, at, path):
            yield component, name, size * (at.batch if name.endswith(" mask") else 1)
        if not self.index_loss:
            return
        heads, dim, pairs = self.index_heads, self.index_dim, at.tokens * at.length
        copies = 2 if min(at.batch, at.length, heads) > 1 else 1
        yield ATTENTION, f"{path} index q, k", at.tokens * dim * (heads + 1) * at.reduce
        yield ATTENTION, f"{path} index weights", at.tokens * heads * at.reduce
        yield ATTENTION, f"{path} index heads", copies * pairs * heads * at.reduce
        if self.index_rotary is not None:
            yield ATTENTION, f"{path} index angles", 2 * at.length * self.index_rotary.width(dim) * at.reduce
        yield ATTENTION, f"{path} visible", at.length * at.length * BOOL
        yield ATTENTION, f"{path} index loss", 2 * pairs * at.reduce + pairs * BOOL
        yield "loss", "targets of what layers add", INT64
