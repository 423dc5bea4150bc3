"""Attention by compiled kernels (flex attention, cuDNN, Pallas): the same function where they run, else a sentence.

On a CPU flex attention runs compiled, forward alone, and Pallas is interpreted; a GPU's kernels run where there is one.
What JAX would hand to a GPU is looked at in any case.
"""

import importlib

import numpy as np
import pytest

from benchmarks.suites import SUITES, Scope
from common import backend, params
from common.config import Execution, GPTConfig
from common.errors import UserError
from common.variants import MultiHead

LONG = GPTConfig(7, 300, 32, 1, 2, ff_dim=8, tie_embeddings=False)  # heads of 16; past two blocks of any kernel
BOUNDS = {"float32": 1e-5, "bfloat16": 4e-2}  # of the largest: a hundred roundings, for PyTorch's exp may be 20 ulp off
FULL = pytest.mark.full
RUNS = [
    ("torch", "flex", "cpu", "float32"),
    pytest.param(("torch", "flex", "cpu", "bfloat16"), marks=FULL),
    ("jax", "pallas", "cpu", "float32"),
    pytest.param(("jax", "pallas", "cpu", "bfloat16"), marks=FULL),
    ("torch", "flex", "cuda", "float32"),
    ("torch", "flex", "cuda", "bfloat16"),
    ("jax", "pallas", "cuda", "float32"),
    ("jax", "pallas", "cuda", "bfloat16"),
    ("jax", "cudnn", "cuda", "bfloat16"),
]


@pytest.fixture(params=RUNS, ids=lambda run: " ".join(run))
def run(request):
    """(wing, kernel, device, dtype) of a kernel that can run here."""
    wing, _, device, _ = request.param
    if device == "cuda" and not any(found.startswith("cuda") for found in backend.load(wing).devices()):
        pytest.skip("this framework sees no GPU here")
    return request.param


@pytest.fixture
def built(model_of, run):
    """(a model of LONG by the kernel, its bound)."""
    wing, kernel, device, dtype = run
    return model_of(wing, LONG, dtype, attention=kernel, device=device), BOUNDS[dtype]


@pytest.fixture(scope="module")
def padded_batch():
    """(ids, positions, where no padding is) of two rows, padded on the left by more than a block."""
    ids = np.random.default_rng(3).integers(0, LONG.vocab_size, (2, 280)).astype(np.int32)
    positions = np.stack([np.arange(280), np.maximum(np.arange(280) - 141, -1)]).astype(np.int32)
    return ids, positions, positions >= 0


def close(got, want, bound):
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * np.abs(want).max())


def compiled_of(wing):
    return importlib.import_module(f"{wing}_impl.attention.compiled")


# --- where they run ---------------------------------------------------------------------------------------------------


@pytest.mark.full_for("torch flex", "jax pallas")
def test_padded_rows_and_rows_that_count(model_of, built, padded_batch):
    (model, bound), (ids, positions, there), oracle = built, padded_batch, model_of("numpy", LONG)
    got = model.forward(ids, positions).logits
    assert np.isfinite(got).all()
    close(got[there], oracle.forward(ids, positions).logits[there], bound)
    for where in ((ids,), (ids, positions[:1].repeat(2, 0) + 20)):
        close(model.forward(*where).logits, oracle.forward(*where).logits, bound)


def test_gradients(model_of, built, run, padded_batch):
    """Against PyTorch's in float64, without padding; a CPU's flex attention has none."""
    if run[:3] == ("torch", "flex", "cpu"):
        pytest.skip("flex attention has no backward pass on a CPU: its refusal is tested below")
    (model, bound), ids = built, padded_batch[0]
    want, got = (one.gradients(ids[:, :-1], ids[:, 1:]) for one in (model_of("torch", LONG), model))
    assert got.value == pytest.approx(want.value, rel=bound)
    for name, parameter in params.table(LONG).items():
        assert parameter.dead or np.isfinite(got.grads[name]).all()
        if not parameter.dead:
            close(got.grads[name], want.grads[name], 10 * bound)


@pytest.mark.full
def test_through_a_cache_in_chunks(model_of, built, padded_batch):
    """A chunk that ends inside a block, and single tokens; slots not yet written are seen by nobody."""
    (model, bound), (ids, positions, there) = built, padded_batch
    want, cache = model_of("numpy", LONG).forward(ids, positions).logits, model.new_cache(2, 290)
    parts = [slice(0, 278), slice(278, 279), slice(279, 280)]
    got = np.concatenate([model.extend(cache, ids[:, part], positions[:, part]) for part in parts], axis=1)
    assert np.isfinite(got).all()
    close(got[there], want[there], bound)
    with pytest.raises(UserError, match="holds 280 of 290 tokens; 11 more do not fit"):
        model.extend(cache, ids[:, :11], positions[:, :11])
    late = np.maximum(positions[:, -1:], 0) + 1
    again, longer = np.concatenate([ids, ids[:, :1]], 1), np.concatenate([positions, late], 1)
    found = model.extend(cache, ids[:, :1], late)  # the refusal hurt nothing
    close(found[:, 0], model_of("numpy", LONG).forward(again, longer).logits[:, -1], bound)


@pytest.mark.full_for("torch flex")
def test_padding_anywhere_and_rows_of_nothing_else(model_of, built):
    (model, bound), ids = built, np.random.default_rng(4).integers(0, LONG.vocab_size, (3, 6)).astype(np.int32)
    positions = np.array([[-1, 3, -1, 4, 5, -1], [-1] * 6, [0, 1, 2, 3, 4, 5]], np.int32)
    got, there = model.forward(ids, positions).logits, positions >= 0
    assert np.isfinite(got).all()
    close(got[there], model_of("numpy", LONG).forward(ids, positions).logits[there], bound)


@pytest.mark.full_for("torch flex")
def test_positions_in_no_order(model_of, built, run):
    """Are taken as they are; Pallas, which counts slots, says NaN for such a row and is right in the others."""
    (model, bound), ids = built, np.random.default_rng(5).integers(0, LONG.vocab_size, (3, 6)).astype(np.int32)
    positions = np.array([[5, 2, 7, 2, 0, 9], [3, 4, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5]], np.int32)
    got, want = model.forward(ids, positions).logits, model_of("numpy", LONG).forward(ids, positions).logits
    right = [2] if run[1] == "pallas" else [0, 1, 2]
    close(got[right], want[right], bound)
    if run[1] == "pallas":
        assert np.isnan(got[:2]).all()


@pytest.mark.parametrize("way", [{"compile": True}, {"layers": "scan"}], ids=str)
@FULL
def test_inside_of_compiled_blocks(model_of, padded_batch, way):
    wing, kernel = ("torch", "flex") if "compile" in way else ("jax", "pallas")
    ids, positions, there = padded_batch
    want = model_of("numpy", LONG).forward(ids, positions).logits
    got = model_of(wing, LONG, "float32", attention=kernel, **way).forward(ids, positions).logits
    close(got[there], want[there], BOUNDS["float32"])


@pytest.mark.parametrize("wing", [pytest.param("torch", marks=FULL), "jax"])
def test_rows_that_count_need_no_positions(wing):
    """Called with None, which a model may hand on where all rows count 0, 1, 2, …"""
    import jax.numpy as jnp
    import torch

    xp, kernel = {"torch": (torch, "flex"), "jax": (jnp, "pallas")}[wing]
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 2, 150, 16)).astype(np.float32)
    plain = importlib.import_module(f"{wing}_impl.attention.kernels").plain_attention
    mask = np.tril(np.ones((150, 150), bool))[None, None]
    want = plain(*map(xp.asarray, (q, k, v, mask)), xp.float32)
    got = compiled_of(wing).COMPILED[kernel](*map(xp.asarray, (q, k, v)), None, None)
    close(np.asarray(got), np.asarray(want), 1e-5)


def test_what_runs_is_named(model_of):
    for wing, kernel, name in (
        ("torch", "flex", "flex_attention, C++"),
        ("jax", "pallas", "Pallas, interpreted"),
    ):
        assert model_of(wing, dtype="float32", attention=kernel).about() == {"kernel": name}
    asked = Execution(device="cuda", attention="flex")
    assert compiled_of("torch").compiled_kernel(LONG, asked) == "flex_attention, Triton"


# --- where they do not ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wing", "kernel", "dtype", "sentence"),
    [
        ("torch", "cudnn", "float32", "PyTorch has no attention kernel 'cudnn', which is JAX's: use attention='flex'"),
        ("torch", "pallas", "float32", "PyTorch has no attention kernel 'pallas', which is JAX's"),
        ("jax", "flex", "float32", "which is PyTorch's: use attention='cudnn' or 'pallas'"),
        ("torch", "flex", "float64", "flex attention sums in float32: use attention='plain' for float64"),
        ("jax", "pallas", "float64", "flash attention sums in float32: use attention='plain' for float64"),
        ("jax", "cudnn", "float32", "needs a GPU and 16 bits .*, not float32 on cpu: use attention='plain'"),
        ("jax", "cudnn", "bfloat16", "needs a GPU and 16 bits .*, not bfloat16 on cpu: use attention='plain'"),
    ],
)
def test_a_model_of_what_cannot_run_is_not_made(fresh_model, small, wing, kernel, dtype, sentence):
    with pytest.raises(UserError, match=sentence):
        fresh_model(wing, small, dtype, attention=kernel)


@pytest.mark.parametrize(("wing", "kernel"), [("torch", "flex"), ("jax", "pallas")])
def test_small_heads_are_refused_on_a_gpu(small, wing, kernel):
    config, execution = small.with_(num_heads=4), Execution(device="cuda", attention=kernel)
    with pytest.raises(UserError, match="heads of at least 16 numbers on a GPU, not of 8: use attention='plain'"):
        compiled_of(wing).CompiledAttention(config, MultiHead(), execution)


@pytest.mark.full
def test_flex_attention_refuses_gradients_on_a_cpu(model_of):
    """And computes as before afterwards. With model and shape of what is compiled above."""
    model = model_of("torch", LONG, "float32", attention="flex", device="cpu")
    ids, targets = np.random.default_rng(6).integers(0, LONG.vocab_size, (2, 3, 6)).astype(np.int32)
    before, ones = model.forward(ids).logits, np.ones((3, 6, LONG.embed_dim))
    for attempt in (
        lambda: model.gradients(ids, targets),
        lambda: model.component("model.layers.0.self_attn", ones, ones),
    ):
        with pytest.raises(UserError, match=r"no backward pass on a CPU: train with attention='plain', or on a GPU"):
            attempt()
    np.testing.assert_array_equal(model.forward(ids).logits, before)


@pytest.mark.parametrize(("wing", "kernel"), [("torch", "flex"), ("jax", "pallas")])
def test_dropout_on_the_weights_is_refused(model_of, with_dropout, tokens, wing, kernel):
    model, (ids, targets) = model_of(wing, with_dropout, "float32", attention=kernel), tokens(2, 2, 8)
    with pytest.raises(UserError, match="Compiled attention cannot draw the shared dropout mask: use attention="):
        model.gradients(ids, targets, dropout=(0, 0))


def test_what_the_compiler_cannot_make_is_a_sentence(monkeypatch):
    """Its own first line, and what was asked for."""
    import torch

    compiled, q, at = compiled_of("torch"), torch.ones(1, 2, 4, 16), torch.arange(4, dtype=torch.int32)[None]

    def fails(*args, **options):
        inner = NotImplementedError("no instructions for it.\nAnd much more")
        raise torch._dynamo.exc.BackendCompilerFailed(fails, inner, None)

    monkeypatch.setattr(compiled, "_compiled", fails)
    asked = r"torch.float32 on cpu with heads of 16 \(no instructions for it\): use attention='plain'"
    with torch.no_grad(), pytest.raises(UserError, match=asked):
        compiled.flex_attention(q, q, q, at, at)


# --- what they are told -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("past", [0, 90], ids=["no cache", "a cache"])
def test_blocks_are_told_by_positions(past):
    """Of PyTorch's: a block is computed if any pair in it sees, and not asked pair by pair if all do; empty slots and
    padding see and are seen by nobody."""
    import torch

    from torch_impl.masks import causal_mask

    compiled, length = compiled_of("torch"), 300
    queries = np.stack([np.arange(length) + past, np.maximum(np.arange(length) - 130, -1) + past, np.full(length, -1)])
    queries[1, :130] = -1
    keys = np.concatenate([np.tile(np.arange(past), (3, 1)), queries, np.full((3, past), -1)], 1)
    keys[1, :past] -= 50  # padded on the left as far as the cache goes
    keys = np.maximum(keys, -1)
    queries_BT, keys_BS = (torch.from_numpy(at.astype(np.int32)) for at in (queries, keys))
    q, k = torch.zeros(3, 2, length, 16), torch.zeros(3, 2, keys.shape[1], 16)
    dense = causal_mask(queries_BT, keys_BS)[:, 0]
    with torch.no_grad():
        mask = compiled._block_mask(q, k, queries_BT, keys_BS)
    rows, t, s = torch.arange(3)[:, None, None], torch.arange(length)[:, None], torch.arange(keys.shape[1])
    assert torch.equal(mask.mask_mod(rows, 0, t, s), dense)
    assert mask.shape == (3, 1, length, keys.shape[1])
    some, every = (
        {
            (b, n, int(m))
            for b in range(3)
            for n in range(counts.shape[2])
            for m in places[b, 0, n, : int(counts[b, 0, n])]
        }
        for counts, places in (
            (mask.kv_num_blocks, mask.kv_indices),
            (mask.full_kv_num_blocks, mask.full_kv_indices),
        )
    )
    assert every
    assert not some & every
    size = compiled.BLOCK
    for b in range(3):
        for n in range(-(-length // size)):
            for m in range(-(-keys.shape[1] // size)):
                block = dense[b, n * size : (n + 1) * size, m * size : (m + 1) * size]
                assert ((b, n, m) in some | every) == bool(block.any())
                assert ((b, n, m) in every) == (bool(block.all()) and tuple(block.shape) == (size, size))


def lowered_for_cuda(function, *shapes):
    import jax

    args = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in shapes]
    return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("slots", [100, 300])
def test_pallas_becomes_tritons_kernels_on_a_gpu(monkeypatch, kind, slots):
    """Forward, and two for the way back, of lengths that are no whole blocks."""
    import jax
    import jax.numpy as jnp
    import jaxlib

    if tuple(map(int, jaxlib.__version__.split(".")[:3])) > (0, 10, 2):
        pytest.skip("a later jaxlib compiles Triton's kernels where it lowers them, which takes a GPU")
    compiled = compiled_of("jax")
    monkeypatch.setattr(compiled, "_platform", lambda: "gpu")

    def loss(q, at):
        return compiled.pallas_attention(q, q, q, at, at).astype(jnp.float32).sum()

    text = lowered_for_cuda(jax.grad(loss), ((2, 3, slots, 16), kind), ((2, slots), "int32"))
    assert text.count("xla.gpu.triton") >= 3


@pytest.mark.parametrize(("padded", "told", "not_told"), [(False, "CAUSAL", "Bias"), (True, "Bias", "CAUSAL")])
def test_cudnn_is_told_that_rows_count_or_is_given_a_mask(monkeypatch, padded, told, not_told):
    """JAX as it is on a GPU while it traces: cuDNN 9.19 on a device of capability 9.0."""
    import jax
    import jax._src.cudnn.fused_attention_stablehlo as fused
    import jax.numpy as jnp

    from jax_impl.attention import kernels

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91900)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: float(capability) <= 9.0)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0")
    monkeypatch.setattr(kernels, "_kernel", lambda kind: "cudnn")
    cudnn = compiled_of("jax").cudnn_attention

    def loss(q, at):
        return cudnn(q, q, q, *([at, at] if padded else [None, None])).astype(jnp.float32).sum()

    text = lowered_for_cuda(jax.grad(loss), ((2, 3, 8, 16), "bfloat16"), ((2, 8), "int32"))
    calls = [line for line in text.splitlines() if "cudnn" in line]
    assert any("Backward" in line for line in calls)
    assert all(told in line and not_told not in line for line in calls), calls


def test_the_suite_times_them_where_they_can_run():
    def asked(device, **options):
        for cell in SUITES["attention"](Scope(device, **options)):
            own = {one.name for one in cell.contenders if one.mode in ("flex", "cudnn", "pallas")}
            yield (cell.task, cell.dtype), own

    both = {"torch flex", "jax pallas"}
    assert dict(asked("cpu")) == {("forward", "float32"): {"torch flex"}, ("gradients", "float32"): set()}
    for (_, dtype), own in asked("cuda"):
        assert own == (both | {"jax cudnn"} if dtype == "bfloat16" else both)
    assert all(not own for _, own in asked("cpu", quick=True))
