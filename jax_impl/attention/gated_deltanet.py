"""Gated DeltaNet (Yang et al. 2025): in place of keys and values a state, which fades and is corrected token by token.

Letters: H value heads of size P, K key heads of size D, C = 2 K D + H P channels, W tokens of a convolution, N chunks
of M tokens.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
from flax import nnx

from common.backend import only_plain
from common.taps import NO_TAPS

from ..layers import NORMS, Linear, silu
from ..precision import at_least, dtype
from .multi_head import join_heads, split_heads

EPS = 1e-6  # in the length of queries and keys
CHUNK = 64  # tokens of a chunk


class DeltaCache(NamedTuple):
    """One layer's past, of the same size however long: the states [B, H, D, P], and the last W - 1 inputs of the
    convolution [B, W - 1, C]."""

    state_BHDP: jax.Array
    inputs_BWC: jax.Array

    def write(self, state_BHDP, inputs_BWC):
        """Put others in their place. Returns the cache with them in it."""
        # [1] the states, the last inputs
        return DeltaCache(state_BHDP, inputs_BWC)


def delta_cache(config, entry, batch, capacity, execution):
    """An empty cache of one layer, which has room for any number of tokens. States are kept as they are summed up."""
    # [1] nothing was written, nothing was before
    heads, _, dim = entry.heads(config)
    kinds = [dtype(kind) for kind in (execution.precision.reduce, execution.precision.compute)]
    shapes = (batch, heads, dim, entry.value_size(config)), (batch, entry.kernel - 1, entry.channels(config))
    return DeltaCache(*(jnp.zeros(shape, kind) for shape, kind in zip(shapes, kinds, strict=True)))


class GatedDeltaNet(nnx.Module):
    """H heads, each with a state [D, P] of what it has read. Head h has the queries and keys of head h K / H of K.

    x [B, T, E], positions [B or 1, T], of which only -1 (padding) is looked at. Returns ([B, T, E], the cache).
    """

    empty_cache = staticmethod(delta_cache)

    def __init__(self, config, entry, execution):
        only_plain("Gated DeltaNet", execution)
        self.heads, self.groups, self.dim = entry.heads(config)
        self.size, self.rule = entry.value_size(config), RULES[entry.beta][execution.recurrence]
        keys, values = self.groups * self.dim, self.heads * self.size
        precision, norm = execution.precision, NORMS["rms_norm"][execution.norm]
        kind, self.reduce = dtype(precision.param), dtype(precision.reduce)
        self.q_proj = Linear(config.embed_dim, keys, config.qkv_bias, execution)
        self.k_proj = Linear(config.embed_dim, keys, config.qkv_bias, execution)
        self.v_proj = Linear(config.embed_dim, values, config.qkv_bias, execution)
        self.q_conv = nnx.Param(jnp.zeros((keys, entry.kernel), kind))
        self.k_conv = nnx.Param(jnp.zeros((keys, entry.kernel), kind))
        self.v_conv = nnx.Param(jnp.zeros((values, entry.kernel), kind))
        self.a_proj = Linear(config.embed_dim, self.heads, False, execution)
        self.b_proj = Linear(config.embed_dim, entry.strengths(config), False, execution)
        self.A_log = nnx.Param(jnp.zeros(self.heads, kind))
        self.dt_bias = nnx.Param(jnp.zeros(self.heads, kind))
        self.gate_proj = Linear(config.embed_dim, values, False, execution)
        self.norm = norm(self.size, config.norm_eps, precision)
        self.o_proj = Linear(values, config.embed_dim, entry.out_bias, execution)

    def __call__(self, x_BTE, positions_BT, cache=None, dropout_key=None, taps=NO_TAPS):
        # [1] q, k, v = x W^T + b, side by side
        mixed_BTC = jnp.concatenate([self.q_proj(x_BTE), self.k_proj(x_BTE), self.v_proj(x_BTE)], -1)
        # [2] every channel is mixed with what was before it in its row, and bent
        there_BT = positions_BT >= 0
        weight_CW = jnp.concatenate([self.q_conv[...], self.k_conv[...], self.v_conv[...]])
        state_BHDP, inputs_BWC = self._nothing(x_BTE, weight_CW) if cache is None else cache
        mixed_BTC, inputs_BWC = convolve(taps("mixed", mixed_BTC), weight_CW, inputs_BWC, there_BT, self.reduce)
        mixed_BTC = taps("convolved", silu(mixed_BTC))
        # [3] split into heads; q and k of length 1, q / sqrt(D), each shared by the value heads of its group
        q_BTC, k_BTC, v_BTC = jnp.split(mixed_BTC, [self.groups * self.dim, 2 * self.groups * self.dim], -1)
        q_BKTD = unit(split_heads(q_BTC, self.groups)) / math.sqrt(self.dim)
        q_BHTD = taps("q", jnp.repeat(q_BKTD, self.heads // self.groups, axis=1))
        k_BKTD = unit(split_heads(k_BTC, self.groups))
        k_BHTD = taps("k", jnp.repeat(k_BKTD, self.heads // self.groups, axis=1))
        v_BHTP = taps("v", split_heads(v_BTC, self.heads))
        # [4] how fast a state fades (Mamba-2), and how strongly it is corrected, or every channel of it
        a_BTH, b_BTC = taps("a", self.a_proj(x_BTE)), taps("b", self.b_proj(x_BTE))
        a_BTH, b_BTC = at_least(a_BTH, self.reduce), at_least(b_BTC, self.reduce)
        log_decay_BTH = taps("log_decay", -jnp.exp(self.A_log[...]) * _softplus(a_BTH + self.dt_bias[...]))
        beta_BTC = taps("beta", jax.nn.sigmoid(b_BTC))
        # [5] padding leaves a state as it is
        there_B1T = there_BT[:, None]
        log_decay_BHT = jnp.where(there_B1T, jnp.swapaxes(log_decay_BTH, 1, 2), 0.0)
        beta_BHTP = jnp.where(there_B1T[..., None], split_heads(beta_BTC, self.heads), 0.0)
        # [6] the gated delta rule; a single token is one step of its recurrent form
        rule = recurrent_rule if x_BTE.shape[1] == 1 else self.rule
        context_BHTP, state_BHDP = rule(q_BHTD, k_BHTD, v_BHTP, log_decay_BHT, beta_BHTP, state_BHDP)
        context_BHTP = taps("context", context_BHTP)
        # [7] with a cache: keep the states and the last inputs
        if cache is not None:
            cache = cache.write(state_BHDP, inputs_BWC)
        # [8] normalise every head, join, gate, project
        gate_BTC = taps("gate", silu(at_least(self.gate_proj(x_BTE), self.reduce)))
        gated_BTC = taps("gated", (join_heads(self.norm(context_BHTP)) * gate_BTC).astype(x_BTE.dtype))
        return taps("output", self.o_proj(gated_BTC)), cache

    def _nothing(self, x_BTE, weight_CW):
        """States and inputs of rows before which nothing was."""
        channels, kernel = weight_CW.shape
        wide = jnp.promote_types(x_BTE.dtype, self.reduce)
        state_BHDP = jnp.zeros((len(x_BTE), self.heads, self.dim, self.size), wide)
        return state_BHDP, jnp.zeros((len(x_BTE), kernel - 1, channels), x_BTE.dtype)


def convolve(x_BTC, weight_CW, inputs_BWC, there_BT, reduce):
    """Each channel's sum over W tokens, the last of them its own, with its own weights; `inputs` are the W - 1 before
    the first. Padding, wherever it stands, is passed over. Returns ([B, T, C], the last W - 1 inputs)."""
    length, kernel = x_BTC.shape[1], weight_CW.shape[1]
    rows_B1 = jnp.arange(len(x_BTC))[:, None]
    # [1] behind what was before: the tokens of a row in their order, then its padding
    order_BT = jnp.argsort((~there_BT).astype(jnp.int32), axis=1, stable=True)
    joined_BSC = jnp.concatenate([inputs_BWC, x_BTC[rows_B1, order_BT]], 1)
    # [2] sum
    wide_BSC, weight_CW = at_least(joined_BSC, reduce), at_least(weight_CW.astype(x_BTC.dtype), reduce)
    mixed_BTC = wide_BSC[:, :length] * weight_CW[:, 0]
    for tap in range(1, kernel):
        mixed_BTC = mixed_BTC + wide_BSC[:, tap : tap + length] * weight_CW[:, tap]
    # [3] each token back to its place; the last inputs of every row
    back_BT = jnp.maximum(jnp.cumsum(there_BT, 1) - 1, 0)
    last_BW = there_BT.sum(1, keepdims=True) + jnp.arange(kernel - 1)
    return mixed_BTC[rows_B1, back_BT], joined_BSC[rows_B1, last_BW]


def unit(x):
    """x / sqrt(sum of x^2 + eps) over the last axis."""
    # [1] divide by the length
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + EPS)


def recurrent_rule(q_BHTD, k_BHTD, v_BHTP, log_decay_BHT, beta_BHTP, state_BHDP):
    """One token after the other: S = decay S, S = S + k beta (v - k^T S), y = q^T S. Returns (y [B, H, T, P], S).
    `beta` is one number of a token and head [B, H, T, 1], or one for every channel of the value [B, H, T, P].

    Source: Yang et al. 2025, equation 10, with states transposed.
    """

    def step(state_BHDP, token):
        q_BHD, k_BHD, v_BHP, decay_BH, beta_BHP = token
        q_BH1D, k_BH1D, v_BH1P = q_BHD[:, :, None], k_BHD[:, :, None], v_BHP[:, :, None]
        # [1] the state fades
        state_BHDP = decay_BH[:, :, None, None] * state_BHDP
        # [2] what it answers to the key is to come nearer to the value
        change_BH1P = beta_BHP[:, :, None] * (v_BH1P - k_BH1D @ state_BHDP)
        # [3] write
        state_BHDP = state_BHDP + jnp.swapaxes(k_BH1D, 2, 3) * change_BH1P
        # [4] read
        return state_BHDP, (q_BH1D @ state_BHDP)[:, :, 0]

    tokens = [jnp.moveaxis(x, 2, 0) for x in (q_BHTD, k_BHTD, v_BHTP, jnp.exp(log_decay_BHT), beta_BHTP)]
    state_BHDP, context_TBHP = jax.lax.scan(step, state_BHDP, tokens)
    return jnp.moveaxis(context_TBHP, 0, 2), state_BHDP


def chunked_rule(q_BHTD, k_BHTD, v_BHTP, log_decay_BHT, beta_BHT1, state_BHDP, chunk=CHUNK):
    """The same, `chunk` tokens at once: products inside a chunk, a state from one to the next. One `beta` for a head.

    Source: Yang et al. 2024, section 3.2 (the WY form); Yang et al. 2025, section 3.3 (with decay).
    """
    batch, heads, length, size = v_BHTP.shape
    chunk = min(chunk, length)
    # [1] cut into N chunks of M tokens; what fills the last one leaves a state as it is
    tokens = q_BHTD, k_BHTD, v_BHTP, log_decay_BHT, beta_BHT1
    q_BHNMD, k_BHNMD, v_BHNMP, log_decay_BHNM, beta_BHNM1 = (_cut(x, chunk) for x in tokens)
    # [2] how changes hang on each other, how keys meet the state; what is read, what is left at the end
    hangs_BHNMS, asks_BHNMD, *rest = _faded(q_BHNMD, k_BHNMD, log_decay_BHNM)
    # [3] changes hang on those before and on the state: (1 + lower) change = beta (v - left k^T state). Solve for both
    lower_BHNMS = beta_BHNM1 * hangs_BHNMS
    wanted = jnp.concatenate([beta_BHNM1 * v_BHNMP, beta_BHNM1 * asks_BHNMD], -1)
    solved = jax.scipy.linalg.solve_triangular(lower_BHNMS, wanted, lower=True, unit_diagonal=True)
    own_BHNMP, drawn_BHNMD = solved[..., :size], solved[..., size:]

    # [4] chunk by chunk: change, read, write
    def step(state_BHDP, part):
        own_BHMP, drawn_BHMD, *rest = part
        change_BHMP = own_BHMP - drawn_BHMD @ state_BHDP
        return _passed(change_BHMP, state_BHDP, *rest)

    chunks = [jnp.moveaxis(x, 2, 0) for x in (own_BHNMP, drawn_BHNMD, *rest)]
    state_BHDP, context_NBHMP = jax.lax.scan(step, state_BHDP, chunks)
    context_BHTP = jnp.moveaxis(context_NBHMP, 0, 2).reshape(batch, heads, -1, size)
    return context_BHTP[:, :, :length], state_BHDP


def chunked_channels_rule(q_BHTD, k_BHTD, v_BHTP, log_decay_BHT, beta_BHTP, state_BHDP, chunk=CHUNK):
    """`chunked_rule` where every channel of a value has a `beta`, and so a triangle (M x M numbers), of its own. It is
    solved once, behind the chunk before it: for the changes themselves, a single column."""
    batch, heads, length, size = v_BHTP.shape
    chunk = min(chunk, length)
    # [1] cut into N chunks of M tokens; what fills the last one leaves a state as it is
    tokens = q_BHTD, k_BHTD, v_BHTP, log_decay_BHT, beta_BHTP
    q_BHNMD, k_BHNMD, v_BHNMP, log_decay_BHNM, beta_BHNMP = (_cut(x, chunk) for x in tokens)
    # [2] how changes hang on each other, how keys meet the state; what is read, what is left at the end
    hangs_BHNMS, asks_BHNMD, *rest = _faded(q_BHNMD, k_BHNMD, log_decay_BHNM)

    # [3] chunk by chunk: (1 + beta hangs) change = beta (v - left k^T state) for every channel, read, write
    def step(state_BHDP, part):
        hangs_BHMS, asks_BHMD, v_BHMP, beta_BHMP, *rest = part
        wanted_BHMP = beta_BHMP * (v_BHMP - asks_BHMD @ state_BHDP)
        lower_BHPMS = jnp.swapaxes(beta_BHMP, 2, 3)[..., None] * hangs_BHMS[:, :, None]
        wanted_BHPM1 = jnp.swapaxes(wanted_BHMP, 2, 3)[..., None]
        change_BHPM1 = jax.scipy.linalg.solve_triangular(lower_BHPMS, wanted_BHPM1, lower=True, unit_diagonal=True)
        return _passed(jnp.swapaxes(change_BHPM1[..., 0], 2, 3), state_BHDP, *rest)

    chunks = [jnp.moveaxis(x, 2, 0) for x in (hangs_BHNMS, asks_BHNMD, v_BHNMP, beta_BHNMP, *rest)]
    state_BHDP, context_NBHMP = jax.lax.scan(step, state_BHDP, chunks)
    context_BHTP = jnp.moveaxis(context_NBHMP, 0, 2).reshape(batch, heads, -1, size)
    return context_BHTP[:, :, :length], state_BHDP


RULES = {  # by what has a beta of its own
    "head": {"recurrent": recurrent_rule, "chunked": chunked_rule},
    "channel": {"recurrent": recurrent_rule, "chunked": chunked_channels_rule},
}


def _softplus(x):
    """log(1 + exp(x))."""
    return jax.nn.softplus(x)


def _faded(q_BHNMD, k_BHNMD, log_decay_BHNM):
    """(How changes of a chunk hang on those before them, keys as they meet the state before it; then for `_passed`: how
    tokens read changes, queries as they meet the state, keys as their changes are left at the end, and what of the
    state is left there.)"""
    length = q_BHNMD.shape[3]
    # [1] what is left of the state before the chunk, and of what token s of it wrote, when token m is there
    total_BHNM = jnp.cumsum(log_decay_BHNM, -1)
    seen_MS = jnp.tril(jnp.ones((length, length), bool))
    left_BHNMS = jnp.exp(jnp.where(seen_MS, total_BHNM[..., :, None] - total_BHNM[..., None, :], -jnp.inf))
    left_BHNM1 = jnp.exp(total_BHNM)[..., None]
    # [2] of changes, and of the state
    hangs_BHNMS = left_BHNMS * (k_BHNMD @ jnp.swapaxes(k_BHNMD, 3, 4))
    reads_BHNMS = left_BHNMS * (q_BHNMD @ jnp.swapaxes(k_BHNMD, 3, 4))
    asks_BHNMD, q_BHNMD = left_BHNM1 * k_BHNMD, left_BHNM1 * q_BHNMD
    # [3] at the end of the chunk
    k_BHNMD = jnp.exp(total_BHNM[..., -1:] - total_BHNM)[..., None] * k_BHNMD
    return hangs_BHNMS, asks_BHNMD, reads_BHNMS, q_BHNMD, k_BHNMD, jnp.exp(total_BHNM[..., -1])[..., None, None]


def _passed(change_BHMP, state_BHDP, reads_BHMS, q_BHMD, k_BHMD, end_BH11):
    """(The state after a chunk, what its tokens read.)"""
    # [1] read, write
    context_BHMP = q_BHMD @ state_BHDP + reads_BHMS @ change_BHMP
    return end_BH11 * state_BHDP + jnp.swapaxes(k_BHMD, 2, 3) @ change_BHMP, context_BHMP


def _cut(x_BHT, chunk):
    """[B, H, T, …] -> [B, H, N, M, …], the last chunk filled with zeros."""
    batch, heads, length, *rest = x_BHT.shape
    filled = jnp.pad(x_BHT, [(0, 0), (0, 0), (0, -length % chunk), *((0, 0) for _ in rest)])
    return filled.reshape(batch, heads, -1, chunk, *rest)
