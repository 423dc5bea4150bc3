"""Fine-tuning from the command line: classes, instructions, preferences; resumed in the other framework; refused."""

import json
from typing import get_type_hints

import numpy as np
import pytest

from common import adapters, heads, params
from common.adapters import Adapter
from common.backend import load
from common.commands import options
from common.commands.finetune.prefer import Preferences
from common.config import Execution, GPTConfig
from common.preference import LOSSES, REDUCTIONS
from common.tokenizers import bpe
from common.weights.checkpoint import load_checkpoint, save_checkpoint

BYTES = GPTConfig(256, 96, 16, 2, 2, ff_dim=32)
EVALUATED = ["--eval-every", 2, "--eval-batches", 1]
FEW = ["--steps", 4, "--batch-size", 2, "--learning-rate", 0.01, *EVALUATED]
WINGS = [("torch", "jax"), ("jax", "torch")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "model"
    save_checkpoint(folder, BYTES, params.randomise(BYTES, 0, 0.5))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small files of each kind by name."""
    folder = tmp_path_factory.mktemp("data")
    words = ["see you at home", "are you there", "on my way now", "call me later", "thank you so much"]
    rows = [{"text": f"{words[i % 5]} {i}", "label": "ham"} for i in range(20)]
    rows += [{"text": f"WIN cash {i} now!!", "label": "spam"} for i in range(12)]
    (folder / "texts.json").write_text(json.dumps(rows))
    pairs = [
        {"instruction": f"Add {i} and 1.", "input": "" if i % 2 else "as a number", "output": f"It is {i + 1}."}
        for i in range(20)
    ]
    pairs = [{**row, "chosen": row["output"], "rejected": "Go away."} for row in pairs]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    return folder


@pytest.fixture
def asked(weights, data):
    """The words of each command, without --out."""
    phi3 = ["--style", "phi3", "--length", 96, "--pad-multiple", 96]  # one shape, so JAX compiles once
    return {
        "classify": ["--weights", weights, "--data", data / "texts.json", *FEW],
        "instruct": ["--weights", weights, "--data", data / "pairs.json", *phi3, *FEW],
        "prefer": ["--weights", weights, "--data", data / "pairs.json", *phi3, *FEW],
    }


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").open()]


MORE = {
    "classify fast": ["--mode", "fast", "--train", "last-block", "--read", "flexible"],
    "classify": ["--train", "last-block", "--read", "flexible", "--dropout", 0.1],
    "classify lora": ["--train", "lora", "--rank", 2, "--targets", "*.q_proj", "--lora-dropout", 0.1, "--no-causal"],
    "instruct": ["--mask-instruction", "--accumulate", 2],
    "instruct lora": ["--train", "lora", "--rank", 2, "--dora"],
    "prefer": ["--loss", "dpo", "--reduction", "mean"],
    "prefer online": ["--loss", "ipo", "--reference", "online"],
    "prefer lora": ["--train", "lora", "--rank", 2, "--rslora"],
}


@pytest.mark.full_for("jax-torch", "instruct", "classify", "prefer-", "online")
@pytest.mark.parametrize(("first", "second"), WINGS)
@pytest.mark.parametrize("name", MORE)
def test_a_run_continues_in_the_other_wing(call, tmp_path, asked, name, first, second):
    kind, exact = name.split()[0], ["--dtype", "float64"]
    own = [*asked[kind], *MORE[name], *exact]
    exact = [*exact, *(["--mode", "fast"] if "fast" in name else [])]
    last = [*exact, *EVALUATED, *(["--no-baseline"] if kind == "classify" else [])]
    whole, split = tmp_path / "whole", tmp_path / "split"
    assert call("finetune", kind, *own, *last, "--backend", first, "--out", whole)[0] == 0
    assert call("finetune", kind, *own, "--backend", first, "--until", 2, "--out", split)[0] == 0
    code, out, _ = call("finetune", kind, "--resume", split, "--backend", second, *last)
    assert (code, "Step 4 of 4" in out) == (0, True)
    one, two = (load_checkpoint(folder / "checkpoint") for folder in (whole, split))
    start = load_checkpoint(asked[kind][1]).weights
    for weight, parameter in params.table(one.config).items():
        a, b = (np.asarray(found.weights[weight], np.float64) for found in (one, two))
        if not parameter.dead:
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-9, err_msg=weight)
    moved = {weight for weight in start if weight in one.weights and (one.weights[weight] != start[weight]).any()}
    block = {weight for weight in start if weight.startswith(("model.layers.1.", "model.norm."))}
    assert moved == (set() if "lora" in name else block if kind == "classify" else set(start))
    logs = log_of(whole), log_of(split)
    assert [line["backend"] for line in logs[1]] == [first, first, second, second]
    for left, right in zip(*logs, strict=True):
        for number in set(left) - {"backend", "seconds", "tokens_per_second"}:
            assert left[number] == pytest.approx(right[number], rel=1e-8, abs=1e-10), number
    results = [json.loads((folder / "results.json").read_text()) for folder in (whole, split)]
    assert results[0]["before"] == pytest.approx(results[1]["before"])
    assert call("curves", whole, split)[0] == 0


@pytest.fixture
def bad(tmp_path, data):
    """Data that are wrong in one place, by name."""
    rows, pairs = (json.loads((data / name).read_text()) for name in ("texts.json", "pairs.json"))
    made = {
        "one class": [row for row in rows if row["label"] == "ham"],
        "no label": [*rows[:4], {"text": "x", "labl": "ham"}],
        "few": [rows[0], rows[-1]],
        "wrong field": [*pairs[:2], {**pairs[2], "output": 3}],
        "no rejected": [*pairs[:2], {"instruction": "x", "input": "", "chosen": "y", "rejectd": "z"}],
        "two": pairs[:2],
        "long last": [*pairs[:-1], {**pairs[-1], "instruction": "long " * 40}],
        "long test": [*pairs[:17], *({**row, "instruction": "long " * 40} for row in pairs[17:19]), pairs[19]],
        "empty": [],
    }
    for name, value in made.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return {name: tmp_path / f"{name}.json" for name in made}


REFUSED = {
    "one class": ("classify", ["--data", "one class"], "All 20 texts of one class.json have the label 'ham'"),
    "no label": ("classify", ["--data", "no label"], "Row 5 of no label.json lacks the field 'label'"),
    "label outside": ("classify", ["--classes", "ham,spamm"], "Row 21 of texts.json: Unknown label 'spam'"),
    "empty part": ("classify", ["--data", "few"], "a part is empty"),
    "no such data": ("classify", ["--data", "sms-spamm"], "did you mean 'sms-spam'"),
    "no shares": ("classify", ["--shares", "many"], "--shares many are no numbers"),
    "unknown position": ("classify", ["--read", "lst"], "did you mean 'last'"),
    "length beyond context": ("classify", ["--length", "97"], "a whole number from 1 to 96"),
    "what learns": ("classify", ["--train", "last-blok"], "did you mean 'last-block'"),
    "tied head": ("instruct", ["--train", "last-layer"], "The head of this model is its token embedding"),
    "unknown target": ("classify", ["--train", "lora", "--targets", "*.q_prj"], "did you mean 'q_proj'"),
    "rank too large": ("instruct", ["--train", "lora", "--rank", 17], "its rank is at most 16"),
    "targets without lora": ("prefer", ["--targets", "*.q_proj"], "--targets is for --train lora"),
    "steps and epochs": ("classify", ["--epochs", 2], "give one of them"),
    "wrong field": ("instruct", ["--data", "wrong field"], "Row 3 of wrong field.json has the number 3 in the field"),
    "unknown style": ("instruct", ["--style", "alpacca"], "did you mean 'alpaca'"),
    "empty data": ("instruct", ["--data", "empty"], "has no rows"),
    "empty split": ("instruct", ["--data", "two"], "a part is empty"),
    "no rejected": ("prefer", ["--data", "no rejected"], "lacks the field 'rejected': is 'rejectd' meant?"),
    "unknown loss": ("prefer", ["--loss", "dpoo"], "did you mean 'dpo'"),
    "smoothing of another": ("prefer", ["--smoothing", 0.1], "cdpo's"),
    "smoothing of nothing": ("prefer", ["--loss", "cdpo"], "say by --smoothing what share is, as in --smoothing 0.1"),
    "reference of a loss that has none": (
        "prefer",
        ["--loss", "simpo", "--reference", "online"],
        "--loss simpo has none",
    ),
    "average of a position": ("classify", ["--average", "--read", "first"], "so --read first chooses none"),
    "unknown reference": ("prefer", ["--reference", "on"], "did you mean 'online'"),
    "length of nothing": ("prefer", ["--length", 0], "--length is 0; allowed is a whole number > 0."),
    "no prompt that fits": ("prefer", ["--length", 20], "The prompts of all 20 pairs fill 20 tokens"),
    "no answer that fits": (
        "instruct",
        ["--length", 5, "--mask-instruction"],
        "has a token within 5, so nothing would be learned",
    ),
    "no answer to evaluate": (
        "instruct",
        ["--data", "long last", "--mask-instruction"],
        "so the validation part has no loss",
    ),
    "no answer to test": ("instruct", ["--data", "long test", "--mask-instruction"], "so the test part has no loss"),
    "multiple of nothing": ("instruct", ["--pad-multiple", -1], "--pad-multiple is -1; allowed"),
    "rank without lora": ("classify", ["--rank", 4], "--rank is for --train lora; this is --train last-block"),
    "negative rank": ("classify", ["--train", "lora", "--rank", -1], "Adapter.rank is -1"),
    "alpha of nothing": ("prefer", ["--train", "lora", "--alpha", 0], "Adapter.alpha is 0.0; allowed is a number > 0"),
    "dropout of everything": ("instruct", ["--train", "lora", "--lora-dropout", 1.5], "Adapter.dropout is 1.5"),
    "beta of nothing": ("prefer", ["--beta", 0], "Preference.beta is 0.0; allowed is a number > 0"),
    "class without a name": ("classify", ["--classes", "ham,"], "has a name that is empty"),
    "padding that is seen": (
        "classify",
        ["--no-causal", "--pad-to", "batch", "--accumulate", 2],
        "--no-causal reads padding, and each of --accumulate 2 batches would get what the longest needs",
    ),
    "padding that is averaged": (
        "classify",
        ["--average", "--pad-to", "batch", "--accumulate", 2],
        "--average reads padding",
    ),
    "no weights": ("prefer", ["--weights", "nowhere"], "There is nothing at nowhere"),
    "wrong label option": ("classify", ["--stepz", 3], "No such option"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_get_one_sentence_and_exit_code_2(call, tmp_path, asked, bad, name):
    kind, words, sentence = REFUSED[name]
    own = [bad.get(word, word) if words[0] == "--data" else word for word in words]
    code, out, err = call("finetune", kind, *asked[kind], *own, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.splitlines()[-1].startswith("parallax: ")
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_the_help_says_how_each_loss_takes_the_tokens_of_an_answer():
    told = get_type_hints(Preferences, include_extras=True)["reduction"].__metadata__[0].help
    for how in REDUCTIONS:
        losses = [loss for loss, own in LOSSES.items() if own == how]
        assert f"{how} for {', '.join(losses)};" in told


def test_a_subcommand_that_is_none_is_refused(call):
    code, _, err = call("finetune", "clasify")
    assert (code, "No such command 'clasify'" in err, err.count("\n")) == (2, True, 1)


def test_a_resumed_run_keeps_its_settings_and_its_kind(call, tmp_path, asked):
    run = tmp_path / "run"
    assert call("finetune", "classify", *asked["classify"], "--until", 2, "--out", run)[0] == 0
    code, _, err = call("finetune", "classify", "--resume", run, "--read", "first", "--rank", 4)
    assert (code, "leave out" in err, "--read" in err, "--rank" in err) == (2, True, True, True)
    code, _, err = call("finetune", "instruct", "--resume", run)
    assert (code, "a run of `parallax finetune classify`" in err) == (2, True)
    code, _, err = call("train", "--resume", run)
    assert (code, "a run of `parallax finetune classify`" in err) == (2, True)
    code, _, err = call("finetune", "classify", *asked["classify"], "--auto-resume", "--pad-to", "batch", "--out", run)
    assert (code, "--pad-to is batch, and was length" in err) == (2, True)
    again = ["--auto-resume", "--no-baseline", "--out", run]
    assert call("finetune", "classify", *asked["classify"], *again)[0] == 0
    assert load_checkpoint(run / "checkpoint").training["step"] == 4
    (run / "results.json").unlink()  # as if it had been stopped after its last checkpoint
    assert call("finetune", "classify", "--resume", run, "--no-baseline")[0] == 0
    assert (run / "results.json").is_file()
    code, _, err = call("finetune", "classify", "--resume", run)
    assert (code, "nothing left to do" in err) == (2, True)


@pytest.mark.parametrize("kind", ["classify", "instruct", "prefer"])
def test_a_resumed_run_finds_every_part_of_its_data_as_it_was(call, tmp_path, asked, data, kind):
    """Also what it does not learn from: held-out losses go on, and a reference was asked about these rows."""
    path, run = tmp_path / "data.json", tmp_path / "run"
    rows = json.loads((data / ("texts.json" if kind == "classify" else "pairs.json")).read_text())
    path.write_text(json.dumps(rows))
    own = [path if str(word).endswith(".json") else word for word in asked[kind]]
    own += ["--no-balance"] if kind == "classify" else ["--shares", "0.5,0.3"]
    assert call("finetune", kind, *own, "--until", 2, "--out", run)[0] == 0
    told = []
    for place, row in enumerate(rows):
        other = {"text": "another", "output": "No.", "chosen": "No."}
        changed = {name: other.get(name, text) for name, text in row.items()}
        path.write_text(json.dumps([*rows[:place], changed, *rows[place + 1 :]]))
        code, _, err = call("finetune", kind, "--resume", run)
        assert (code, err.count("parallax: ")) == (2, 1), err
        told.append(err.partition(" part of the data is not what it was")[0].rpartition(" ")[2])
    assert (told.count("validation"), told.count("test")) == ((3, 7) if kind == "classify" else (4, 6))
    path.write_text(json.dumps(rows))
    code, _, err = call("finetune", kind, "--resume", run, *(["--no-baseline"] if kind == "classify" else []))
    assert code == 0, err


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


def test_what_is_no_text_and_damaged_records_get_one_sentence(call, tmp_path, weights, data, monkeypatch):
    config, arrays = heads.classifier(BYTES, params.randomise(BYTES, 0, 0.5), 2)
    kept = {"data": "texts.json", "classes": None, "balance": True, "shares": "0.7,0.1,0.2", "split_seed": 1}
    kept |= {"length": "longest", "pad_to": "length", "pad_multiple": 1, "read": "last", "average": False}
    sound = {"kind": "classify", "classes": ["no", "yes"], "length": 20, "options": kept | {"causal": True}}
    folders = {"sound": sound, "no length": sound | {"length": None}}
    folders["wrong option"] = sound | {"options": {**sound["options"], "pad_multiple": "two"}}
    for name, record in folders.items():
        save_checkpoint(tmp_path / name, config, arrays, training=record)
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    monkeypatch.setattr("sys.stdin", (tmp_path / "latin").open(encoding="utf-8"))
    rows = {"data": str(data / "pairs.json"), "shares": "0.5,0.4", "style": "phi3"}
    talking = {"no options": None, "no data": {**rows, "data": None}, "other options": {"style": "phi3"}}
    for kind in ("instruct", "prefer"):
        for name, own in talking.items():
            record = {"kind": kind, "options": own, "length": 96}
            save_checkpoint(tmp_path / f"{kind} {name}", BYTES, params.randomise(BYTES, 0), training=record)
    asked = [("classify", "sound", ["-"], "Standard input is not UTF-8 text (byte 0xe9 at offset 3)")]
    asked += [("classify", "no length", ["x"], "record of this run is damaged: see length.")]
    asked += [("classify", "wrong option", ["x"], "record of this run is damaged: see options.")]
    asked += [
        ("respond", f"{kind} {name}", ["--out", tmp_path / "out.json"], "record of this run is damaged: see options.")
        for kind in ("instruct", "prefer")
        for name in talking
    ]
    for command, folder, words, told in asked:
        code, out, err = call(command, "--weights", tmp_path / folder, *words, "--backend", "numpy")
        assert (code, out, told in err, err.count("\n")) == (2, "", True, 1), (folder, err)


def test_tokenizer_and_style_are_those_of_the_run_that_the_weights_are_from(call, tmp_path, asked, data):
    """Unless the command line says otherwise; the vocabulary is found where the run has kept it."""
    words, origin = bpe.train((data / "pairs.json").read_text(), 300), tmp_path / "origin"
    rows = {"data": "x.json", "shares": "0.5,0.4", "style": "phi3", "mask_instruction": False, "length": 96}
    record = {"kind": "instruct", "tokenizer": "bpe", "options": {**rows, "pad_multiple": 1}}
    config = BYTES.with_(vocab_size=words.vocab_size, context_length=320)
    save_checkpoint(origin / "checkpoint", config, params.randomise(config, 0, 0.5), training=record)
    words.save(origin)
    (tmp_path / "text.txt").write_text("Add 1 and 1. It is 2. " * 200)
    commands = {kind: ["finetune", kind, *own[2:]] for kind, own in asked.items()}
    commands["prefer"] = ["finetune", "prefer", "--data", data / "pairs.json", "--length", 320, *FEW]
    commands["train"] = ["train", "--data", tmp_path / "text.txt", "--length", 32, *FEW[:-2]]
    for kind, command in commands.items():
        for chosen in ([], ["--tokenizer", "bytes"]):
            out = tmp_path / f"{kind} {len(chosen)}"
            code, _, err = call(*command, "--weights", origin, "--until", 1, "--out", out, *chosen)
            assert (code, "was trained with the tokenizer bpe" in err) == (0, not chosen), err
            assert load_checkpoint(out / "checkpoint").training["tokenizer"] == ("bytes" if chosen else "bpe")
            assert (out / bpe.MERGES).is_file() is (not chosen)
    styles = {"--until": "phi3", "--style": "alpaca"}
    for option, style in styles.items():
        out = tmp_path / style
        own = [*commands["prefer"], "--weights", origin, "--out", out, "--until", 1]
        code, _, err = call(*own, *(["--style", style] if option == "--style" else []))
        assert (code, "writes prompts as phi3" in err) == (0, style == "phi3"), err
        assert load_checkpoint(out / "checkpoint").training["options"]["style"] == style
    code, _, err = call("finetune", "prefer", "--resume", tmp_path / "phi3")
    assert (code, "writes prompts" in err) == (0, False), err
    save_checkpoint(origin / "checkpoint", config, params.randomise(config, 0), training={"tokenizer": ["bpe"]})
    for command in (commands["train"], ["generate", "--prompt", "x"]):
        code, out, err = call(*command, "--weights", origin)
        assert (code, out, "is damaged: see tokenizer." in err, err.count("\n")) == (2, "", True, 1), err


def test_a_vocabulary_of_256_entries_is_not_read_as_bytes(call, tmp_path):
    words = bpe.train("no special token", 256, specials=())
    words.save(tmp_path)
    assert words.encode("a").tolist() != list(b"a")
    assert options.tokenizer_for(None, None, 256).name == "bytes"
    for own in ((None, tmp_path), (tmp_path, None)):
        assert options.tokenizer_for(None, own[0], 256, own[1]).encode("a").tolist() == words.encode("a").tolist()


@pytest.fixture
def classifier(tmp_path):
    """(folder, config, weights) of a classifier that no run of ours has made, with two adapters."""
    config, weights = heads.classifier(BYTES, params.randomise(BYTES, 0, 0.5), 3)
    for name in ("first", "second"):
        config, weights = adapters.add(config, weights, Adapter(name, ("*.down_proj", "score"), rank=2))
    weights = dict(weights)
    weights |= {name: weights[name] + params.draw(0, name, weights[name].shape) for name in adapters.names(config)}
    save_checkpoint(tmp_path / "given", config, weights)
    return tmp_path / "given", config, weights


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


def test_a_classifier_gets_a_new_head_and_that_is_told(call, tmp_path, asked, classifier):
    own = ["finetune", "classify", *asked["classify"], "--until", 1]
    for name, words, told in (("anew", [], False), ("again", ["--weights", classifier[0]], True)):
        code, _, err = call(*own, *words, "--out", tmp_path / name)
        assert (code, "a new head takes the place of its own" in err) == (0, told), err
    heads = [load_checkpoint(tmp_path / name / "checkpoint").weights["score.weight"] for name in ("anew", "again")]
    assert heads[0].shape == heads[1].shape == (2, 16)


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


def test_adapters_are_chosen_by_name_or_left_out(call, tmp_path, classifier):
    """What is asked is the model without the others, in every command that asks one."""
    _, config, weights = classifier
    drawn = ["--max-new-tokens", 24, "--temperature", 1.0]
    language = BYTES.with_(adapters=tuple(one.with_(targets=("*.down_proj",)) for one in config.adapters))
    own = {name: weights[name] for name in params.table(language)}
    (tmp_path / "rows.json").write_text(json.dumps([{"instruction": "Add.", "input": "", "output": "It is."}]))
    asked = {
        "classify": (config, weights, ["some text", "--json"]),
        "generate": (language, own, ["--prompt", "some", "--json", *drawn]),
        "respond": (language, own, ["--data", tmp_path / "rows.json", "--part", "all", "--style", "phi3", *drawn]),
    }
    for command, (whole, arrays, words) in asked.items():
        said, out = [], tmp_path / "out.json"
        words = [*words, "--backend", "numpy", *(["--out", out] if command == "respond" else [])]
        places = {"all": (whole, arrays)}
        places |= {name: adapters.without(whole, arrays, gone) for name, gone in GONE.items()}
        for name, own_model in places.items():
            save_checkpoint(tmp_path / f"{command} {name}", *own_model)
            chosen = {"all": [], "first": ["--adapter", "first"], "none": ["--no-adapters"]}[name]
            both = []
            for place, more in ((f"{command} all", chosen), (f"{command} {name}", [])):
                code, printed, err = call(command, "--weights", tmp_path / place, *words, *more)
                assert code == 0, err
                both.append(out.read_text() if command == "respond" else printed)
            assert both[0] == both[1]
            said.append(both[0])
        assert len(set(said)) == 3, command
        for more, told in (
            (["--adapter", "frist"], "Unknown adapter 'frist': did you mean 'first'?"),
            (["--adapter", "first", "--no-adapters"], "contradict each other"),
        ):
            code, _, err = call(command, "--weights", tmp_path / f"{command} all", *words, *more)
            assert (code, told in err, err.count("\n")) == (2, True, 1)
        code, _, err = call(command, "--weights", tmp_path / f"{command} none", *words, "--no-adapters")
        assert (code, "has no adapters; leave out --no-adapters" in err) == (2, True)


GONE = {"first": ("second",), "none": None}


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_answers_are_kept_and_taken_up_again(call, tmp_path, asked, monkeypatch, backend):
    from common.tuning import answers

    run, how = tmp_path / "run", ["--backend", backend]
    more = ["--steps", 150, "--learning-rate", 0.02, "--eval-every", 150, "--mask-instruction", "--batch-size", 4]
    assert call("finetune", "instruct", *asked["instruct"], *more, *how, "--out", run)[0] == 0
    lines = log_of(run)
    assert lines[-1]["held_out"] < load_checkpoint(run / "checkpoint").training["before"]["held_out"]
    whole = ["respond", "--weights", run, *how, "--max-new-tokens", 26, "--batch-size", 2, "--part", "train"]
    code, out, _ = call(*whole, "--out", tmp_path / "whole.json")
    assert (code, "17 answers" in out) == (0, True)
    rows = json.loads((tmp_path / "whole.json").read_text())
    assert all(set(row) == {"instruction", "input", "output", "model_response"} for row in rows)
    assert any(row["model_response"].startswith("It is") for row in rows)
    assert not any("<|assistant|>" in row["model_response"] for row in rows)
    real, made = answers.answers, []

    def stopped(*given):
        for row in real(*given):
            if len(made) == 5:
                raise KeyboardInterrupt
            made.append(row)
            yield row

    with monkeypatch.context() as patched:
        patched.setattr(answers, "answers", stopped)
        assert call(*whole, "--out", tmp_path / "split.json")[0] == 130
    assert not (tmp_path / "split.json").exists()
    code, _, err = call(*whole, "--out", tmp_path / "split.json")
    assert (code, "4 of 17 answers are there already" in err) == (0, True)
    assert json.loads((tmp_path / "split.json").read_text()) == rows
    assert [one.name for one in tmp_path.iterdir() if "partial" in one.name] == []


def test_answers_longer_than_the_context_are_counted(call, tmp_path, weights, data, asked):
    short = ["--length", 20, "--pad-multiple", 8]
    code, _, err = call("finetune", "instruct", *asked["instruct"], *short, "--out", tmp_path / "one")
    assert (code, "20 answers go beyond 20 tokens and are cut there; of 20 nothing is left." in err) == (0, True)
    short = ["--length", 56, "--pad-multiple", 8]
    code, _, err = call("finetune", "prefer", *asked["prefer"], *short, "--out", tmp_path / "two")
    assert code == 0, err
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert f"{results['cut']} answers go beyond 56 tokens" in err
    assert results["cut"] > 0


def test_answers_that_the_context_cuts_short_are_counted(call, tmp_path, weights):
    rows = [{"instruction": "x" * size, "input": "", "output": "y"} for size in (1, 1, 70, 96)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    asked = ["respond", "--weights", weights, "--data", tmp_path / "rows.json", "--part", "all", "--style", "phi3"]
    code, _, err = call(*asked, "--max-new-tokens", 30, "--out", tmp_path / "said.json")
    assert code == 0, err
    assert "1 prompts fill the context of 96 tokens and get no answer." in err
    assert "The context leaves 1 answers fewer than --max-new-tokens 30." in err
    said = json.loads((tmp_path / "said.json").read_text())
    assert said[0]["model_response"] == said[1]["model_response"]
    assert said[3]["model_response"] == ""


def test_a_place_for_answers_that_is_none_is_refused_before_any_is_made(call, tmp_path, weights, monkeypatch):
    from common.tuning import answers

    monkeypatch.setattr(answers, "answers", None)
    (tmp_path / "file").touch()
    for out, told in ((tmp_path, "is a folder; a file is to be written"), (tmp_path / "file" / "x", "is a file.")):
        code, _, err = call("respond", "--weights", weights, "--data", tmp_path / "x.json", "--out", out)
        assert (code, told in err, err.count("\n")) == (2, True, 1), err


def test_what_the_reference_said_is_kept_and_held_against_the_run(call, tmp_path, asked, monkeypatch):
    """Precomputed and online references train the same model; the file is not computed again, and must be the one."""
    from common.tuning import preferences

    one, two = tmp_path / "precomputed", tmp_path / "online"
    assert call("finetune", "prefer", *asked["prefer"], "--until", 2, "--out", one)[0] == 0
    again = call("finetune", "prefer", *asked["prefer"], "--reference", "online", "--out", two)
    assert again[0] == 0
    reference = one / preferences.FILE
    before = reference.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(preferences, "write", None)
        assert call("finetune", "prefer", "--resume", one)[0] == 0
    for line, other in zip(log_of(one), log_of(two), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert log_of(two)[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)
    found = json.loads((two / "results.json").read_text())
    assert found["train"]["margin"] > found["before"]["train_margin"]
    assert call("finetune", "prefer", *asked["prefer"], "--until", 2, "--out", tmp_path / "x")[0] == 0
    (tmp_path / "x" / preferences.FILE).write_bytes(before + b" ")
    code, _, err = call("finetune", "prefer", "--resume", tmp_path / "x")
    assert (code, "is not what this run wrote there" in err) == (2, True)
    (tmp_path / "x" / preferences.FILE).unlink()
    code, _, err = call("finetune", "prefer", "--resume", tmp_path / "x")
    assert (code, "is missing" in err) == (2, True)


def test_what_is_not_trained_is_kept_as_it_was_given(call, tmp_path, asked):
    """A resumed run may compute in another precision, or in 4 bits: older checkpoints are as readable as before."""
    run, own = tmp_path / "run", [*asked["classify"], *MORE["classify lora"]]
    assert call("finetune", "classify", *own, "--until", 2, "--save-every", 1, "--keep", 3, "--out", run)[0] == 0
    kept = {path.name: path.read_bytes() for path in (run / "frozen").iterdir()}
    given, first = load_checkpoint(asked["classify"][1]).weights, load_checkpoint(run / "checkpoint").weights
    name = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(first[name], given[name])
    for how in (["--dtype", "float64", "--until", 3], ["--mode", "nf4 double", "--keep", 3, "--no-baseline"]):
        assert call("finetune", "classify", "--resume", run, *how)[0] == 0
        assert {path.name: path.read_bytes() for path in (run / "frozen").iterdir()} == kept
    for folder in (run / "checkpoint", *(run / "checkpoints").iterdir()):
        np.testing.assert_array_equal(load_checkpoint(folder).weights[name], given[name])


def test_a_preference_run_answers_its_own_rows(call, tmp_path, asked):
    run = tmp_path / "run"
    assert call("finetune", "prefer", *asked["prefer"], *EVALUATED, "--out", run)[0] == 0
    code, _, err = call("respond", "--weights", run, "--max-new-tokens", 2, "--out", tmp_path / "said.json")
    assert code == 0, err
    said = json.loads((tmp_path / "said.json").read_text())
    assert said
    assert all({"chosen", "model_response"} <= set(row) for row in said)
