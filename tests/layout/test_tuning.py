"""Fine-tuning that is spread over processes and devices follows fine-tuning in one, and goes on in another layout."""

import json

import numpy as np
import pytest
from spreading import DROPPING, EXACT, FIRST, LORA, NF4, by_one, by_two, check, follow, log_of, losing_a_worker

from common import params
from common.config import GPTConfig, TrainConfig
from common.weights.checkpoint import load_checkpoint, save_checkpoint

DORA = {"adapters": [{"targets": ["*"], "rank": 4, "dora": True}], "tie_embeddings": False}
SECOND = {"name": "second", "targets": ["*.o_proj", "*.up_proj", "*.v_proj"], "rank": 3, "dropout": 0.3, "rslora": True}
BOTH = {"adapters": [FIRST, SECOND], "tie_embeddings": False, "qkv_bias": True, **DROPPING}
LABELS = {"num_labels": 3, "pooling": "mean", "causal": False}
JUDGE = {**LABELS, "adapters": [{"targets": ["*_proj", "score"], "rank": 4, "alpha": 1.0, "dropout": 0.2}]}
LAST = {"trained": ["model.layers.1.*", "model.norm.*", "score.*"]}
PART = {"trained": ["model.layers.2.*", "model.norm.*", "score.*"]}
DOUBLE = {"base": "nf4_double"}


TUNING = {
    "lora data=2": ("data=2", LORA, {}, None),
    "dora shard=2": ("shard=2", DORA, {}, None),
    "labels data=2": ("data=2", LABELS, LAST, None),
    "labels shard=2": ("shard=2", LABELS, LAST, None),
    "pairs data=2": ("data=2", LORA, {}, {"loss": "dpo"}),
    "pairs shard=2": ("shard=2", {}, {}, {"loss": "simpo", "beta": 2.0}),
    "both tensor=2": ("tensor=2", BOTH, {}, None),
    "muon tensor=2": ("tensor=2", DORA, {"optimizer": "muon"}, None),
    "labels tensor=2": ("tensor=2", JUDGE, {}, None),
    "last labels tensor=2": ("tensor=2", JUDGE, LAST, None),
    "pairs tensor=2": ("tensor=2", LORA, {}, {"loss": "dpo"}),
    "both data=2,tensor=2": ("data=2,tensor=2", BOTH, {}, None),
    "both shard=2,tensor=2": ("shard=2,tensor=2", BOTH, {}, None),
}


@pytest.mark.full_for("dora", "labels", "shard=2", "-lora", "muon", "pairs", "data=2,tensor", "jax-")
@pytest.mark.parametrize("name", TUNING)
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_fine_tuning_follows_one(backend, name):
    layout, model, train, preference = TUNING[name]
    processes = 1 if backend == "jax" else 4 if "," in layout else 2
    found = follow(backend, layout, processes, model=model, train=train, preference=preference)
    check(found, filled=1.01)  # FSDP fills up a head of three labels


QUANTISED = {
    "data": ("data=2", LORA, DOUBLE),
    "shard": ("shard=2", BOTH, NF4),
    "tensor": ("tensor=2", BOTH, NF4),
    "tensor double": ("tensor=2", LORA, DOUBLE),
    "hybrid": ("data=2,shard=2", LORA, DOUBLE),
    "all": ("shard=2,tensor=2", BOTH, NF4),
}


@pytest.mark.full_for("torch-data", "torch-tensor", "hybrid", "all", "jax-")  # torch-shard stays
@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_adapters_on_a_base_in_4_bits_follow_one(backend, name):
    """`shard` cuts the bits; every process or device dequantises the same matrices, of which `tensor` leaves parts."""
    layout, model, execution = QUANTISED[name]
    processes = 1 if backend == "jax" else 4 if "," in layout else 2
    found = follow(backend, layout, processes, model=model, execution=execution)
    # where bits stand for matrices, biases weigh more; of three rows of an adapter FSDP gives the first process two
    check(found, filled=1.03, least=0.94)


@pytest.mark.full
@pytest.mark.parametrize("layers", ["scan", "checkpointed"])
def test_a_base_in_4_bits_in_jaxs_scan_follows_one(layers):
    how = {"base": "nf4", "layers": layers}
    check(follow("jax", "shard=2,tensor=2", model=BOTH, execution=how))


@pytest.mark.full
def test_devices_of_jax_whose_scan_is_trained_in_part_follow_one():
    how = {"layers": "checkpointed"}
    found = follow("jax", "shard=2", model={"num_layers": 3, "num_labels": 3}, train=PART, execution=how)
    assert max(found["errors"].values()) < EXACT, found["errors"]


@pytest.mark.full
@pytest.mark.parametrize("name", ["lora data=2", "labels shard=2", "pairs data=2", "labels tensor=2"])
def test_fine_tuning_in_two_processes_of_jax_follows_one(name):
    layout, model, train, preference = TUNING[name]
    check(follow("jax", layout, 2, model=model, train=train, preference=preference), filled=1.01)


@pytest.mark.full
def test_adapters_on_a_base_in_4_bits_in_two_processes_of_jax_follow_one():
    check(follow("jax", "shard=2", 2, model=LORA, execution=NF4), filled=1.03, least=0.94)


TUNED = {  # what is a kind's own
    "classify": ["--read", "flexible"],
    "instruct": ["--style", "phi3", "--length", "96", "--pad-multiple", "96", "--mask-instruction"],
    "prefer": ["--style", "phi3", "--length", "96", "--pad-multiple", "96"],
}
ADAPTED = ["--train", "lora", "--rank", "2", "--lora-dropout", "0.1"]
EVALUATED = ["--eval-every", "2", "--eval-batches", "1"]


def asked(tmp_path, kind):
    """The words of a small run of that kind, whose weights and data are made here, without --out."""
    config = GPTConfig(256, 96, 16, 2, 2, ff_dim=32)
    save_checkpoint(tmp_path / "weights", config, params.randomise(config, 0, 0.5))
    words = ["see you at home", "are you there", "on my way now", "call me later", "WIN cash now!!"]
    rows = [{"text": f"{words[i % 5]} {i}", "label": "spam" if i % 5 == 4 else "ham"} for i in range(60)]
    if kind == "instruct":
        rows = [{"instruction": f"Add {i} and 1.", "input": "", "output": f"It is {i + 1}."} for i in range(20)]
    if kind == "prefer":
        rows = [{"instruction": f"Add {i} and 1.", "input": "", "chosen": f"It is {i + 1}."} for i in range(20)]
        rows = [{**row, "rejected": "Go away."} for row in rows]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    own = ["finetune", kind, "--weights", tmp_path / "weights", "--data", tmp_path / "rows.json", *TUNED[kind]]
    own += ["--dropout", "0.1", "--dtype", "float64", "--steps", "4", "--batch-size", "2", "--learning-rate", "0.01"]
    return [*own, *EVALUATED]


def check_ends(one, two, kind):
    """Losses, what is trained, what stays, and what is found out at the end."""
    logs = [log_of(folder) for folder in (one, two)]
    for left, right in zip(*logs, strict=True):
        for number in set(left) - {"backend", "seconds", "tokens_per_second"}:
            assert left[number] == pytest.approx(right[number], rel=1e-9, abs=1e-11), number
    ended = [load_checkpoint(folder / "checkpoint") for folder in (one, two)]
    start, plan = load_checkpoint(one.parent / "weights").weights, TrainConfig.from_dict(ended[0].training["train"])
    trained = params.trained(ended[0].config, plan)
    for name, parameter in params.table(ended[0].config).items():
        left, right = (found.weights[name] for found in ended)
        if not parameter.dead:
            assert np.abs(left - right).max() <= 1e-9, name
        if not trained[name]:
            assert (right == start.get(name, left)).all(), name
        elif "lora_A" not in name and not parameter.dead:  # while B is zero, A has no gradient
            assert np.abs(right - start.get(name, 0.0)).max() > 1e-4, name
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, two)]
    before = [found["before"] for found in results]
    if kind == "prefer":  # nothing has been learned, so margins are zero, and shares above it are rounding noise
        before = [{name: value for name, value in found.items() if "accuracy" not in name} for found in before]
    assert before[0] == pytest.approx(before[1], abs=1e-11)
    if kind == "classify":
        assert results[0]["confusion"] == results[1]["confusion"]
    if kind == "prefer":
        for part in ("train", "validation", "test"):
            assert results[0][part] == pytest.approx(results[1][part], rel=1e-9, abs=1e-11)
    else:
        assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-9)


@pytest.mark.full
@pytest.mark.parametrize(("kind", "layout"), [("classify", "shard=2"), ("instruct", "data=2"), ("prefer", "data=2")])
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_tuning_by_adapters_in_two_processes_ends_like_one(tmp_path, call, backend, kind, layout):
    own = [*asked(tmp_path, kind), *ADAPTED, "--backend", backend]
    own += ["--no-baseline"] if kind == "classify" else []
    assert call(*own, "--out", tmp_path / "one")[0] == 0
    by_two(*own, "--layout", layout, "--out", tmp_path / "two")
    check_ends(tmp_path / "one", tmp_path / "two", kind)


ALONE = ("", 1)
ROUTES = {  # (backend, layout, processes) of the first steps and of the last ones
    "torch one two": (("torch", *ALONE), ("torch", "shard=2", 2)),
    "torch two jax eight": (("torch", "shard=2", 2), ("jax", "data=2,shard=2,tensor=2", 1)),
    "jax one two": (("jax", *ALONE), ("jax", "data=2", 2)),
    "jax two torch two": (("jax", "shard=2,tensor=2", 2), ("torch", "tensor=2", 2)),
    "jax four torch one": (("jax", "data=2,tensor=2", 1), ("torch", *ALONE)),
}
LEARN = {"classify": ["--train", "last-block"], "instruct": ADAPTED, "prefer": ADAPTED}


@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "route"),
    [
        *(("classify", route) for route in ROUTES),
        ("instruct", "torch two jax eight"),
        ("instruct", "jax one two"),
        ("prefer", "jax two torch two"),
    ],
)
def test_a_run_of_fine_tuning_changes_its_layout_and_its_framework(tmp_path, call, kind, route):
    """The head or adapters, their optimizer slots and what stays are found again, whoever begins and whoever ends."""
    own, out = [*asked(tmp_path, kind), *LEARN[kind], "--batch-size", "4"], tmp_path / "two"
    last = ["--no-baseline"] if kind == "classify" else []
    assert call(*own, *last, "--out", tmp_path / "one")[0] == 0
    going_on = [*own, *last, "--until", "2"], ["finetune", kind, "--resume", out]
    for words, (backend, layout, processes) in zip(going_on, ROUTES[route], strict=True):
        where = ["--backend", backend, *(["--layout", layout] if layout else []), "--out", out]
        (by_two if processes == 2 else by_one)(*words, *where)
    assert [line["backend"] for line in log_of(out)] == [where[0] for where in ROUTES[route] for _ in range(2)]
    check_ends(tmp_path / "one", out, kind)


LONGER = ["--steps", "80", "--eval-every", "20", "--save-every", "4", "--eval-batches", "1"]


@pytest.mark.full
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_lost_worker_of_fine_tuning_is_started_again_and_goes_on(tmp_path, call, backend):
    own = [*asked(tmp_path, "classify"), *ADAPTED, *LONGER, "--no-baseline", "--backend", backend]
    assert call(*own, "--out", tmp_path / "one")[0] == 0
    words = losing_a_worker(*own, "--layout", "shard=2", out=tmp_path / "two")
    assert any(f"steps {step} to 80" in words for step in range(4, 80, 4))
    check_ends(tmp_path / "one", tmp_path / "two", "classify")


def test_a_restarted_worker_of_fine_tuning_goes_on_where_it_was(tmp_path, call, monkeypatch):
    own = [*asked(tmp_path, "classify"), *ADAPTED, "--no-baseline"]
    assert call(*own, "--out", tmp_path / "one")[0] == 0
    assert call(*own, "--until", 2, "--out", tmp_path / "two")[0] == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    code, _, err = call(*own, "--out", tmp_path / "two")
    assert (code, "steps 2 to 4" in err) == (0, True)
    check_ends(tmp_path / "one", tmp_path / "two", "classify")
    code, out, _ = call(*own, "--out", tmp_path / "two")
    assert (code, "Step 4 of 4" in out) == (0, True)
    code, _, err = call(*own, "--learning-rate", 0.5, "--out", tmp_path / "two")
    assert (code, "holds a run with other settings" in err) == (2, True)
