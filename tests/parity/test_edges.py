"""C7 holds for honest wings and notices what the edges are there for; the files can be used without any wing."""

import math
import shutil

import numpy as np
import pytest

from common import backend as door
from common import params, vectors
from common.config import Execution, SamplingConfig, TrainConfig, model_from_dict
from common.errors import UserError
from common.parity import edge_vectors, edges, run
from common.parity.adversarial import EDGES, FLAGS, scores
from common.parity.adversarial import training as training_edges
from common.parity.adversarial.edge import Edge
from common.parity.trial import Session, subjects

FEW = ("hidden scores 2e4 larger", "all labels ignored", "a row of padding", "the last slot of the cache", "mean 1000")


def rows(session, *names):
    chosen = [(edge, tier) for edge, tier in edges._chosen(session) if not names or edge.name in names]
    return [row for edge, tier in chosen for row in edges.tried(session, edge, tier)]


def failing(session, *names):
    """The edges of which a row fails."""
    return {row.what.split("/")[0] for row in rows(session, *names) if not row.passed}


def torch_session():
    return Session(subjects(("torch",)))


@pytest.mark.full
def test_torch_passes():
    found = run.run(torch_session(), [edges])
    assert found.passed, [(row.what, row.tier, row.errors, row.note) for row in found.failures]
    assert [entry["name"] for entry in found.exhibits["edges"]] == list(EDGES)


def test_jax_passes_a_few():
    session = Session(subjects(("jax",)), tiers=("float64",))
    assert not [(row.what, row.errors, row.note) for row in rows(session, *FEW) if not row.passed]


@pytest.mark.full
def test_both_pass():
    found = run.run(Session(subjects(("torch", "jax"))), [edges])
    assert found.passed, [(row.what, row.tier, row.errors, row.note) for row in found.failures]


@pytest.mark.full
def test_every_flag_is_used_and_every_result():
    assert {flag for edge in EDGES.values() for flag in edge.flags} == set(FLAGS)
    assert {edge.result for edge in EDGES.values()} == {"valid", "policy", "raises"}
    for edge in EDGES.values():
        sentences = [value for value in edges.truth(edge.name).values() if isinstance(value, str)]
        assert "not refused" not in sentences, edge.name
        assert sentences or edge.result != "raises", edge.name


def test_an_edge_with_a_wrong_flag_is_refused():
    with pytest.raises(ValueError, match="Degenerated"):
        Edge("x", ("Degenerated",), "", lambda build: {})
    with pytest.raises(ValueError, match="policy"):
        Edge("x", ("Tie",), "", lambda build: {}, result="policy")


# What the oracle says at the edges that mathematics or a written policy settles.


def test_the_policies_are_what_they_say():
    truth = edges.truth
    assert truth("all labels ignored")["loss"] == 0
    assert not truth("all labels ignored")["gradients"].any()
    bias = params.randomise(scores.CONFIG, 1)["model.layers.0.self_attn.o_proj.bias"]
    np.testing.assert_allclose(truth("a row of padding")["attention"][0], np.tile(bias, (3, 1)), rtol=1e-12)
    assert truth("a batch of no rows")["logits"].shape == (0, 5, 7)
    assert (truth("greedy among equals")["tokens"] == 1).all()
    assert (truth("two equal rows of a tied head")["tokens"] == 2).all()
    assert set(truth("a tie at the cut of top-k")["tokens"].ravel()) == {1, 3, 5}
    assert np.array_equal(truth("k > V")["tokens"], truth("k = V")["tokens"])
    spoilt = np.isnan(truth("NaN in one token")["logits"])
    assert spoilt[0].all()
    assert not spoilt[1].any()
    assert np.isinf(truth("an infinite weight in the head")["logits"][..., 2]).all()
    assert (truth("the smallest model")["gradients"] == 0).all()
    assert np.array_equal(truth("gradients of zero")["norms"], [0, 0])


def test_scores_that_are_shifted_alike_give_the_same():
    """Three edges have the same scores but for a constant; softmax must not see it."""
    shifted = [edges.truth(f"scores shifted by {by}")["output"] for by in ("-2e4", "2e4")]
    np.testing.assert_allclose(shifted[0], shifted[1], rtol=1e-12)


def test_the_norm_at_the_limit_is_the_limit():
    norm = edges.truth("no clipping")["norms"][0]
    assert math.isclose(norm, training_edges.NORM, rel_tol=1e-11)
    tiny, huge = (edges.truth(f"gradients of {size}")["norms"][0] for size in ("1e-12", "1e12"))
    assert tiny < 1e-11
    assert huge > 1e11


# Planted faults.


def planted_mask(monkeypatch, hide, empty_rows=True):
    """Replace the masking of scores in the PyTorch wing by `hide(scores, mask)`; without care for rows that see nothing
    if asked for.
    """
    import torch

    import torch_impl.attention.kernels as kernels

    def attention(q, k, v, mask, reduce, rate=0.0, key=None, taps=lambda name, value: value):
        scores = hide(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), mask)
        weights = taps("weights", torch.softmax(taps("scores", scores), -1))
        return torch.where(mask.any(-1, keepdim=True), weights @ v, 0.0) if empty_rows else weights @ v

    monkeypatch.setitem(kernels.KERNELS, "plain", attention)


def test_a_mask_that_writes_a_finite_number_is_noticed(monkeypatch):
    import torch

    planted_mask(monkeypatch, lambda scores, mask: torch.where(mask, scores, -1e4))
    assert failing(torch_session(), "scores shifted by -2e4", "all scores equal") == {"scores shifted by -2e4"}


def test_a_mask_that_adds_a_finite_number_is_noticed(monkeypatch):
    import torch

    planted_mask(monkeypatch, lambda scores, mask: scores + torch.where(mask, 0.0, -1e4))
    assert failing(torch_session(), "scores shifted by -2e4", "hidden scores 2e4 larger") == {
        "hidden scores 2e4 larger"
    }


def test_a_row_of_padding_that_becomes_nan_is_noticed(monkeypatch):
    planted_mask(monkeypatch, lambda scores, mask: scores.masked_fill(~mask, -math.inf), empty_rows=False)
    assert failing(torch_session(), "a row of padding", "all scores equal") == {"a row of padding"}


def test_labels_that_are_counted_from_the_end_are_noticed(monkeypatch):
    import torch_impl.loss as own

    honest = own.token_loss
    monkeypatch.setattr(
        own, "token_loss", lambda logits, targets: honest(logits, targets.where(targets >= 0, targets + 131))
    )
    session = torch_session()
    assert failing(session, "ignored labels in a large vocabulary") == {"ignored labels in a large vocabulary"}


def test_a_fast_variance_is_noticed_in_float32(monkeypatch):
    import torch_impl.layers as layers

    def norm(self, x):
        mean, square = x.mean(-1, keepdim=True), (x * x).mean(-1, keepdim=True)
        return (x - mean) / (square - mean * mean + 1e-9).sqrt() * self.weight + self.bias

    monkeypatch.setattr(layers.LayerNorm, "forward", norm)
    found = {(row.what.split("/")[0], row.tier) for row in rows(torch_session(), "mean 1000") if not row.passed}
    assert ("mean 1000", "float32") in found


def test_clipping_that_scales_up_is_noticed(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "clamp", lambda x, max: x)
    assert "gradients of 1e-12" in failing(torch_session(), "gradients of 1e-12")


class Lenient:
    """The PyTorch wing without the checks of the door on caches and positions."""

    def __init__(self, monkeypatch, *checks):
        self._wing = door.load("torch")
        for check in checks:
            monkeypatch.setattr(door, check, lambda *args: None)

    def __getattr__(self, name):
        return getattr(self._wing, name)


def test_a_full_cache_that_is_written_past_its_end_is_noticed(monkeypatch):
    edges.truth("the last slot of the cache")  # the oracle's answer, before the check is gone
    session = Session({"torch": Lenient(monkeypatch, "check_room")})
    found = [row for row in rows(session, "the last slot of the cache") if not row.passed]
    assert found


def test_an_error_of_a_wing_is_a_failed_row_with_its_words():
    class Broken:
        def build(self, config, weights, execution):
            raise RuntimeError("no such\nkernel")

    found = rows(Session({"torch": Broken()}, tiers=("float64",)), "k = 1", "mean 1000", "beyond the context")
    assert found
    assert all(not row.passed and "RuntimeError: no such kernel" in row.note for row in found)


# The files.


@pytest.mark.full  # number by number, which the certificate does too
def test_the_files_are_what_the_oracle_says():
    assert edge_vectors.stale(vectors.FOLDER) == []


@pytest.mark.full
def test_the_files_are_written_the_same_each_time_and_are_small(tmp_path):
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        edge_vectors.write(tmp_path / folder)
    for name in (edge_vectors.RECIPE, edge_vectors.DATA):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name
        assert (vectors.FOLDER / name).stat().st_size < 200_000, name


@pytest.mark.full
def test_damaged_and_outdated_files_are_noticed(tmp_path):
    with pytest.raises(UserError, match=r"lack edges\.json"):
        edge_vectors.read(tmp_path)
    for name in (edge_vectors.RECIPE, edge_vectors.DATA):
        shutil.copy(vectors.FOLDER / name, tmp_path)
    recipe = tmp_path / edge_vectors.RECIPE
    text = recipe.read_text()
    recipe.write_text(text.replace("softmax does not see a shift", "softmax sees a shift"))
    assert edge_vectors.stale(tmp_path) == ["the recipe of 'scores shifted by -2e4' differs"]
    recipe.write_text(text[:-9])
    with pytest.raises(UserError, match=r"edges\.json is damaged"):
        edge_vectors.read(tmp_path)
    recipe.write_text(text)
    data = bytearray((tmp_path / edge_vectors.DATA).read_bytes())
    data[-1] ^= 1
    (tmp_path / edge_vectors.DATA).write_bytes(data)
    with pytest.raises(UserError, match="its hash"):
        edge_vectors.read(tmp_path)


def replay(test, recipe, arrays):
    """Repeat the calls of a stored edge through the oracle's door; the last result of every kind of call."""
    models, caches, found = {}, [], {}
    for call in test["calls"]:
        number = call["model"]
        if call["call"] == "build":
            models[number] = rebuilt(test, number, recipe, arrays)
            continue
        args, kwargs = [], {}
        for value in call["arguments"]:
            if isinstance(value, dict) and value.keys() & {"positions", "taps", "step"}:
                kwargs |= value
            elif isinstance(value, dict) and "cache" in value and isinstance(value["cache"], int) and len(value) == 1:
                args.append(caches[value["cache"]])
            elif isinstance(value, dict) and "max_new_tokens" in value:
                args.append(SamplingConfig(**value))
            elif isinstance(value, dict) and "adam_eps" in value:
                args.append(TrainConfig(**value))
            elif isinstance(value, list) and call["call"] in ("forward", "extend", "gradients", "loss", "train_step"):
                args.append(np.array(value))
            else:
                args.append(np.array(value) if call["call"] == "component" and isinstance(value, list) else value)
        result = getattr(models[number], call["call"])(*args, **kwargs)
        if call["call"] == "new_cache":
            caches.append(result)
        found[call["call"]] = result
    return found


def rebuilt(test, number, recipe, arrays):
    """A model from the base weights and those that the edge sets itself."""
    model, base = test["models"][number], recipe["bases"][test["models"][number]["base"]]
    weights, at = {}, 0
    for name, shape in base["parameters"].items():
        weights[name] = arrays[f"base/{model['base']}"][at : at + math.prod(shape)].reshape(shape)
        at += math.prod(shape)
    weights |= {name: arrays[f"{test['name']}/weight/{number}/{name}"] for name in model["changed"]}
    return door.load("numpy").build(model_from_dict(base["config"]), weights, Execution(dtype="float64"))


@pytest.mark.full
def test_the_files_suffice_to_repeat_an_edge():
    """Nothing but recipe and tensors: outputs of components, logits, losses and tokens come out as stored."""
    recipe, arrays = edge_vectors.read(vectors.FOLDER)
    kinds = {"output": "component", "logits": "forward", "loss": "gradients", "tokens": "generate"}
    seen = set()
    for test in recipe["tests"]:
        if test["refused"] or not (set(test["expected"]) & set(kinds)):
            continue
        with np.errstate(all="ignore"):
            found = replay(test, recipe, arrays)
        for name, call in kinds.items():
            if name in test["expected"] and call in found and found[call] is not None:
                want = arrays[f"{test['name']}/expected/{name}"]
                got = {"component": lambda r: r[0], "forward": lambda r: r.logits, "gradients": lambda r: r.value}
                got = got.get(call, lambda r: r)(found[call])
                if name == "tokens":
                    got = [row + [-1] * (want.shape[1] - len(row)) for row in got]
                np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-300, err_msg=f"{test['name']}/{name}")
                seen.add((name, call))
    assert seen == set(kinds.items())
