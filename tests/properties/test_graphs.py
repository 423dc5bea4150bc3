"""CUDA graphs: what is launched at once computes what is launched one by one.

Without a GPU the recording is imitated: what a graph does (it reads and writes where it was recorded, and what it gave
before is overwritten) is done by calling the function again. With one, everything is tried on it.
"""

import contextlib

import numpy as np
import pytest
import torch
from torch.utils import _pytree as trees

from common import backend, compare, params
from common.cases import CASES
from common.config import Execution, SamplingConfig, TrainConfig
from common.errors import UserError
from common.variants import MixtureOfExperts
from torch_impl import graphs

FAST = {"loss": "chunked", "norm": "fused", "optimizer": "fused"}
BOUND = 64 * compare.UNIT_ROUNDOFF["float32"]  # the same kernels, of which libraries may choose others for a stream
TRAIN = TrainConfig(steps=6, warmup_steps=1, learning_rate=1e-2, clip_norm=0.5)
GREEDY, DRAWN = SamplingConfig(12), SamplingConfig(12, temperature=0.9, top_k=20, seed=3)
PROMPTS = [[3, 1, 4, 1, 5]], [[3, 1, 4], [1]]


def imitated(function, device):
    """A graph on a CPU: every replay writes into the outputs of the first."""
    outputs = function()

    def launch():
        for held, new in zip(trees.tree_leaves(outputs), trees.tree_leaves(function()), strict=True):
            held.copy_(new)

    return launch, outputs


@pytest.fixture(params=["imitated", "cuda"])
def device(request, monkeypatch):
    if request.param == "cuda":
        if not any(found.startswith("cuda") for found in backend.load("torch").devices()):
            pytest.skip("this framework sees no GPU here")
        return "cuda"
    monkeypatch.setattr(graphs, "check", lambda execution: None)
    monkeypatch.setattr(graphs, "record", imitated)
    monkeypatch.setattr(graphs, "_aside", lambda device: contextlib.nullcontext())
    return "cpu"


@pytest.fixture
def pair(device, fresh_model):
    """pair(config, **execution): (a plain model, the same with graphs), each one's own."""

    def build(config, seed=0, dtype="float32", **execution):
        weights = params.randomise(config, seed)
        return [
            fresh_model("torch", config, dtype, weights, device=device, graphs=way, **execution)
            for way in ("none", "cuda")
        ]

    return build


def batch(config, rows, length, seed=0):
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (rows, length + 1)).astype(np.int32)
    return ids[:, :-1].copy(), ids[:, 1:].copy()


def close(got, want, bound=BOUND):
    assert compare.rms(got - want) <= bound * compare.rms(want)


@pytest.mark.parametrize("options", [{}, FAST], ids=["plain", "fast"])
def test_forward_and_loss_of_two_shapes_in_turn(pair, small, options):
    """What was returned stays as it was when the graph runs again."""
    plain, graphed = pair(small, **options)
    held = []
    for seed, shape in enumerate([(2, 8), (3, 5), (2, 8), (3, 5)]):
        ids, targets = batch(small, *shape, seed)
        held.append((graphed.forward(ids).logits, plain.forward(ids).logits))
        assert graphed.loss(ids, targets) == pytest.approx(plain.loss(ids, targets), rel=BOUND)
    positions = np.array([[-1, 0, 1, 2, 3], [0, 1, 2, 3, 4], [3, 4, 5, 6, 7]], np.int32)
    held.append((graphed.forward(ids, positions).logits[:, 1:], plain.forward(ids, positions).logits[:, 1:]))
    for got, want in held:
        close(got, want)
    assert (len(graphed.hidden.recordings), len(graphed.summed.recordings)) == (3, 2)  # positions of one row or of all


def test_what_a_task_gives_is_not_overwritten(pair, small):
    _, graphed = pair(small)
    ids, targets = batch(small, 2, 8)
    for task, name in (("forward", "logits"), ("gradients", "grad/model.norm.weight")):
        first = graphed.prepare(task, ids, targets)()[name]
        kept = first.clone()
        graphed.prepare(task, ids[:, ::-1], targets)()
        assert torch.equal(first, kept)


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-4)])  # AdamW makes rounding larger
@pytest.mark.parametrize("options", [{}, FAST], ids=["plain", "fast"])
def test_training_by_steps_of_two_shapes(pair, small, options, dtype, bound):
    """Losses, norms, weights; counts of targets and rates change from step to step, micro-batches share a count."""
    models = pair(small, dtype=dtype, **options)
    batches = [batch(small, 4, 8, 1), batch(small, 4, 8, 2), batch(small, 2, 6, 3), batch(small, 4, 8, 4)]
    batches[1][1][0] = -100  # fewer targets
    batches.append(tuple(np.stack([part, part[::-1]]) for part in batches[0]))
    for model in models:
        model.start_training(TRAIN)
    for inputs, targets in batches:
        want, got = (model.train_step(inputs, targets) for model in models)
        assert (got.loss, got.grad_norm) == pytest.approx((want.loss, want.grad_norm), rel=bound)
    table, (want, got) = params.table(small), [model.weights() for model in models]
    for name, weight in want.items():
        if not table[name].dead:
            close(got[name], weight, 10 * bound)
    assert len(models[1].clipped.recordings) == 3
    want, got = (model.gradients(*batches[0]) for model in models)
    for name, gradient in want.grads.items():
        if not table[name].dead:
            close(got.grads[name], gradient, 10 * bound)


@pytest.mark.parametrize("decode", ["plain", pytest.param("streamed", marks=pytest.mark.full)])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_decoding(pair, small, sampling, decode):
    """Tokens of texts one after the other: the second of a shape takes the graph of the first."""
    plain, graphed = pair(small, decode=decode)
    for prompts in (*PROMPTS, [[9, 8, 7, 6, 5]], PROMPTS[1]):
        assert graphed.generate(prompts, sampling) == plain.generate(prompts, sampling)
    assert len(graphed.served.model.recordings) == 2


def test_two_streams_and_two_models_by_turns(pair, small):
    """A stream under way keeps its graph for itself; one that ended, or that nobody holds, leaves it."""
    plain, graphed = pair(small)
    _, other = pair(small, seed=1)
    models = graphed, graphed, other
    prompts = [[3, 1, 4]], [[1, 5, 9]], [[3, 1, 4]]
    streams = [model.stream(prompt, GREEDY) for model, prompt in zip(models, prompts, strict=True)]
    rows = [[step[0] for step in steps] for steps in zip(*(list(zip(*streams, strict=True))), strict=True)]
    alone = [plain.generate(prompt, GREEDY)[0] for prompt in prompts[:2]]
    assert rows[:2] == alone
    assert rows[2] == other.generate(prompts[2], GREEDY)[0] != rows[0]
    assert len(graphed.served.model.recordings) == 2
    begun = graphed.stream(prompts[0], GREEDY)
    assert [next(begun)[0] for _ in range(4)] == alone[0][:4]
    del begun
    assert graphed.generate(prompts[1], GREEDY)[0] == alone[1]
    assert len(graphed.served.model.recordings) == 2


def test_decoding_between_steps_of_training(pair, small):
    """A step makes the model that decodes anew, in the middle of a text too."""
    texts = []
    for model in pair(small):
        model.start_training(TRAIN)
        stream, text = model.stream([[3, 1, 4]], GREEDY), []
        for step, tokens in enumerate(stream):
            text += tokens
            if step in (2, 5):
                model.train_step(*batch(small, 4, 8, step))
        texts.append((text, model.generate([[3, 1, 4]], GREEDY)))
    assert texts[0] == texts[1]


def test_the_task_that_goes_on_from_a_filled_cache(pair, small):
    plain, graphed = pair(small)
    ids = batch(small, 2, 6)[0]
    run = graphed.prepare("continue", ids, sampling=GREEDY)
    want = plain.prepare("continue", ids, sampling=GREEDY)()["tokens"]
    for _ in range(2):
        assert np.array_equal(run()["tokens"], want)


@pytest.mark.parametrize("name", ["gpt_today", "gpt_hybrid", "gpt_latent", "gpt_sparse", "gpt_sharing"])
def test_caches_of_other_kinds(pair, name):
    """Rings, latents and states of a recurrence, in place or not."""
    plain, graphed = pair(CASES[name].config.with_(dropout_embed=0.0, dropout_attn=0.0, dropout_shortcut=0.0))
    for prompts in ([[3, 1, 4, 1, 5]], [[2, 7]]):
        sampling = SamplingConfig(6)
        assert graphed.generate(prompts, sampling) == plain.generate(prompts, sampling)


def test_dropout_is_refused(pair, with_dropout):
    _, graphed = pair(with_dropout)
    graphed.start_training(TRAIN)
    with pytest.raises(UserError, match="draws no dropout"):
        graphed.train_step(*batch(with_dropout, 2, 6))
    assert np.isfinite(graphed.forward(batch(with_dropout, 2, 6)[0]).logits).all()


def test_old_recordings_go(pair, small, monkeypatch):
    monkeypatch.setattr(graphs, "KEPT", 2)
    plain, graphed = pair(small)
    for length in (3, 4, 5, 3):
        ids = batch(small, 1, length)[0]
        close(graphed.forward(ids).logits, plain.forward(ids).logits)
    assert len(graphed.hidden.recordings) == 2
    for rows in (1, 2, 3):
        graphed.generate([[1, 2]] * rows, SamplingConfig(3))
    assert len(graphed.served.model.recordings) == 2


def test_what_waits_for_the_device_is_refused_in_a_sentence(fresh_model, small):
    if not torch.cuda.is_available():
        pytest.skip("this framework sees no GPU here")
    config = small.with_(feed_forward=(MixtureOfExperts(4, 2),))
    model = fresh_model("torch", config, "float32", device="cuda", graphs="cuda")
    ids = batch(config, 2, 6)[0]
    with pytest.raises(UserError, match="cannot record this as a CUDA graph"):
        model.forward(ids)
    after = fresh_model("torch", small, "float32", device="cuda", graphs="cuda")
    assert np.isfinite(after.forward(ids).logits).all()


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("torch", {}, "run on a CUDA device, not on 'cpu'"),
        ("jax", {}, "is PyTorch's"),
        ("numpy", {"dtype": "float64"}, "leave graphs='cuda' out"),
    ],
)
def test_who_has_no_graphs_says_so(small, name, options, told):
    with pytest.raises(UserError, match=told):
        backend.load(name).build(small, params.initialise(small, 0), Execution(**options, graphs="cuda"))


def test_the_name_is_a_field_like_others():
    assert Execution(graphs="cuda").to_dict()["graphs"] == "cuda"
    assert Execution.from_dict(Execution(graphs="cuda").to_dict()).graphs == "cuda"
    with pytest.raises(UserError, match="did you mean 'cuda'"):
        Execution(graphs="cudaa")
