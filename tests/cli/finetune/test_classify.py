"""Classifiers from the command line: trained, asked about texts, given another head."""

import json

import numpy as np
import pytest
from small import BYTES, log_of

from common import heads, params
from common.backend import load
from common.config import Execution
from common.weights.checkpoint import load_checkpoint, save_checkpoint


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_trained_classifier_tells_the_classes_of_texts(call, tmp_path, asked, monkeypatch, backend):
    pytest.importorskip("sklearn")
    run, how = tmp_path / "run", ["--backend", backend]
    more = ["--steps", 60, "--batch-size", 8, "--train", "all", "--read", "flexible", "--eval-every", 60]
    code, out, err = call("finetune", "classify", *asked["classify"], *more, *how, "--out", run)
    assert code == 0
    results = json.loads((run / "results.json").read_text())
    accuracy = results["accuracy"]
    assert accuracy["model"]["train"] >= 0.9
    assert accuracy["majority class"]["train"] <= 0.7 < accuracy["bag of words"]["train"]
    confusion, texts = np.array(results["confusion"]), results["texts"]["test"]
    assert confusion.sum(1).tolist() == [texts["ham"], texts["spam"]]
    assert accuracy["model"]["test"] == pytest.approx(confusion.trace() / confusion.sum())
    assert "bag of words" in out
    assert "at the start" in err
    epochs = [line for line in log_of(run) if "epoch_accuracy" in line]
    assert len(epochs) == 60 // (sum(results["texts"]["train"].values()) // 8)
    (tmp_path / "file.txt").write_text("see you at home 3\n\nWIN cash 5 now!!\n")
    code, out, _ = call("classify", "--weights", run, "--file", tmp_path / "file.txt", *how)
    assert code == 0
    assert [line.split("\t")[0] for line in out.splitlines()] == ["ham", "spam"]
    monkeypatch.setattr("sys.stdin", (tmp_path / "file.txt").open())
    code, out, _ = call("classify", "--weights", run, "WIN cash 7 now!!", "-", "--json", *how)
    rows = json.loads(out)["rows"]
    assert [row["label"] for row in rows] == ["spam", "ham", "spam"]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in rows)
    code, _, err = call("classify", "--weights", run, "x" * 200, *how)
    assert (code, "1 texts are longer" in err) == (0, True)
    for words, told in (([], "no text to classify"), (["--file", tmp_path / "none"], "Cannot read")):
        code, _, err = call("classify", "--weights", run, *words)
        assert (code, told in err) == (2, True)
    code, _, err = call("classify", "--weights", asked["classify"][1], "x")
    assert (code, "holds no run of `parallax finetune classify`" in err) == (2, True)
    for command in (("generate", "--prompt", "x"), ("respond", "--data", tmp_path / "x.json")):
        code, _, err = call(*command, "--weights", run)
        assert (code, "`parallax classify` asks it" in err) == (2, True)


def test_classes_without_names_are_numbers_or_what_is_said(call, tmp_path, classifier):
    """Read at the last token of a text, whatever stands beside it."""
    folder, config, weights = classifier
    texts, how = ["a short one", "and one that is a little longer"], ["--backend", "numpy"]
    code, out, err = call("classify", "--weights", folder, *texts, "--json", *how)
    assert (code, "does not know the names of its classes" in err) == (0, True)
    model = load("numpy").build(config, weights, Execution("float64"))
    for text, row in zip(texts, json.loads(out)["rows"], strict=True):
        logits = model.forward(np.frombuffer(text.encode(), np.uint8)[None].astype(np.int32)).logits[0, -1]
        shares = np.exp(logits) / np.exp(logits).sum()
        assert row["probabilities"] == pytest.approx(dict(zip("012", shares, strict=True)))
    code, named, err = call("classify", "--weights", folder, *texts, "--json", "--labels", "no, yes, both", *how)
    assert (code, err) == (0, "")
    assert list(json.loads(named)["rows"][0]["probabilities"]) == ["no", "yes", "both"]
    code, last, _ = call("classify", "--weights", folder, *texts, "--read", "last", "--length", 40, "--json", *how)
    assert (code, last == out) == (0, False)
    for words, told in (
        (["--labels", "no,yes"], "--labels no,yes is no list of 3 different names"),
        (["--labels", "no,yes,no"], "is no list of 3 different names"),
        (["--read", "lst"], "did you mean 'last'"),
        (["--length", 97], "--length is 97; allowed is a whole number from 1 to 96"),
    ):
        code, out, err = call("classify", "--weights", folder, "x", *words)
        assert (code, out, told in err, err.count("\n")) == (2, "", True, 2 if "--read" in words else 1), err


def test_a_mean_of_all_positions_is_read_at_none_of_them(call, tmp_path):
    config, weights = heads.classifier(BYTES, params.randomise(BYTES, 0, 0.5), 2, pooling="mean")
    save_checkpoint(tmp_path / "mean", config, weights)
    asked = ["classify", "--weights", tmp_path / "mean", "some text", "--backend", "numpy"]
    assert call(*asked)[0] == 0
    for read in ("last", "first", "flexible"):
        code, out, err = call(*asked, "--read", read)
        assert (code, out, f"so --read {read} chooses none" in err, err.count("\n")) == (2, "", True, 1), err


def test_a_classifier_gets_a_new_head_and_that_is_told(call, tmp_path, asked, classifier):
    own = ["finetune", "classify", *asked["classify"], "--until", 1]
    for name, words, told in (("anew", [], False), ("again", ["--weights", classifier[0]], True)):
        code, _, err = call(*own, *words, "--out", tmp_path / name)
        assert (code, "a new head takes the place of its own" in err) == (0, told), err
    made = [load_checkpoint(tmp_path / name / "checkpoint").weights["score.weight"] for name in ("anew", "again")]
    assert made[0].shape == made[1].shape == (2, 16)


def test_texts_with_line_ends_of_windows_are_the_same(call, tmp_path, classifier, monkeypatch):
    asked, said = ["classify", "--weights", classifier[0], "--json", "--backend", "numpy"], []
    for end in ("\n", "\r\n"):
        path = tmp_path / "texts.txt"
        path.write_bytes(f"a short one{end}{end}and a longer one{end}".encode())
        monkeypatch.setattr("sys.stdin", path.open())
        for words in (["--file", path], ["-"]):
            code, out, err = call(*asked, *words)
            assert code == 0, err
            said.append(json.loads(out)["rows"])
    assert said == said[:1] * 4
    assert [row["text"] for row in said[0]] == ["a short one", "and a longer one"]
