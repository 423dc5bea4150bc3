"""Softmax attention by kernels that compilers make: positions tell them who sees whom. Imported only if asked for."""

import torch
from torch.nn import functional as F
from torch.nn.attention import flex_attention as flex

from common.backend import without_dropout
from common.errors import UserError
from common.taps import NO_TAPS

from ..stack import LIMIT
from .multi_head import MultiHeadAttention, join_heads

BLOCK = 128  # queries, and keys, of which a kernel computes all scores or none
LEAST = 16  # numbers of a head that the matrix units of a GPU take at least

# in one piece and for every kind of inputs by itself; past LIMIT of them a call raises, as in stack.py
_compiled = torch.compile(flex.flex_attention, fullgraph=True, dynamic=False)
torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = LIMIT
torch._dynamo.config.fail_on_recompile_limit_hit = True


@torch.compiler.disable(recursive=False)
def _compiled_apart(q_BHTD, k_BHSD, v_BHSD, block_mask):
    """Compiled by itself also where all around it is: as a part of that, PyTorch 2.13 makes no C++ of it."""
    return _compiled(q_BHTD, k_BHSD, v_BHSD, block_mask=block_mask)


class CompiledAttention(MultiHeadAttention):
    """The same by one of the COMPILED kernels, to which no mask of all pairs is handed.

    x [B, T, E], positions [B or 1, T], or None where all rows count 0, 1, 2, … Returns ([B, T, E], the cache). Raises
    UserError where it is made, or called, for what its kernel cannot compute.
    """

    def __init__(self, config, entry, execution):
        _check(config, execution)
        super().__init__(config, entry, execution)
        self.kernel = COMPILED[execution.attention]

    def forward(self, x_BTE, positions_BT, cache=None, dropout_key=None, taps=NO_TAPS):
        # [1] q, k, v = x W^T + b, split into heads
        without_dropout("Compiled", self.rate, dropout_key)
        linears = self.q_proj, self.k_proj, self.v_proj
        q_BHTD, k_BHSD, v_BHSD = map(taps, "qkv", self.project(linears, x_BTE, self.num_heads))
        key_positions_BS = positions_BT
        # [2] with a cache: append k, v and their positions, then attend to every slot
        if cache is not None:
            cache, k_BHSD, v_BHSD, key_positions_BS = cache.take(k_BHSD, v_BHSD, positions_BT)
        # [3-4] softmax attention; the kernel leaves out what a query does not see
        context_BHTD = self.kernel(q_BHTD, k_BHSD, v_BHSD, positions_BT, key_positions_BS)
        # [5] join the heads, project
        return taps("output", self.o_proj(join_heads(context_BHTD))), cache


def flex_attention(q_BHTD, k_BHSD, v_BHSD, positions_BT, key_positions_BS):
    """softmax(q k^T / sqrt(D)) v by PyTorch's `flex_attention`, compiled; a query that sees no key gets zeros.

    On a CPU it is a C++ kernel without a backward pass, on a GPU Triton's; in 32 or 16 bits. Returns [B, H, T, D].
    Source: Dong et al. 2024 (Flex Attention).
    """
    if q_BHTD.device.type == "cpu" and any(x.requires_grad for x in (q_BHTD, k_BHSD, v_BHSD)):
        advice = "train with attention='plain', or on a GPU"
        raise UserError(f"PyTorch's flex attention has no backward pass on a CPU: {advice}.")
    # [3] blocks of scores: all, some or none of them are computed
    mask = _block_mask(q_BHTD, k_BHSD, positions_BT, key_positions_BS)
    # [5] context = weights v, zero where nothing was visible
    run = _compiled_apart if q_BHTD.device.type == "cpu" else _compiled
    try:
        return run(q_BHTD, k_BHSD, v_BHSD, block_mask=mask)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        what = f"{q_BHTD.dtype} on {q_BHTD.device.type} with heads of {q_BHTD.shape[-1]}"
        why = str(error.inner_exception).strip().partition("\n")[0].rstrip(".")
        raise UserError(f"PyTorch makes no flex attention for {what} ({why}): use attention='plain'.") from error


def _block_mask(q_BHTD, k_BHSD, positions_BT, key_positions_BS):
    """Which blocks of queries (N) and keys (M) hold a pair that sees, and which hold no other, by the first and last
    position in each; within the others every pair is asked. No mask of all pairs is made."""
    rows, length, slots = len(q_BHTD), q_BHTD.shape[2], k_BHSD.shape[2]
    if positions_BT is None:
        queries_BT = keys_BS = torch.arange(length, dtype=torch.int32, device=q_BHTD.device)[None]

        def visible(row, head, query, key):
            return key <= query
    else:
        queries_BT = positions_BT.expand(rows, -1).contiguous()
        keys_BS = key_positions_BS.expand(rows, -1).contiguous()

        def visible(row, head, query, key):
            return (keys_BS[row, key] <= queries_BT[row, query]) & (keys_BS[row, key] >= 0)

    queries_BNT, keys_BMS = _blocks(queries_BT), _blocks(keys_BS)
    first_BM = torch.where(keys_BMS < 0, torch.iinfo(torch.int32).max, keys_BMS).amin(-1)
    some_BNM = first_BM[:, None] <= queries_BNT.amax(-1)[..., None]
    before_BNM = keys_BMS.amax(-1)[:, None] <= queries_BNT.amin(-1)[..., None]
    all_BNM = before_BNM & (keys_BMS.amin(-1) >= 0)[:, None]
    return flex.BlockMask.from_kv_blocks(
        *_listed(some_BNM & ~all_BNM),
        *_listed(all_BNM),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(length, slots),
        compute_q_blocks=torch.is_grad_enabled(),  # for the way back alone
    )


def _blocks(positions_BT):
    """[B, N, BLOCK]: positions block by block, the last one filled up with padding."""
    return F.pad(positions_BT, (0, -positions_BT.shape[1] % BLOCK), value=-1).unflatten(1, (-1, BLOCK))


def _listed(chosen_BNM):
    """How many key blocks every block of queries has [B, 1, N], and which, these first [B, 1, N, M]."""
    chosen = chosen_BNM[:, None].to(torch.int32)
    return chosen.sum(-1).to(torch.int32), chosen.argsort(dim=-1, descending=True, stable=True).to(torch.int32)


COMPILED = {"flex": flex_attention}


def _check(config, execution):
    """Refuse what a kernel cannot compute, where the model is made."""
    name, head = execution.attention, config.head_dim
    if name not in COMPILED:
        raise UserError(f"PyTorch has no attention kernel {name!r}, which is JAX's: use attention='flex'.")
    if execution.dtype == "float64":
        raise UserError("PyTorch's flex attention sums in float32: use attention='plain' for float64.")
    if execution.device != "cpu" and head < LEAST:
        heads = f"heads of at least {LEAST} numbers on a GPU, not of {head}"
        raise UserError(f"PyTorch's flex attention takes {heads}: use attention='plain'.")


def compiled_kernel(config, execution):
    """The name of what runs: PyTorch's compiler has one template for a device, and whatever does not fit in raises."""
    # [1] of the device
    return f"flex_attention, {'C++' if execution.device == 'cpu' else 'Triton'}"
