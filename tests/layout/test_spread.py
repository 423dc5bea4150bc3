"""Runs that are spread over processes and devices follow the run in one process; lost workers go on."""

import pytest
from spreading import (
    CONFIG,
    DROPPING,
    FIRST,
    LORA,
    NF4,
    SINGLE,
    by_one,
    by_two,
    check,
    follow,
    log_of,
    losing_a_worker,
)

TODAY = {
    "attention": [
        {"kind": "grouped_query", "num_kv_heads": 2, "rotary": {}, "gate": True, "qk_norm": "head"},
        {"kind": "latent", "rank": 8},
    ],
    "feed_forward": [{"kind": "gated_mlp"}, {"kind": "mixture_of_experts", "num_experts": 4, "top_k": 2}],
    "activation": "silu",
}
CHOOSING = {
    "attention": [{"kind": "sparse", "num_kv_heads": 2, "top_k": 4}],
    "feed_forward": [{"kind": "mixture_of_experts", "num_experts": 4, "top_k": 2, "choice_bias": True}],
    "activation": "silu",
}
BALANCING = {  # what layers add to the loss
    "attention": [{"kind": "sparse", "num_kv_heads": 2, "top_k": 4, "index_loss": 0.5}],
    "feed_forward": [{"kind": "mixture_of_experts", "num_experts": 4, "top_k": 2, "balance": 0.3}],
    "activation": "silu",
}
SHARING = [{"kind": "grouped_query", "num_kv_heads": 2, "shares": shares} for shares in (False, True)]
OWN = {"norm": "fused", "optimizer": "fused"}
FAST = {"torch": {"loss": "chunked", **OWN}, "jax": {"layers": "checkpointed"}}


@pytest.mark.full_for("data=2", "tensor=2-", "all", "balancing")  # test_tuning.py takes tensor=2
@pytest.mark.parametrize(
    ("layout", "model"),
    [
        ("data=2", DROPPING),
        ("shard=2", DROPPING),
        ("tensor=2", {**TODAY, **DROPPING}),
        ("data=2,shard=2", DROPPING),
        ("data=2,tensor=2", {**TODAY, **DROPPING}),
        ("data=2", CHOOSING),
        ("shard=2,tensor=2", {**TODAY, **DROPPING}),
        ("data=2", BALANCING),
        ("shard=2", BALANCING),
        ("data=2,shard=2", BALANCING),
    ],
    ids=[
        "data=2-", "shard=2-", "tensor=2-", "data=2,shard=2", "data=2,tensor=2", "data=2-choosing", "all",
        "data=2-balancing", "shard=2-balancing", "both-balancing",
    ],
)  # fmt: skip
def test_pytorchs_processes_follow_one(layout, model):
    processes = 4 if "," in layout else 2
    check(follow("torch", layout, processes, model=model))


@pytest.mark.full  # in one process: tests/properties/test_rungs.py
@pytest.mark.parametrize(
    ("layout", "model"),
    [
        ("data=2", DROPPING),
        ("shard=2", {**DROPPING, "attention": SHARING}),
        ("tensor=2", {**TODAY, **DROPPING}),
        ("shard=2,tensor=2", {**TODAY, **DROPPING}),
        ("shard=2", BALANCING),
    ],
    ids=["data=2", "shard=2", "tensor=2", "both", "shard=2-balancing"],
)
def test_pytorchs_checkpointed_blocks_follow_one(layout, model):
    """Blocks that are called again on the way back find their shards and draw what they drew."""
    processes = 4 if "," in layout else 2
    check(follow("torch", layout, processes, model=model, execution={"layers": "checkpointed"}))


@pytest.mark.full
@pytest.mark.parametrize(
    ("layout", "model"),
    [
        ("data=2", {**DROPPING, "adapters": [FIRST], "tie_embeddings": False}),
        ("data=2", CHOOSING),
        ("shard=2", {**DROPPING, "adapters": [FIRST], "tie_embeddings": False}),
        ("shard=2", {**DROPPING, "attention": SHARING}),
        ("data=2,shard=2", DROPPING),
    ],
    ids=["data=2-", "data=2-choosing", "shard=2-adapters", "shard=2-sharing", "both"],
)
def test_pytorchs_compiled_blocks_follow_one(layout, model):
    processes = 4 if "," in layout else 2
    check(follow("torch", layout, processes, model=model, execution={"compile": True}), filled=1.01)


@pytest.mark.full
@pytest.mark.parametrize("layout", ["data=2", "shard=2"])
def test_pytorchs_compiled_blocks_on_a_base_in_4_bits_follow_one(layout):
    check(follow("torch", layout, 2, model=LORA, execution={"compile": True, **NF4}), least=0.94, filled=1.03)


@pytest.mark.full
@pytest.mark.parametrize("layout", ["data=2", "shard=2", "tensor=2", "shard=2,tensor=2"])
@pytest.mark.parametrize("train", [{"clip_norm": 0.1, "clip_from": 1}, {"optimizer": "muon"}], ids=["adamw", "muon"])
def test_pytorchs_fast_forms_follow_one_in_float32(layout, train):
    processes = 4 if "," in layout else 2
    check(follow("torch", layout, processes, execution=FAST["torch"], train=train, dtype="float32"), SINGLE)


@pytest.mark.full_for("data=8", "tensor", "eight", "four", "own")  # what is left compiles least
@pytest.mark.parametrize(
    ("layout", "model", "execution", "train"),
    [
        ("data=2,shard=2", {"num_layers": 1}, {}, {}),
        ("data=8", DROPPING, {}, {"batch_size": 8}),
        ("shard=4,tensor=2", TODAY, {"layers": "loop"}, {"batch_size": 8}),
        ("data=2,tensor=4", {}, FAST["jax"], {"optimizer": "muon"}),
        ("data=2,shard=2,tensor=2", DROPPING, {"layers": "scan"}, {}),
        ("shard=2,tensor=2", {}, FAST["jax"], {}),
        ("shard=2,tensor=2", TODAY, OWN, {"optimizer": "muon"}),
        ("data=2,shard=2", {}, {"layers": "scan", **OWN}, {}),
    ],
    ids=["data=2,shard=2", "data=8", "shard=4,tensor=2", "data=2,tensor=4", "eight", "four", "own and muon", "own"],
)
def test_devices_of_jax_follow_one(layout, model, execution, train):
    check(follow("jax", layout, model=model, execution=execution, train=train))


@pytest.mark.full
@pytest.mark.parametrize("layout", ["data=2", "shard=2,tensor=2"])
def test_two_processes_of_jax_follow_one(layout):
    check(follow("jax", layout, 2, model=DROPPING))


@pytest.mark.parametrize(
    ("backend", "layout", "model", "execution", "words"),
    [
        ("torch", "data=2", {}, {}, "needs 2 processes, and 1 run"),
        ("torch", "tensor=2", {}, {"projections": "joined"}, "reads matrices that tensor parallelism cuts"),
        ("torch", "tensor=2", {}, {"compile": True}, "does not get through cut maps"),
        ("torch", "data=2", {}, {"rng": "native"}, "draws the same for the rows of every process"),
        ("torch", "data=2", BALANCING, {"compile": True}, "leave out compile"),
        ("jax", "data=2", {}, {"device": "cuda"}, "A layout of JAX is on cpu, or on cuda"),
        ("jax", "data=64", {}, {}, "needs 64 devices, and JAX sees"),
        ("jax", "data=2", {}, {"rng": "native"}, "rng='native' is for one device"),
        ("jax", "data=2", {}, {"compile": False}, "needs compiled programs"),
        ("jax", "tensor=3", {}, {}, "4 heads of layer 0 cannot be dealt out equally to tensor = 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_spread_is_refused(backend, layout, model, execution, words):
    from common import backend as door
    from common import params
    from common.config import Execution, model_from_dict
    from common.errors import UserError

    config = model_from_dict({**CONFIG, **model})
    with pytest.raises(UserError) as refused:
        door.load(backend).build(config, params.initialise(config, 0), Execution(layout=layout, **execution))
    assert words in str(refused.value)


TRAIN = ["--preset", "nano", "--length", "32", "--batch-size", "4", "--dropout", "0.1", "--learning-rate", "0.003"]
TRAIN += ["--steps", "24", "--eval-every", "8", "--save-every", "4", "--sample-every", "6", "--dtype", "float64"]


def losses(folder):
    return [line["loss"] for line in log_of(folder)]


def samples(folder):
    return [line.get("sample") for line in log_of(folder)]


@pytest.mark.full
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_lost_worker_is_started_again_and_goes_on(tmp_path, backend, call):
    """By torchrun, from the last checkpoint; the curve is that of one process which nobody disturbed."""
    assert call("train", *TRAIN, "--backend", backend, "--out", tmp_path / "one")[0] == 0
    out = tmp_path / "two"
    words = losing_a_worker("train", *TRAIN, "--backend", backend, "--layout", "shard=2", out=out)
    assert losses(out) == pytest.approx(losses(tmp_path / "one"), rel=1e-9)
    assert samples(out) == samples(tmp_path / "one")
    assert "steps 0 to 24" in words
    assert any(f"steps {step} to 24" in words for step in range(4, 24, 4))


@pytest.mark.full
def test_a_run_changes_its_layout_and_its_framework(tmp_path, call):
    """Checkpoints do not depend on the layout: two processes begin, eight devices of the other framework end."""
    assert call("train", *TRAIN, "--out", tmp_path / "one")[0] == 0
    out = tmp_path / "two"
    by_two("train", *TRAIN, "--layout", "shard=2", "--until", "10", "--out", out)
    second = ["train", "--resume", out, "--backend", "jax", "--layout", "data=2,shard=2,tensor=2"]
    by_one(*second)
    assert losses(out) == pytest.approx(losses(tmp_path / "one"), rel=1e-9)
    assert samples(out) == samples(tmp_path / "one")


def test_what_is_started_again_with_other_settings_is_refused(call, tmp_path):
    out = tmp_path / "run"
    few = ["--preset", "nano", "--length", 16, "--batch-size", 2, "--steps", 2, "--eval-every", 2, "--out", out]
    assert call("train", *few)[0] == 0
    code, text, _ = call("train", *few, "--auto-resume")
    assert (code, "Step 2 of 2" in text) == (0, True)
    code, _, err = call("train", *few, "--auto-resume", "--learning-rate", 0.5)
    assert code == 2
    assert "holds a run with other settings: --learning-rate is 0.5, and was 0.001" in err
    code, _, err = call("train", *few[:4], *few[6:], "--auto-resume")  # what is left out counts too
    assert code == 2
    assert "--batch-size is 8, and was 2" in err
    code, _, err = call("train", "--resume", out, "--out", tmp_path / "other", "--until", 2)
    assert "nothing left to do" in err
    assert not (tmp_path / "other").exists()
    (out / "settings.toml").unlink()
    code, _, err = call("train", *few, "--auto-resume")
    assert (code, "without settings.toml; go on with --resume" in err) == (2, True)
    code, _, err = call("train", *few)
    assert code == 2
    assert "already holds a run" in err


def test_a_restarted_worker_goes_on_where_it_was(call, tmp_path, monkeypatch):
    """Also where the run was taken over from another folder; and what is done is done."""
    one, two = tmp_path / "one", tmp_path / "two"
    few = ["--preset", "nano", "--length", 16, "--batch-size", 2, "--steps", 4, "--eval-every", 2]
    assert call("train", *few, "--out", one, "--until", 2)[0] == 0
    assert call("train", "--resume", one, "--out", two, "--until", 3)[0] == 0
    code, _, err = call("train", "--resume", one, "--out", two)
    assert (code, "already holds a run" in err) == (2, True)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    code, _, err = call("train", "--resume", one, "--out", two)
    assert (code, "steps 3 to 4" in err) == (0, True)
    code, out, _ = call("train", "--resume", one, "--out", two)
    assert (code, "Step 4 of 4" in out) == (0, True)
    code, _, err = call("train", *few, "--learning-rate", 0.5, "--out", one)
    assert (code, "holds a run with other settings" in err) == (2, True)


def test_a_layout_that_does_not_fit_is_refused_before_anything_is_written(call, tmp_path):
    for layout, words in (("data=3", "cannot be dealt out equally"), ("dat=2", "did you mean 'data'")):
        code, _, err = call("train", "--layout", layout, "--out", tmp_path / "run")
        assert code == 2
        assert words in err
        assert not (tmp_path / "run").exists()
