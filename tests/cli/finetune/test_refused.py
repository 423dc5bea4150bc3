"""Mistakes in fine-tuning get one sentence, and leave nothing behind."""

import json
from typing import get_type_hints

import pytest
from small import BYTES

from common import heads, params
from common.commands.finetune.prefer import Preferences
from common.preference import LOSSES, REDUCTIONS
from common.weights.checkpoint import save_checkpoint


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
    "average of what is read anyway": ("classify", ["--average", "--read", "last"], "so --read last chooses none"),
    "unknown reference": ("prefer", ["--reference", "on"], "did you mean 'online'"),
    "length of nothing": ("prefer", ["--length", 0], "--length is 0; allowed is a whole number > 0."),
    "no prompt that fits": ("prefer", ["--length", 20], "of all 20 pairs fill 20 tokens; give a larger --length."),
    "no prompt that fits the context": (
        "prefer",
        ["--style", "alpaca"],
        "fill 96 tokens; the context of this model has no more",
    ),
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
