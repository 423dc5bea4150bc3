"""Softmax attention by kernels that compilers make: positions tell them who sees whom. Imported only if asked for."""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention as pallas

from common.backend import without_dropout
from common.errors import UserError
from common.taps import NO_TAPS

from ..masks import causal_mask
from ..precision import dtype
from .kernels import fused_attention
from .multi_head import MultiHeadAttention, join_heads

BLOCK = 64  # queries, and keys, whose scores exist at once; half as many on the way back
LEAST = 16  # numbers of a head that the matrix units of a GPU take at least


class CompiledAttention(MultiHeadAttention):
    """The same by one of the COMPILED kernels, to which no mask of all pairs is handed where it can do without.

    x [B, T, E], positions [B or 1, T], or None where all rows count 0, 1, 2, … Returns ([B, T, E], the cache). Raises
    UserError where it is made, or called, for what its kernel cannot compute.
    """

    def __init__(self, config, entry, execution):
        _check(config, execution)
        super().__init__(config, entry, execution)
        self.kernel = COMPILED[execution.attention]

    def __call__(self, x_BTE, positions_BT, cache=None, dropout_key=None, taps=NO_TAPS):
        # [1] q, k, v = x W^T + b, split into heads
        without_dropout("Compiled", self.rate, dropout_key)
        linears = self.q_proj, self.k_proj, self.v_proj
        q_BHTD, k_BHSD, v_BHSD = map(taps, "qkv", self.project(linears, x_BTE, self.num_heads))
        key_positions_BS, start = positions_BT, 0
        # [2] with a cache: append k, v and their positions, then attend to every slot
        if cache is not None:
            start = cache.used
            cache, k_BHSD, v_BHSD, key_positions_BS = cache.take(k_BHSD, v_BHSD, positions_BT)
        # [3-4] softmax attention; the kernel leaves out what a query does not see
        context_BHTD = self.kernel(q_BHTD, k_BHSD, v_BHSD, positions_BT, key_positions_BS, start)
        # [5] join the heads, project
        return taps("output", self.o_proj(join_heads(context_BHTD))), cache


def cudnn_attention(q_BHTD, k_BHSD, v_BHSD, positions_BT, key_positions_BS, start=0):
    """softmax(q k^T / sqrt(D)) v by cuDNN, on a GPU and in 16 bits; a query that sees no key gets zeros.

    It is the kernel that `fused_attention` has there, and nothing else in its place. Rows that do not count need a mask
    of all pairs, which cuDNN adds as numbers. Returns [B, H, T, D].
    """
    # [3-5] without a mask cuDNN leaves later keys out
    return fused_attention(q_BHTD, k_BHSD, v_BHSD, causal_mask(positions_BT, key_positions_BS), jnp.float32)


def pallas_attention(q_BHTD, k_BHSD, v_BHSD, positions_BT, key_positions_BS, start=0):
    """softmax(q k^T / sqrt(D)) v by the flash attention that comes with Pallas: Triton on a GPU, interpreted on a CPU.

    It knows no positions: a query sees what lies before it in its own segment. So queries lie where their keys do, from
    slot `start` on, and padding and empty slots are another segment. Behind a cache that is a query for every slot, of
    which T are wanted. A row whose positions do not increase from slot to slot gets NaN; a query that sees no key gets
    zeros. In 32 or 16 bits. Returns [B, H, T, D]. Source: Dao 2023 (FlashAttention-2).
    """
    (rows, _, length, dim), slots = q_BHTD.shape, k_BHSD.shape[2]
    # [1] [B, S, H, D], filled up to whole blocks
    total = _whole(slots)
    k_BSHD, v_BSHD = (_filled(jnp.swapaxes(x_BHSD, 1, 2), total) for x_BHSD in (k_BHSD, v_BHSD))
    q_BTHD, nothing_BSHD = jnp.swapaxes(q_BHTD, 1, 2), jnp.zeros_like(k_BSHD)
    q_BSHD = jax.lax.dynamic_update_slice_in_dim(nothing_BSHD, q_BTHD, start, axis=1)
    # [2] segment 1 is what is there; all of it where rows count, for what fills them up is later than all queries
    segments_BS = None
    if positions_BT is not None:
        key_positions_BS = jnp.broadcast_to(key_positions_BS, (rows, slots))
        segments_BS = _filled((key_positions_BS >= 0).astype(jnp.int32), total)
    # [3-5] softmax attention
    half = BLOCK // 2
    sizes = pallas.BlockSizes(BLOCK, BLOCK, block_q_dkv=half, block_kv_dkv=half, block_q_dq=half, block_kv_dq=half)
    how = {"sm_scale": 1 / math.sqrt(dim), "causal": True, "block_sizes": sizes, "interpret": _platform() != "gpu"}
    context_BSHD = pallas.mha(q_BSHD, k_BSHD, v_BSHD, segments_BS, **how)
    context_BTHD = jax.lax.dynamic_slice_in_dim(context_BSHD, start, length, axis=1)
    context_BHTD = jnp.swapaxes(context_BTHD, 1, 2)
    if positions_BT is None:
        return context_BHTD
    # [6] NaN where slots are no order of positions, zero where nothing was visible
    last_BS = jax.lax.cummax(key_positions_BS, axis=1)
    ordered_B = ((key_positions_BS[:, 1:] < 0) | (key_positions_BS[:, 1:] > last_BS[:, :-1])).all(1)
    context_BHTD = jnp.where(ordered_B[:, None, None, None], context_BHTD, jnp.nan)
    return jnp.where((positions_BT >= 0)[:, None, :, None], context_BHTD, 0.0)


def _whole(slots):
    """How many slots whole blocks have: Triton's are powers of two."""
    return -(-slots // BLOCK) * BLOCK if slots > BLOCK else max(LEAST, 1 << (slots - 1).bit_length())


def _filled(x_BS, total):
    """The same with zeros behind, `total` slots long."""
    return jnp.pad(x_BS, [(0, 0), (0, total - x_BS.shape[1]), *[(0, 0)] * (x_BS.ndim - 2)])


def _platform():
    """That of the model's scope."""
    device = jax.config.jax_default_device
    return jax.default_backend() if device is None else device.platform


COMPILED = {"cudnn": cudnn_attention, "pallas": pallas_attention}


def _check(config, execution):
    """Refuse what a kernel cannot compute, where the model is made."""
    name, kind, on_gpu, head = execution.attention, execution.dtype, execution.device != "cpu", config.head_dim
    if name not in COMPILED:
        known = " or ".join(map(repr, COMPILED))
        raise UserError(f"JAX has no attention kernel {name!r}, which is PyTorch's: use attention={known}.")
    if name == "cudnn" and not (on_gpu and kind == "bfloat16"):
        needed = f"a GPU and 16 bits (device='cuda', dtype='bfloat16'), not {kind} on {execution.device}"
        raise UserError(f"cuDNN's attention needs {needed}: use attention='plain'.")
    if kind == "float64":
        raise UserError("Pallas's flash attention sums in float32: use attention='plain' for float64.")
    if name == "pallas" and on_gpu and head < LEAST:
        heads = f"heads of at least {LEAST} numbers on a GPU, not of {head}"
        raise UserError(f"Pallas's flash attention takes {heads}: use attention='plain'.")


def compiled_kernel(config, execution):
    """The name of what runs: read from the program that JAX hands to its compiler, in the scope of a model."""
    # [1] of the device
    kernel, length = COMPILED[execution.attention], min(128, config.context_length)
    q = jax.ShapeDtypeStruct((1, config.num_heads, length, config.head_dim), dtype(execution.precision.compute))
    text = jax.jit(lambda q: kernel(q, q, q, None, None)).lower(q).as_text().lower()
    known = {"cudnn": "cuDNN", "triton": "Pallas, Triton"}
    return next((title for sign, title in known.items() if sign in text), "Pallas, interpreted")
