"""Runs that are spread over processes and devices follow the run in one process; lost workers go on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from common import params
from common.config import GPTConfig, TrainConfig, model_to_dict
from common.weights.checkpoint import load_checkpoint, save_checkpoint

FOLLOW = Path(__file__).with_name("follow.py")
ROOT = Path(__file__).parents[2]
CONFIG = model_to_dict(GPTConfig(32, 16, 16, 2, 4, ff_dim=24))  # every axis can be dealt out to eight, or to four
DROPPING = {"dropout_embed": 0.1, "dropout_attn": 0.1, "dropout_shortcut": 0.1}
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
LORA = {"adapters": [{"targets": ["*.q_proj", "*.down_proj"], "rank": 4, "alpha": 6.0, "dropout": 0.2}], **DROPPING}
DORA = {"adapters": [{"targets": ["*"], "rank": 4, "dora": True}], "tie_embeddings": False}
SECOND = {"name": "second", "targets": ["*.o_proj", "*.up_proj", "*.v_proj"], "rank": 3, "dropout": 0.3, "rslora": True}
FIRST = {"targets": ["*"], "rank": 4, "dora": True, "dropout": 0.2}
BOTH = {"adapters": [FIRST, SECOND], "tie_embeddings": False, "qkv_bias": True, **DROPPING}
LABELS = {"num_labels": 3, "pooling": "mean", "causal": False}
JUDGE = {**LABELS, "adapters": [{"targets": ["*_proj", "score"], "rank": 4, "alpha": 1.0, "dropout": 0.2}]}
LAST = {"trained": ["model.layers.1.*", "model.norm.*", "score.*"]}
PART = {"trained": ["model.layers.2.*", "model.norm.*", "score.*"]}
NF4, DOUBLE = {"base": "nf4"}, {"base": "nf4_double"}
EXACT, SINGLE = 1e-12, 2e-5  # of the largest number of a tensor


def free_port():
    """A port behind which the next one is free too, as far as one can know."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def environment(**more):
    found = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}
    found.pop("XLA_FLAGS", None)
    return found | {name: value for name, value in more.items() if name == "XLA_FLAGS"}


def follow(backend, layout, processes=1, *, model=None, execution=None, train=None, dtype="float64", preference=None):
    """Run it; what the first process says."""
    settings = {"steps": 5, "batch_size": 4, "accumulate": 2, "warmup_steps": 1, "learning_rate": 0.01, **(train or {})}
    asked = {
        "backend": backend,
        "config": {**CONFIG, **(model or {})},
        "train": TrainConfig(**settings).to_dict(),
        "execution": {"dtype": dtype, "layout": layout, **(execution or {})},
        "steps": 3,
        "length": 12,
        "preference": preference,
    }
    sizes = [int(part.split("=")[1]) for part in layout.split(",")]
    devices = 1
    for size in sizes:
        devices *= size
    own = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    if backend == "jax":
        own["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices // processes}"
    running = [
        subprocess.Popen(
            [sys.executable, str(FOLLOW), json.dumps(asked)],
            env=environment(**own, RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        told = [one.communicate(timeout=300) for one in running]
    finally:
        for one in running:
            one.kill()
    assert [one.returncode for one in running] == [0] * processes, told[0][1][-3000:]
    (line,) = (line for out, _ in told for line in out.splitlines() if line.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))


def check(found, limit=EXACT, filled=1.0, least=0.95):
    assert set(found["errors"]) == {"told", "held", "weight", "slot", "grad"}
    assert max(found["errors"].values()) < limit, found["errors"]
    # bytes by the closed form; FSDP also cuts biases that tensor parallelism has cut before
    assert found["due"] * least < found["held"] <= found["due"] * filled


@pytest.mark.full_for("data=2", "tensor=2-", "all", "balancing")  # fine-tuning below takes tensor=2
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
@pytest.mark.parametrize(
    ("layout", "model", "execution", "train"),
    [
        ("data=8", DROPPING, {}, {"batch_size": 8}),
        ("shard=4,tensor=2", TODAY, {"layers": "loop"}, {"batch_size": 8}),
        ("data=2,tensor=4", {}, FAST["jax"], {"optimizer": "muon"}),
        ("data=2,shard=2,tensor=2", DROPPING, {"layers": "scan"}, {}),
        ("shard=2,tensor=2", {}, FAST["jax"], {}),
        ("shard=2,tensor=2", TODAY, OWN, {"optimizer": "muon"}),
        ("data=2,shard=2", {}, {"layers": "scan", **OWN}, {}),
    ],
    ids=["data=8", "shard=4,tensor=2", "data=2,tensor=4", "eight", "four", "own and muon", "own"],
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
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def samples(folder):
    return [json.loads(line).get("sample") for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.full
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_lost_worker_is_started_again_and_goes_on(tmp_path, backend, call):
    """By torchrun, from the last checkpoint; the curve is that of one process which nobody disturbed."""
    assert call("train", *TRAIN, "--backend", backend, "--out", tmp_path / "one")[0] == 0
    out, engine = tmp_path / "two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *engine, "--max-restarts", "2", "-m", "common.cli", "train", *TRAIN]
    command += ["--backend", backend, "--layout", "shard=2", "--out", str(out)]
    with (tmp_path / "told").open("w") as told:
        running = subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=told, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 200
            while running.poll() is None and time.monotonic() < end:
                if (out / "log.jsonl").is_file() and len(losses(out)) >= 4:
                    break
                time.sleep(0.05)
            workers = [
                one for one in psutil.Process(running.pid).children(recursive=True) if "common.cli" in one.cmdline()
            ]
            assert len(workers) == 2
            os.kill(workers[-1].pid, signal.SIGKILL)
            assert running.wait(timeout=240) == 0, (tmp_path / "told").read_text()[-3000:]
        finally:
            running.kill()
    assert losses(out) == pytest.approx(losses(tmp_path / "one"), rel=1e-9)
    assert samples(out) == samples(tmp_path / "one")
    words = (tmp_path / "told").read_text()
    assert "steps 0 to 24" in words
    assert any(f"steps {step} to 24" in words for step in range(4, 24, 4))


@pytest.mark.full
def test_a_run_changes_its_layout_and_its_framework(tmp_path, call):
    """Checkpoints do not depend on the layout: two processes begin, eight devices of the other framework end."""
    assert call("train", *TRAIN, "--out", tmp_path / "one")[0] == 0
    engine = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "common.cli"]
    out = tmp_path / "two"
    first = ["train", *TRAIN, "--layout", "shard=2", "--until", "10", "--out", str(out)]
    subprocess.run([sys.executable, *engine, *first], env=environment(), cwd=ROOT, check=True, timeout=300)
    second = ["train", "--resume", str(out), "--backend", "jax", "--layout", "data=2,shard=2,tensor=2"]
    second += ["--dtype", "float64", "--sample-every", "6"]
    subprocess.run([sys.executable, "-m", "common.cli", *second], env=environment(), cwd=ROOT, check=True, timeout=300)
    assert losses(out) == pytest.approx(losses(tmp_path / "one"), rel=1e-9)
    assert samples(out) == samples(tmp_path / "one")


TUNED = {  # kind: (layout, what is its own)
    "classify": ("shard=2", ["--read", "flexible", "--no-baseline"]),
    "instruct": ("data=2", ["--style", "phi3", "--length", "96", "--pad-multiple", "96", "--mask-instruction"]),
    "prefer": ("data=2", ["--style", "phi3", "--length", "96", "--pad-multiple", "96"]),
}


@pytest.mark.full
@pytest.mark.parametrize("kind", TUNED)
def test_tuning_by_adapters_in_two_processes_ends_like_one(tmp_path, call, kind):
    """Losses, adapters, what stays, and what is found out at the end."""
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
    layout, own = TUNED[kind]
    own = ["finetune", kind, "--weights", str(tmp_path / "weights"), "--data", str(tmp_path / "rows.json"), *own]
    own += ["--train", "lora", "--rank", "2", "--lora-dropout", "0.1", "--dropout", "0.1", "--dtype", "float64"]
    own += ["--steps", "4", "--batch-size", "2", "--learning-rate", "0.01", "--eval-every", "2", "--eval-batches", "1"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert call(*own, "--out", one)[0] == 0
    engine = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "common.cli"]
    command = [sys.executable, *engine, *own, "--layout", layout, "--out", str(two)]
    subprocess.run(command, env=environment(), cwd=ROOT, check=True, timeout=300)
    logs = [[json.loads(line) for line in (folder / "log.jsonl").open()] for folder in (one, two)]
    for left, right in zip(*logs, strict=True):
        for number in set(left) - {"backend", "seconds", "tokens_per_second"}:
            assert left[number] == pytest.approx(right[number], rel=1e-9, abs=1e-11), number
    ended = [load_checkpoint(folder / "checkpoint") for folder in (one, two)]
    start = load_checkpoint(tmp_path / "weights").weights
    for name in params.table(ended[0].config):
        left, right = (found.weights[name] for found in ended)
        assert np.abs(left - right).max() <= 1e-9, name
        if name in start:
            assert (right == start[name]).all(), name
        elif "lora_B" in name:
            assert np.abs(right).max() > 1e-4, name
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, two)]
    assert results[0]["before"] == pytest.approx(results[1]["before"])
    if kind == "classify":
        assert results[0]["confusion"] == results[1]["confusion"]
        assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-9)
    elif kind == "prefer":
        for part in ("train", "validation", "test"):
            assert results[0][part] == pytest.approx(results[1][part], rel=1e-9, abs=1e-11)
    else:
        assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-9)


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
