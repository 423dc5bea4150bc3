"""Fused attention runs the kernels that are asked for, without a mask where none is needed, and refuses the rest.

What a GPU would do is played as far as the frameworks' own checks and the compiler's front go.
"""

import numpy as np
import pytest

from common import backend, compare, params
from common.decoding import padded
from common.errors import UserError

DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def batch(tokens):
    """A padded batch: (ids, positions)."""
    return padded([tokens(8, seed=1).tolist(), tokens(5, seed=2).tolist()])


def handed_on(monkeypatch, wing):
    """What the framework's attention is called with from now on, a dictionary for each call."""
    import jax
    from torch.nn import functional

    known = {"torch": (functional, "scaled_dot_product_attention"), "jax": (jax.nn, "dot_product_attention")}
    owner, name = known[wing]
    calls, honest = [], getattr(owner, name)

    def watched(*args, **options):
        calls.append(options)
        return honest(*args, **options)

    monkeypatch.setattr(owner, name, watched)
    return calls


UNJITTED = {"torch": {}, "jax": {"compile": False}}  # so that every call is seen


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_count_hand_on_no_mask_and_others_do(model_of, batch, tokens, wing, dtype, monkeypatch):
    """A kernel that knows how to leave out later keys need not be given all T x S of them: forward, loss, gradients.
    Padding, a cache and positions that start later need the mask."""
    model, (ids, positions) = model_of(wing, dtype=dtype, attention="fused", **UNJITTED[wing]), batch
    rows, targets = tokens(2, 2, 8)
    counted = np.arange(8, dtype=np.int32)[None].repeat(2, 0)
    calls = handed_on(monkeypatch, wing)
    for call in (
        lambda: model.forward(rows),
        lambda: model.forward(rows, counted),
        lambda: model.loss(rows, targets),
        lambda: model.gradients(rows, targets),
        lambda: model.component("model.layers.0.self_attn", np.ones((2, 8, 32)), np.ones((2, 8, 32))),
    ):
        call()
        assert calls
        assert all(options.get("is_causal") and not {"mask", "attn_mask"} & set(options) for options in calls)
        calls.clear()
    for call in (
        lambda: model.forward(ids, positions),
        lambda: model.forward(rows, counted + 1),
        lambda: model.extend(model.new_cache(2, 8), rows),
    ):
        call()
        assert calls
        assert all({"mask", "attn_mask"} & set(options) and not options.get("is_causal") for options in calls)
        calls.clear()


@pytest.mark.full_for("jax")
@pytest.mark.parametrize(("wing", "dtype", "free"), [("torch", "float64", 1e-14), ("jax", "float32", 1e-6)])
def test_without_a_mask_the_same_is_computed(model_of, tokens, small, wing, dtype, free, monkeypatch):
    """The two ways into one kernel, and plain attention, beside each other."""
    ids, targets, config = *tokens(2, 2, 8), small.with_(num_layers=1)
    plain = model_of(wing, config, dtype).gradients(ids, targets)
    ways = [model_of(wing, config, dtype, attention="fused").gradients(ids, targets)]
    monkeypatch.setattr(backend, "places", lambda positions, config, execution: positions)
    ways += [model_of(wing, config, dtype, attention="fused").gradients(ids, targets)]
    for name, parameter in params.table(config).items():
        for found in ways:
            assert parameter.dead or compare.difference(name, found.grads[name], plain.grads[name]).relative < 10 * free
    assert [found.value for found in ways] == pytest.approx([plain.value] * 2, rel=free)


def test_no_kernel_of_pytorch_that_holds_all_scores_may_run():
    """On a GPU: in 16 bits without a mask flash attention or cuDNN; never the plain operations."""
    import torch
    from torch.nn.attention import SDPBackend

    from torch_impl.attention.kernels import _allowed

    for device in ("cpu", "cuda"):
        for kind in (torch.float64, torch.float32, torch.bfloat16):
            for masked in (False, True):
                allowed = _allowed(device, kind, masked)
                assert allowed
                assert SDPBackend.MATH not in allowed
    flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    assert _allowed("cuda", torch.bfloat16, False) == [flash, cudnn]
    assert flash not in _allowed("cuda", torch.bfloat16, True)  # it takes no mask


@pytest.mark.parametrize("masked", [False, True])
def test_the_kernels_are_pinned_while_attention_runs_and_free_again_after(masked, monkeypatch):
    import torch
    from torch.nn import attention, functional

    from torch_impl.attention import kernels

    q, mask = torch.ones(1, 2, 4, 8), torch.ones(1, 1, 4, 4, dtype=torch.bool).tril() if masked else None
    before, during = attention._cur_sdpa_kernel_backends(), []
    honest = functional.scaled_dot_product_attention

    def watched(*args, **options):
        during.append(attention._cur_sdpa_kernel_backends())
        return honest(*args, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    kernels.fused_attention(q, q, q, mask, torch.float32)
    assert during == [[attention.SDPBackend.FLASH_ATTENTION]]
    assert attention._cur_sdpa_kernel_backends() == before


def test_what_no_fused_kernel_of_pytorch_computes_is_refused(monkeypatch):
    """Values of another size than keys, for which PyTorch would take its plain operations; a kernel that is not there;
    and a GPU's words for it. Other faults stay what they are."""
    import torch
    from torch.nn import functional
    from torch.nn.attention import SDPBackend

    from torch_impl.attention import kernels

    q, v = torch.ones(1, 2, 4, 8), torch.ones(1, 2, 4, 6)
    with pytest.raises(UserError, match=r"no fused attention for torch.float32 on cpu with heads of 8 \(FLASH"):
        kernels.fused_attention(q, q, v, None, torch.float32)
    assert functional.scaled_dot_product_attention(q, q, v, is_causal=True).shape == v.shape  # PyTorch by itself
    monkeypatch.setattr(kernels, "_allowed", lambda *asked: [SDPBackend.CUDNN_ATTENTION])
    with pytest.raises(UserError, match=r"\(CUDNN_ATTENTION\): use attention='plain'"):
        kernels.fused_attention(q, q, q, None, torch.float32)

    def fails(words):
        def attention(*args, **options):
            raise RuntimeError(words)

        monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)

    fails("No available kernel. Aborting execution.")
    with pytest.raises(UserError, match="use attention='plain'"):
        kernels.fused_attention(q, q, q, None, torch.float32)
    fails("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        kernels.fused_attention(q, q, q, None, torch.float32)


def test_the_kernels_of_a_gpu_are_named_with_a_mask_and_without():
    """There these are two, and either may be missing: then the call itself says why."""

    def refuses(masked):
        if masked:
            raise UserError("no")
        return "flash_attention"

    found = backend.kernel_names(lambda masked: "efficient_attention" if masked else "flash_attention")
    assert found == {"kernel": "flash_attention; with a mask efficient_attention"}
    assert backend.kernel_names(refuses) == {"kernel": "flash_attention; with a mask none"}
    found = backend.kernel_names(lambda masked: refuses(not masked))
    assert found == {"kernel": "none; with a mask flash_attention"}


def test_pinned_attention_can_be_compiled():
    """In one piece, by the compiler's front alone."""
    import torch

    from torch_impl.attention.kernels import fused_attention

    q = torch.linspace(-1, 1, 64).reshape(1, 2, 4, 8)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    compiled = torch.compile(fused_attention, backend="eager", fullgraph=True)
    for given in (None, mask):
        want = fused_attention(q, q, q, given, torch.float32)
        torch.testing.assert_close(compiled(q, q, q, given, torch.float32), want, rtol=0, atol=0)


@pytest.fixture
def cudnn(monkeypatch):
    """JAX as it is on a GPU while it traces: cuDNN 9.19 on a device of capability 9.0."""
    import jax._src.cudnn.fused_attention_stablehlo as fused

    from jax_impl.attention import kernels

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91900)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: float(capability) <= 9.0)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0")
    monkeypatch.setattr(kernels, "_kernel", lambda kind: "cudnn")


def lowered_for_cuda(function, *shapes):
    import jax

    args = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in shapes]
    return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("length", [8, 7], ids=["even", "odd"])
@pytest.mark.parametrize(("masked", "told", "not_told"), [(False, "CAUSAL", "Bias"), (True, "Bias", "CAUSAL")])
def test_jax_becomes_a_call_of_cudnn_on_a_gpu(cudnn, masked, told, not_told, length):
    """Forward and backward; without a mask cuDNN is told that it is causal, with one it gets a dense bias. Its way back
    takes even lengths alone."""
    import jax
    import jax.numpy as jnp

    from jax_impl.attention.kernels import fused_attention

    def loss(q, mask):
        return fused_attention(q, q, q, mask if masked else None, jnp.float32).astype(jnp.float32).sum()

    shapes = ((2, 3, length, 16), jnp.bfloat16), ((2, 1, length, length), bool)
    text = lowered_for_cuda(jax.grad(loss), *shapes)
    calls = [line for line in text.splitlines() if "cudnn" in line]
    assert len(calls) >= 2
    assert any("Backward" in line for line in calls)
    assert all(told in line and not_told not in line for line in calls), calls


@pytest.mark.full
def test_an_odd_length_is_filled_up_for_cudnn(monkeypatch):
    """With what nobody sees: the same as without, played by XLA."""
    import jax
    import jax.numpy as jnp

    from jax_impl.attention import kernels

    attend, asked = jax.nn.dot_product_attention, []

    def played(q, k, v, implementation, **how):
        asked.append((q.shape[1], k.shape[1]))
        return attend(q, k, v, implementation="xla", **how)

    (q, k, v), mask = (np.random.default_rng(2).standard_normal((3, 2, 3, 7, 16)), np.tri(7, dtype=bool)[None, None])
    q, k, v = (jnp.asarray(x, jnp.float32) for x in (q, k, v))
    want = [kernels.fused_attention(q, k, v, given, jnp.float32) for given in (None, mask)]
    monkeypatch.setattr(kernels, "_kernel", lambda kind: "cudnn")
    monkeypatch.setattr(jax.nn, "dot_product_attention", played)
    got = [kernels.fused_attention(q, k, v, given, jnp.float32) for given in (None, mask)]
    assert asked == [(8, 8)] * 2
    for ours, true in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, true, atol=1e-6)


def test_jax_refuses_what_cudnn_cannot_compute_and_a_gpu_without_it(cudnn, monkeypatch):
    """Heads whose size it has no kernel for, and a machine where it is not installed."""
    import jax._src.cudnn.fused_attention_stablehlo as fused
    import jax.numpy as jnp

    from jax_impl.attention.kernels import fused_attention

    with pytest.raises(UserError, match=r"cuDNN's attention cannot compute this: .*multiple of 8, but got 6"):
        lowered_for_cuda(lambda q: fused_attention(q, q, q, None, jnp.float32), ((1, 2, 8, 6), jnp.bfloat16))

    def missing():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(fused, "check_cudnn_version", missing)
    with pytest.raises(UserError, match=r"cuDNN is not detected. Use attention='plain'"):
        lowered_for_cuda(lambda q: fused_attention(q, q, q, None, jnp.float32), ((1, 2, 8, 16), jnp.bfloat16))


def test_jax_takes_cudnn_where_the_model_is_on_a_gpu_in_16_bits(monkeypatch):
    """The model's own device decides, not the best one of the machine."""
    import jax
    import jax.numpy as jnp

    from jax_impl.attention.kernels import _kernel

    assert _kernel(jnp.bfloat16) == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [_kernel(kind) for kind in (jnp.bfloat16, jnp.float16, jnp.float32)] == ["cudnn", "cudnn", "xla"]
    with jax.default_device(jax.devices("cpu")[0]):
        assert _kernel(jnp.bfloat16) == "xla"
