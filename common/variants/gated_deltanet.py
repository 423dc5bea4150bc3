"""Gated DeltaNet: linear attention whose state fades and is corrected, as in Qwen3-Next and Qwen3.5.

Sources: Yang et al. 2025 (gated delta rule); Yang et al. 2024 (chunks); Mamba-2, Dao and Gu 2024 (how decay is made).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from common.accounting.work import ATTENTION, BOOL, PROJECTIONS, SCORES, TRIANGLES, Component
from common.errors import unknown
from common.parameter import Parameter, linear, rms_norm
from common.record import flag, positive_int, require
from common.variants.part import SCORED, Attention

BETAS = ("head", "channel")
INDEX = 8  # bytes of an index
CHUNK = 64  # tokens of a chunk, as all implementations have it


@dataclass(frozen=True)
class GatedDeltaNet(Attention):
    """`num_value_heads` heads with values of size `value_dim` share the queries and keys, of size `key_dim`, of
    `num_key_heads` heads. None is num_heads, num_value_heads, and embed_dim / num_heads for the sizes.

    What goes in is mixed by a causal convolution over `kernel` tokens, the last of them its own. `beta`, how strongly a
    state is corrected, is one number of a token for every "head" (Qwen3.5), or one for every "channel" of its value.
    The layer knows neither positions nor a window, and draws no dropout; its cache does not grow with the text.
    """

    kind = "gated_deltanet"
    module = "GatedDeltaNet"
    aliases = ("deltanet", "delta_net", "linear", "linear_attention")
    components = (Component(PROJECTIONS), SCORED, Component(TRIANGLES, backward=3, again={"checkpointed": 2}))
    LATER: ClassVar[tuple[str, ...]] = ("beta",)
    reads: ClassVar = {"recurrence": "chunked"}
    inputs: ClassVar = Attention.inputs | dict.fromkeys(("a_proj", "b_proj", "gate_proj"), "x")

    num_key_heads: int | None = None
    num_value_heads: int | None = None
    key_dim: int | None = None
    value_dim: int | None = None
    kernel: int = 4
    beta: str = "head"
    out_bias: bool = False

    def __post_init__(self):
        positive_int(self, "kernel")
        for name in ("num_key_heads", "num_value_heads", "key_dim", "value_dim"):
            if getattr(self, name) is not None:
                positive_int(self, name)
        flag(self, "out_bias")
        if self.beta not in BETAS:
            raise unknown("beta of a delta rule", str(self.beta), BETAS)

    def check(self, config):
        self.value_size(config)
        heads, groups, _ = self.heads(config)
        divides = f"a divisor of num_value_heads ({heads}): heads share keys equally"
        require(heads % groups == 0, self, "num_key_heads", divides)

    def heads(self, config):
        """(value heads H, key heads K, key size D)."""
        heads = self.num_value_heads or config.num_heads
        return heads, self.num_key_heads or heads, self.key_dim or config.head_dim

    def value_size(self, config):
        """P, the size of a value."""
        return self.value_dim or config.head_dim

    def strengths(self, config):
        """How many numbers say for a token how strongly its states are corrected."""
        heads, _, _ = self.heads(config)
        return heads * {"head": 1, "channel": self.value_size(config)}[self.beta]

    def channels(self, config):
        """C, the numbers of a token that are mixed with those before: its queries, keys and values."""
        heads, groups, dim = self.heads(config)
        return 2 * groups * dim + heads * self.value_size(config)

    def rows_of(self, config, name):
        return self.heads(config)[0]

    def held(self, capacity):
        """No slots: the cache is a state."""
        return 0

    def state_numbers(self, config, batch):
        """Numbers of its cache that are kept in the precision of reductions: D x P for every head."""
        heads, _, dim = self.heads(config)
        return batch * heads * dim * self.value_size(config)

    def cached_numbers(self, config, batch, capacity):
        """The states, and the last inputs of the convolution."""
        return self.state_numbers(config, batch) + batch * (self.kernel - 1) * self.channels(config)

    def parameters(self, config, path):
        heads, groups, dim = self.heads(config)
        values = heads * self.value_size(config)
        widths = {"q": groups * dim, "k": groups * dim, "v": values}
        for name, width in widths.items():
            yield from linear(f"{path}.{name}_proj", width, config.embed_dim, bias=config.qkv_bias)
        for name, width in widths.items():
            std = 1 / math.sqrt(3 * self.kernel)  # that of U(-1, 1) / sqrt(W)
            yield Parameter(f"{path}.{name}_conv", (width, self.kernel), std=std, part="scale")
        for name, width in {"a_proj": heads, "b_proj": self.strengths(config)}.items():
            yield from linear(f"{path}.{name}", width, config.embed_dim, bias=False)
        yield Parameter(f"{path}.A_log", (heads,), init="log_uniform", decays=False, part="scale")
        yield Parameter(f"{path}.dt_bias", (heads,), init="ones", decays=False, part="scale")
        yield from linear(f"{path}.gate_proj", values, config.embed_dim, bias=False)
        yield from rms_norm(f"{path}.norm", self.value_size(config))
        yield from linear(f"{path}.o_proj", config.embed_dim, values, bias=self.out_bias, std=config.residual_std)

    def products(self, config, work):
        """Recurrent: k^T S and q^T S, 2 D P each for every token and head. That a write, k times a change, is no matrix
        product: both counters take it for elementwise work, and so does `elements`.

        Chunked, of every chunk of M tokens and head: k k^T, q k^T (2 D for a pair) and what is read of changes (2 P);
        what changes and reads take from the state, and the write (2 D P for a token); a triangle solved for D + P
        columns, or where every channel has its own, P of them for one. With `causal` visible pairs, and tokens that are
        there."""
        if not _chunked(work):
            return {SCORES: 2 * 2 * self.state_numbers(config, work.tokens)}
        heads, _, dim = self.heads(config)
        size, chunks = self.value_size(config), _chunks(work)
        pairs = sum(own * (own + 1) // 2 if work.causal else own * own for own in chunks)
        written = sum(chunks) * 3 * dim * size
        return {
            SCORES: 2 * work.batch * heads * (pairs * (2 * dim + size) + written),
            TRIANGLES: work.batch * heads * sum(own * own for own in chunks) * sum(self._solved(config)),
        }

    def otherwise(self, config, work):
        """PyTorch makes no gradient of the state before the first chunk, of which changes and reads took, nor of the
        last write, which nobody reads: two products each. JAX's rule of `triangular_solve` solves for the triangle's
        gradient and for that of its columns apart: the former for as many columns as these or the triangle has.
        """
        if not _chunked(work):
            return {}
        heads, _, dim = self.heads(config)
        size, own, rows = self.value_size(config), min(CHUNK, work.length), work.batch * heads
        again = len(_chunks(work)) * own * own * sum(min(own, columns) for columns in self._solved(config))
        return {"torch": {SCORES: -4 * 2 * rows * own * dim * size}, "jax": {TRIANGLES: rows * again}}

    def elements(self, config, work):
        """Of the recurrent form. A channel: W products, W - 1 sums, 5 for SiLU. A query and key: 3 a number and 2 for
        length 1, 1 more to scale the query. A head: 6 for decay (and 2 for A), 1 for exp, 4 for a strength; 2 P for a
        change, 3 D P to fade and write; 6 P for the gate."""
        heads, groups, dim = self.heads(config)
        size, rows = self.value_size(config), work.tokens * heads
        return {
            "convolution": work.tokens * (2 * self.kernel + 4) * self.channels(config),
            "delta rule": rows * (3 * dim * size + 2 * size + 1) + work.tokens * groups * (7 * dim + 4),
            "gates": rows * (6 + 6 * size) + 4 * work.tokens * self.strengths(config) + 2 * heads,
        }

    def kept(self, config, at, path):
        """Of the recurrent form: all states, faded and written, and the one before; what is mixed and how; the rest."""
        if at.kernel != "plain":
            raise unknown("attention kernel", at.kernel, ("plain",))
        heads, groups, dim = self.heads(config)
        size, channels, past = self.value_size(config), self.channels(config), self.kernel - 1
        rows = at.tokens * heads
        mixed = (at.batch * (at.length + past) + self.kernel) * channels
        yield ATTENTION, f"{path} inputs and weights of the convolution", mixed * at.reduce
        yield ATTENTION, f"{path} mixed, bent", 2 * at.tokens * channels * at.reduce
        yield ATTENTION, f"{path} places", (at.batch + 2 * at.length + past) * INDEX + at.length * BOOL
        yield ATTENTION, f"{path} q, k", (2 * rows * dim + 2 * at.tokens * groups) * at.reduce
        strengths = at.tokens * self.strengths(config)
        yield ATTENTION, f"{path} decay, strength", (4 * rows + 2 * strengths + 2 * heads) * at.reduce
        yield ATTENTION, f"{path} states", (2 * at.length + 1) * self.state_numbers(config, at.batch) * at.reduce
        yield ATTENTION, f"{path} changes", 2 * rows * size * at.reduce
        yield ATTENTION, f"{path} gate", 3 * rows * size * at.reduce

    def _solved(self, config):
        """Columns for which each of a head's triangles is solved."""
        dim, size = self.heads(config)[2], self.value_size(config)
        return [1] * size if self.beta == "channel" else [dim + size]


def _chunked(work):
    """Whether tokens are taken by chunks; one alone is a step of the recurrent form."""
    return work.forms.get("recurrence") == "chunked" and work.length > 1


def _chunks(work):
    """Tokens of every chunk of a row; the last one is filled up, which is no work that has to be done."""
    own = min(CHUNK, work.length)
    count = -(-work.length // own)
    last = work.length - (count - 1) * own if work.causal else own
    return [own] * (count - 1) + [last]
