"""What is asked of given weights: their tokenizer and style, and of their adapters some or none."""

import json

from small import BYTES, FEW

from common import adapters, params
from common.commands import options
from common.tokenizers import bpe
from common.weights.checkpoint import load_checkpoint, save_checkpoint

GONE = {"first": ("second",), "none": None}


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
