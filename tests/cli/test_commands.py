"""The command line as a person meets it: what works, what is refused, with which sentence and which exit code."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from common import backend as door
from common import params
from common.compare import difference
from common.config import Execution, GPTConfig
from common.weights.checkpoint import load_checkpoint, save_checkpoint
from common.weights.huggingface import write_hf

BYTES = GPTConfig(256, 48, 32, 2, 2)
FAST = ["--batch-size", "2", "--warmup-steps", "2", "--eval-every", "4"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small byte-level model with random weights, as a Parallax folder."""
    folder = tmp_path_factory.mktemp("weights") / "model"
    save_checkpoint(folder, BYTES, params.randomise(BYTES, 0))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("She sells sea shells by the sea shore. " * 60, encoding="utf-8")
    return path


def test_help_imports_no_framework():
    """`parallax --help` is quick because nothing heavy is imported; counted in a fresh interpreter."""
    code = (
        "import sys\nfrom common.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        "heavy = {'torch', 'jax', 'flax', 'numpy', 'transformers', 'matplotlib', 'tiktoken'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("compare", "train", "generate", "convert", "inspect", "fetch", "doctor"):
        assert f"\n  {command} " in done.stdout


def test_the_installed_command_ends_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "common.cli", "train", "--preset", "gpt2-125m"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("parallax: Unknown preset 'gpt2-125m': did you mean 'gpt2-124m'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("first", "second"), [("torch", "jax"), ("jax", "torch")])
def test_a_run_continues_in_the_other_wing(call, tmp_path, weights, text, first, second):
    """Interrupted after 5 of 12 steps with dropout on and taken up elsewhere, a run ends where an unbroken one does."""
    common = ["--weights", weights, "--data", text, "--steps", 12, "--dropout", 0.1, "--dtype", "float64", *FAST]
    assert call("train", *common, "--out", tmp_path / "whole", "--backend", first)[0] == 0
    assert call("train", *common, "--out", tmp_path / "split", "--backend", first, "--until", 5)[0] == 0
    code, out, _ = call("train", "--resume", tmp_path / "split", "--backend", second)
    assert code == 0
    assert "Step 12 of 12" in out
    whole, split = (load_checkpoint(tmp_path / name / "checkpoint") for name in ("whole", "split"))
    for name, parameter in params.table(BYTES).items():
        if not parameter.dead:  # for those AdamW makes steps of pure rounding noise
            assert difference(name, split.weights[name], whole.weights[name]).relative <= 1e-11, name
    logs = [[json.loads(line) for line in (tmp_path / n / "log.jsonl").open()] for n in ("whole", "split")]
    assert [line["step"] for line in logs[1]] == list(range(12))
    np.testing.assert_allclose([x["loss"] for x in logs[1]], [x["loss"] for x in logs[0]], rtol=1e-12)
    assert {line["backend"] for line in logs[1][:5]} == {first}
    assert {line["backend"] for line in logs[1][5:]} == {second}


def test_training_learns_and_generates_the_same_text(call, tmp_path, weights, text):
    run = tmp_path / "run"
    code, _, _ = call("train", "--weights", weights, "--data", text, "--steps", 40, "--out", run, *FAST)
    assert code == 0
    log = [json.loads(line) for line in (run / "log.jsonl").open()]
    assert log[-1]["held_out"] < 0.6 * log[3]["held_out"]
    asked = ["--weights", run, "--prompt", "She sells", "--max-new-tokens", 20]
    texts = {name: call("generate", *asked, "--backend", name)[1] for name in ("torch", "jax", "numpy")}
    assert len(set(texts.values())) == 1
    assert texts["torch"].startswith("She sells")
    drawn = [*asked, "--temperature", 0.9, "--top-k", 20, "--seed", 3, "--prompt", "sea", "--json"]
    rows = {name: json.loads(call("generate", *drawn, "--backend", name)[1])["rows"] for name in ("torch", "jax")}
    assert rows["torch"] == rows["jax"]
    assert [len(row["tokens"]) for row in rows["torch"]] == [20, 20]


def test_convert_and_inspect(call, tmp_path, weights):
    for target, back in ((tmp_path / "hf", "parallax"), (tmp_path / "book.pth", "parallax")):
        source = weights
        assert call("convert", source, target, *(["--names", "hf"] if target.suffix else []))[0] == 0
        again = tmp_path / f"again-{target.name}"
        heads = ["--heads", 2, "--tie"] if target.suffix else []
        assert call("convert", target, again, "--to", back, *heads)[0] == 0
        assert (again / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    code, out, _ = call("inspect", tmp_path / "hf", "--json")
    assert code == 0
    assert json.loads(out)["config"]["embed_dim"] == BYTES.embed_dim
    assert "transformer.h.1.mlp.c_fc.weight" in call("inspect", tmp_path / "hf")[1]


def test_what_has_an_option_of_its_own_is_not_set(call, weights):
    code, _, err = call("generate", "--weights", weights, "--prompt", "x", "--set", "attention=fused")
    assert (code, "write --attention fused" in err) == (2, True)
    assert err.count("\n") == 1


def test_doctor_reports_every_backend(call):
    code, out, _ = call("doctor", "--json")
    checks = {check["what"]: check["status"] for check in json.loads(out)["checks"]}
    assert {f"backend {name}" for name in ("numpy", "torch", "jax")} <= set(checks)
    assert code == int("fail" in checks.values())
    assert "[ok]   Python" in call("doctor")[1]


@pytest.fixture
def bad(tmp_path, weights):
    """Broken things by name."""
    made = {name: tmp_path / name for name in ("empty.txt", "binary.txt", "short.txt", "file", "truncated", "lies")}
    made["empty.txt"].write_text("")
    made["binary.txt"].write_bytes(b"text\0\xff\xfe")
    made["short.txt"].write_text("too short")
    made["file"].write_text("a file")
    for name in ("truncated", "lies"):
        made[name].mkdir()
        for part in ("config.json", "model.safetensors"):
            (made[name] / part).write_bytes((weights / part).read_bytes())
    data = (weights / "model.safetensors").read_bytes()
    (made["truncated"] / "model.safetensors").write_bytes(data[:-10])
    (made["lies"] / "model.safetensors").write_bytes(data.replace(b'"data_offsets":[0,', b'"data_offsets":[8,', 1))
    write_hf(tmp_path / "other", BYTES.with_(ff_dim=100), params.randomise(BYTES.with_(ff_dim=100), 0))
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "n_inner": 128, "n_layer": 3}))
    return {
        "weights": weights,
        "missing": tmp_path / "missing",
        "other": tmp_path / "other",
        "out": tmp_path / "o",
        **made,
    }


REFUSED = {
    "unknown command": ("trian", "Unknown command 'trian': did you mean 'train'"),
    "unknown option": ("train --preset nano --stepz 3", "No such option"),
    "unknown preset": ("train --preset gpt2-125m --out {out}", "did you mean 'gpt2-124m'"),
    "unknown backend": ("train --backend jaxx --out {out}", "Unknown backend 'jaxx': did you mean 'jax'"),
    "unknown dtype": ("train --dtype float33 --out {out}", "Unknown dtype 'float33'"),
    "no such device": ("train --device cuda:7 --out {out}", "sees no device 'cuda:7'"),
    "empty corpus": ("train --data {empty.txt} --out {out}", "empty"),
    "binary corpus": ("train --data {binary.txt} --out {out}", "binary.txt"),
    "short corpus": ("train --data {short.txt} --out {out}", "too short for windows of 128"),
    "missing corpus": ("train --data {missing} --out {out}", "missing"),
    "output is a file": ("train --out {file}", "is a file"),
    "no run to resume": ("train --resume {weights}", "holds no run to resume"),
    "oracle cannot train it": ("train --backend numpy --out {out}", "at most 50,000 parameters, not 842,496"),
    "heads that do not divide": ("train --preset nano --heads 3 --out {out}", "a divisor of embed_dim (128)"),
    "two models": ("train --preset nano --weights {weights} --out {out}", "give one of them"),
    "negative steps": ("train --steps -3 --out {out}", "TrainConfig.steps is -3; allowed is a whole number > 0"),
    "window beyond context": ("train --length 129 --out {out}", "129 tokens do not fit in the context of 128"),
    "unknown tokenizer": ("train --tokenizer byte --out {out}", "did you mean 'bytes'"),
    "missing weights": ("generate --weights {missing} --prompt x", "There is nothing at"),
    "truncated weights": ("generate --weights {truncated} --prompt x", "truncated"),
    "lying offsets": ("generate --weights {lies} --prompt x", "model.safetensors"),
    "other shapes": (
        "generate --weights {other} --prompt x --tokenizer bytes",
        "has shape",
    ),
    "prompt too long": (
        "generate --weights {weights} --prompt 0123456789012345678901234567890123456789 --max-new-tokens 10",
        "Prompt 0 has 40 tokens and 10 more are asked for, but the context holds 48",
    ),
    "empty prompt": ("generate --weights {weights} --prompt=", "Prompt 0 is empty"),
    "bad top-p": ("generate --weights {weights} --prompt x --top-p 1.5", "SamplingConfig.top_p is 1.5"),
    "unknown overflow": ("generate --weights {weights} --prompt x --overflow drop", "Unknown overflow rule 'drop'"),
    "oracle in float32": ("generate --weights {weights} --prompt x --backend numpy --dtype float32", "float64 only"),
    "scan in torch": ("generate --weights {weights} --prompt x --layers scan", "PyTorch runs its layers in a loop"),
    "vocabulary too large": ("generate --weights {weights} --prompt x --tokenizer gpt2 --vocab {weights}", "vocab"),
    "convert onto itself": ("convert {weights} {weights}", "is the source itself"),
    "unknown kind": ("convert {weights} {out} --to hff", "did you mean 'hf'"),
    "unknown download": ("fetch gpt2-124", "did you mean 'gpt2-124m'"),
    "not weights": ("inspect {file}", "neither a safetensors file nor a PyTorch state dict"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_get_one_sentence_and_exit_code_2(call, bad, name):
    command, sentence = REFUSED[name]
    before = {path: path.read_bytes() for path in bad["weights"].iterdir()}
    words = [word.format_map(_Braces(bad)) for word in command.split()]
    code, out, err = call(*words)
    assert code == 2, err
    assert sentence in err
    assert out == ""
    assert err.startswith("parallax: ")
    assert err.count("\n") == 1, err
    assert {path: path.read_bytes() for path in bad["weights"].iterdir()} == before
    assert not bad["out"].exists()


class _Braces(dict):
    """Lets `{empty.txt}` name a key."""

    def __getitem__(self, key):
        return _Name(self, key)


class _Name:
    def __init__(self, table, key):
        self.table, self.key = table, key

    def __getattr__(self, rest):
        return _Name(self.table, f"{self.key}.{rest}")

    def __format__(self, spec):
        return str(dict.__getitem__(self.table, self.key))


def test_a_full_disk_keeps_the_checkpoint_that_was_there(call, tmp_path, weights, text, monkeypatch):
    run = tmp_path / "run"
    assert call("train", "--weights", weights, "--data", text, "--steps", 8, "--until", 4, "--out", run, *FAST)[0] == 0
    before = {path.name: path.read_bytes() for path in (run / "checkpoint").iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("common.weights.safetensors_io.write_file", full)
    code, _, err = call("train", "--resume", run)
    assert code == 2
    assert "No space left on device" in err
    assert {path.name: path.read_bytes() for path in (run / "checkpoint").iterdir()} == before
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == [".lock"]


def test_a_second_run_in_the_same_folder_is_refused(call, tmp_path, weights, text):
    run = tmp_path / "run"
    call("train", "--weights", weights, "--data", text, "--steps", 2, "--out", run, *FAST)
    code, _, err = call("train", "--weights", weights, "--data", text, "--steps", 2, "--out", run, *FAST)
    assert code == 2
    assert "already holds a run" in err
    code, _, err = call("train", "--resume", run, "--learning-rate", 1)
    assert code == 2
    assert "leave out --learning-rate" in err


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.full)])
def test_an_interrupted_run_loses_nothing(call, tmp_path, weights, text, monkeypatch, backend):
    """Ctrl-C in the middle of a step: the step is finished, saved, and the resumed run equals an unbroken one."""
    asked = ["--weights", weights, "--data", text, "--steps", 6, "--backend", backend, *FAST]
    assert call("train", *asked, "--out", tmp_path / "whole")[0] == 0
    kind = type(door.load(backend).build(BYTES, params.randomise(BYTES, 0), Execution()))
    real, steps = kind.train_step, []

    def interrupted(self, *batch):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "train_step", interrupted)
        code, _, err = call("train", *asked, "--out", tmp_path / "run")
    assert code == 130
    assert "Stopped after 3 steps" in err
    assert "Interrupted." in err
    assert load_checkpoint(tmp_path / "run" / "checkpoint").training["step"] == 3
    assert call("train", "--resume", tmp_path / "run")[0] == 0
    assert {line["backend"] for line in map(json.loads, (tmp_path / "run" / "log.jsonl").open())} == {backend}
    whole, run = (load_checkpoint(tmp_path / name / "checkpoint") for name in ("whole", "run"))
    for name in params.table(BYTES):
        assert np.array_equal(run.weights[name], whole.weights[name]), name
    assert whole.training["data"] == run.training["data"]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("log.jsonl", "{broken", "Line 1 of"),
        ("log.jsonl", '{"a": 1}', "Line 1 of"),
        ("checkpoint/training.json", None, "training record"),
        ("checkpoint/training.json", '{"step": "x"}', "is damaged"),
        ("checkpoint/training.json", "{", "training.json"),
    ],
)
def test_a_damaged_run_is_refused(call, tmp_path, weights, text, file, content, words):
    run = tmp_path / "run"
    call("train", "--weights", weights, "--data", text, "--steps", 2, "--until", 1, "--out", run, *FAST)
    if content is None:
        record = json.loads((run / file).read_text())
        content = json.dumps({**record, "train": 3})
    (run / file).write_text(content)
    code, out, err = call("train", "--resume", run)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_a_training_state_is_not_overwritten_by_a_conversion(call, tmp_path, weights, text):
    run = tmp_path / "run"
    call("train", "--weights", weights, "--data", text, "--steps", 1, "--out", run, *FAST)
    before = {path.name: path.read_bytes() for path in (run / "checkpoint").iterdir()}
    code, _, err = call("convert", weights, run / "checkpoint")
    assert code == 2
    assert "training run, which would be lost" in err
    assert {path.name: path.read_bytes() for path in (run / "checkpoint").iterdir()} == before
