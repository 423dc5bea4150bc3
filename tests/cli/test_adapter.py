"""`parallax adapter` as a person meets it: what adapters cost, merged, written for PEFT, read back, and refused."""

import json

import numpy as np
import pytest

from common import adapters, heads, params
from common.accounting import adapted, memory
from common.adapters import Adapter
from common.backend import load
from common.config import Execution, GPTConfig, TrainConfig, preset
from common.errors import UserError
from common.tokenizers import bpe
from common.weights import checkpoint
from common.weights.checkpoint import load_checkpoint, save_checkpoint

SMALL = GPTConfig(256, 32, 24, 2, 2)
FIRST = Adapter("first", ("*.q_proj", "*.down_proj"), rank=3, alpha=6.0)
SECOND = Adapter("second", ("*.v_proj",), rank=2, rslora=True)
EXACT, IDS = Execution("float64"), np.arange(20, dtype=np.int32).reshape(2, 10) * 7


def adapted_weights(*made, config=SMALL):
    weights = params.randomise(config, 3)
    for one in made:
        config, weights = adapters.add(config, weights, one)
    weights = dict(weights)
    for name in adapters.names(config):
        weights[name] = weights[name] + 0.1 * params.draw(0, name, weights[name].shape).astype(np.float32)
    return config, weights


def logits(folder):
    found = load_checkpoint(folder)
    return load("numpy").build(found.config, found.weights, EXACT).forward(IDS).logits


@pytest.fixture
def run(tmp_path):
    config, weights = adapted_weights(FIRST, SECOND)
    save_checkpoint(tmp_path / "run", config, weights, training={"tokenizer": "bytes", "kind": "instruct"})
    return tmp_path / "run"


def test_golden_numbers_of_the_book():
    """Rank 16 on every linear map: appendix E's classifier of 124M, and the 355M model with a head of its own."""
    everywhere = Adapter(targets=("*",), rank=16, alpha=16.0)
    small = preset("gpt2-124m").with_(num_labels=2, adapters=everywhere)
    large = preset("gpt2-355m").with_(tie_embeddings=False, adapters=everywhere)
    for config, trainable, frozen in ((small, 2_666_528, 124_441_346), (large, 7_898_384, 406_286_336)):
        found = adapted.report(config)
        assert (found.trainable, found.frozen) == (trainable, frozen)
        assert found.shares[0].parameters == trainable
        full, part, tiny = (found.runs[name] for name in ("full", "part", "nf4"))
        assert full.together == 16 * frozen
        assert part.together == 16 * trainable + 4 * frozen
        assert part.weights - tiny.weights == memory.base(config) - memory.base(config, base="nf4")
        assert full.flops > part.flops == tiny.flops > 0.6 * full.flops


def test_info_of_a_run(call, run):
    code, out, _ = call("adapter", "info", run, "--json")
    assert code == 0
    found = json.loads(out)
    own = 2 * (3 * (24 + 24) + 3 * (24 + 96)), 2 * 2 * (24 + 24)
    assert [one["parameters"] for one in found["adapters"]] == list(own)
    assert [one["name"] for one in found["adapters"]] == ["first", "second"]
    assert [one["maps"] for one in found["adapters"]] == [4, 2]
    assert (found["trainable"], found["frozen"]) == (sum(own), params.count(SMALL))
    assert found["runs"]["part"]["gradients"] == 4 * sum(own)
    assert found["runs"]["part"]["optimizer"] == 8 * sum(own)
    assert found["runs"]["full"]["together"] == 16 * params.count(SMALL)
    code, out, _ = call("adapter", "info", run)
    assert code == 0
    for words in ("first", "*.q_proj, *.down_proj", f"{sum(own):,} parameters are trained", "this run, base in NF4"):
        assert words in out


def test_info_of_a_run_that_trains_layers(call, tmp_path):
    config, weights = heads.classifier(SMALL, params.randomise(SMALL, 3), 2)
    train = TrainConfig(trained=("model.layers.1.*", "model.norm.*", "score.*"))
    save_checkpoint(tmp_path / "run", config, weights, training={"train": train.to_dict()})
    code, out, _ = call("adapter", "info", tmp_path / "run", "--json", "--dtype", "bfloat16")
    assert code == 0
    found = json.loads(out)
    assert found["adapters"] == []
    assert found["trainable"] == memory.learning(config, train) < params.count(config) // 2
    assert set(found["runs"]) == {"full", "part"}
    assert found["runs"]["part"]["flops"] < 0.8 * found["runs"]["full"]["flops"]


def test_merged_weights_compute_the_same(call, run, tmp_path):
    code, out, _ = call("adapter", "merge", run, "--out", tmp_path / "all")
    assert code == 0
    assert "first, second merged" in out
    want = logits(run)
    assert load_checkpoint(tmp_path / "all").config == SMALL
    assert np.abs(logits(tmp_path / "all") - want).max() < 1e-5 * np.abs(want).max()
    assert load_checkpoint(tmp_path / "all").training == {"tokenizer": "bytes", "kind": "instruct"}
    assert call("adapter", "merge", run, "--out", tmp_path / "one", "--names", "second")[0] == 0
    assert [one.name for one in load_checkpoint(tmp_path / "one").config.adapters] == ["first"]
    assert np.abs(logits(tmp_path / "one") - want).max() < 1e-5 * np.abs(want).max()
    base = adapters.without(*adapted_weights(FIRST, SECOND))
    plain = load("numpy").build(*base, EXACT).forward(IDS).logits
    assert np.abs(plain - want).max() > 1e-2 * np.abs(want).max()


def test_adapters_on_one_map_are_merged_together_with_dora(call, tmp_path):
    """Their sum is what the oracle computes; some of them alone would change what the others turn."""
    made = [Adapter(name, ("*.q_proj", "*.up_proj"), rank=2, dora=name != "plain") for name in ("one", "plain", "two")]
    config, weights = adapted_weights(*made)
    save_checkpoint(tmp_path / "run", config, weights)
    want = logits(tmp_path / "run")
    merged, own = adapters.merge(config, {name: np.asarray(one, np.float64) for name, one in weights.items()})
    exact = load("numpy").build(merged, own, EXACT).forward(IDS).logits
    assert np.abs(exact - want).max() < 1e-12 * np.abs(want).max()
    assert call("adapter", "merge", tmp_path / "run", "--out", tmp_path / "all")[0] == 0
    assert load_checkpoint(tmp_path / "all").config == SMALL
    assert np.abs(logits(tmp_path / "all") - want).max() < 1e-5 * np.abs(want).max()
    for names in ("one", "plain", "one,two"):
        code, out, err = call("adapter", "merge", tmp_path / "run", "--out", tmp_path / "some", "--names", names)
        assert (code, out, "3 adapters, one of them with DoRA" in err, err.count("\n")) == (2, "", True, 1), err
    assert not (tmp_path / "some").exists()


def test_a_model_without_adapters_or_some(call, run, tmp_path):
    code, out, _ = call("adapter", "remove", run, "--out", tmp_path / "bare")
    assert (code, "first, second removed" in out) == (0, True)
    bare, base = load_checkpoint(tmp_path / "bare"), params.randomise(SMALL, 3)
    assert (bare.config, bare.training) == (SMALL, {"tokenizer": "bytes", "kind": "instruct"})
    assert all((bare.weights[name] == base[name]).all() for name in params.table(SMALL))
    assert call("adapter", "remove", run, "--adapter", "first", "--out", tmp_path / "one")[0] == 0
    config, weights = adapted_weights(FIRST, SECOND)
    save_checkpoint(tmp_path / "want", *adapters.without(config, weights, ("first",)))
    assert [one.name for one in load_checkpoint(tmp_path / "one").config.adapters] == ["second"]
    assert np.array_equal(logits(tmp_path / "one"), logits(tmp_path / "want"))
    both = ["--adapter", "first", "--adapter", "second"]
    assert call("adapter", "remove", run, *both, "--out", tmp_path / "none")[0] == 0
    assert load_checkpoint(tmp_path / "none").config == SMALL


def test_through_the_files_of_peft_and_back(call, run, tmp_path):
    save_checkpoint(tmp_path / "base", SMALL, params.randomise(SMALL, 3))
    for name in ("first", "second"):
        assert call("adapter", "export", run, "--out", tmp_path / name, "--name", name)[0] == 0
    base = tmp_path / "base"
    for name in ("first", "second"):
        out = tmp_path / f"with {name}"
        assert call("adapter", "import", tmp_path / name, "--weights", base, "--out", out, "--name", name)[0] == 0
        base = out
    assert np.array_equal(logits(base), logits(run))
    code, out, _ = call("adapter", "info", tmp_path / "first", "--weights", tmp_path / "base", "--json")
    assert code == 0
    assert json.loads(out)["trainable"] == 2 * (3 * (24 + 24) + 3 * (24 + 96))


def test_a_bias_of_the_head_that_peft_leaves_out_is_told(call, tmp_path):
    """It is in the file, and comes back."""
    config, weights = heads.classifier(SMALL, params.randomise(SMALL, 3), 3)
    for name, number in (("without", 0), ("with", 0.5)):
        weights = {**weights, "score.bias": np.full(3, number, np.float32)}
        save_checkpoint(tmp_path / name, *adapters.add(config, weights, Adapter(rank=2)))
        code, _, err = call("adapter", "export", tmp_path / name, "--out", tmp_path / f"peft {name}")
        assert (code, "The head has a bias" in err and "PEFT leaves it out" in err) == (0, name == "with"), err
    save_checkpoint(tmp_path / "base", SMALL, params.randomise(SMALL, 3))
    back = ["adapter", "import", tmp_path / "peft with", "--weights", tmp_path / "base", "--out", tmp_path / "back"]
    assert call(*back)[0] == 0
    assert np.array_equal(load_checkpoint(tmp_path / "back").weights["score.bias"], weights["score.bias"])


@pytest.fixture
def spoken(tmp_path):
    """A run of a vocabulary of its own, which lies beside its checkpoint: (folder, vocabulary)."""
    vocabulary = bpe.train("She sells sea shells by the sea shore. " * 4, 270)
    config, weights = adapted_weights(FIRST, SECOND, config=SMALL.with_(vocab_size=vocabulary.vocab_size))
    save_checkpoint(tmp_path / "run" / "checkpoint", config, weights, training={"tokenizer": "bpe", "kind": "pretrain"})
    vocabulary.save(tmp_path / "run")
    return tmp_path / "run", vocabulary


def test_a_vocabulary_goes_where_its_weights_go(call, spoken, tmp_path):
    """So what is written generates text, with nothing named."""
    run, vocabulary = spoken
    assert call("adapter", "merge", run, "--out", tmp_path / "merged")[0] == 0
    assert call("adapter", "remove", run, "--out", tmp_path / "removed")[0] == 0
    assert call("adapter", "export", run, "--out", tmp_path / "peft", "--name", "first")[0] == 0
    back = ["adapter", "import", tmp_path / "peft", "--weights", tmp_path / "removed", "--out", tmp_path / "back"]
    assert call(*back)[0] == 0
    texts = {}
    for name in ("run", "merged", "removed", "back"):
        folder = tmp_path / name
        assert bpe.load(folder).tokens == vocabulary.tokens
        asked = ["--weights", folder, "--prompt", "sea", "--max-new-tokens", 6, "--backend", "numpy"]
        code, texts[name], err = call("generate", *asked)
        assert code == 0, err
    assert texts["merged"] == texts["run"]


def test_a_vocabulary_that_cannot_be_copied_leaves_nothing(call, spoken, tmp_path, monkeypatch):
    run, _ = spoken

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.shutil, "copyfile", full)
    code, _, err = call("adapter", "merge", run, "--out", tmp_path / "merged")
    assert (code, "No space left on device" in err) == (2, True)
    assert [one.name for one in tmp_path.iterdir()] == ["run"]


def test_a_vocabulary_that_is_not_written_anew_is_not_lost(tmp_path):
    weights = params.randomise(SMALL, 3)
    (tmp_path / "text.txt").touch()
    save_checkpoint(tmp_path / "one", SMALL, weights, beside=[tmp_path / "text.txt"])
    save_checkpoint(tmp_path / "one", SMALL, weights, beside=[tmp_path / "text.txt"])
    with pytest.raises(UserError, match=r"also holds text\.txt, which would be lost"):
        save_checkpoint(tmp_path / "one", SMALL, weights)


def test_refusals(call, run, tmp_path):
    base, other = tmp_path / "base", tmp_path / "other"
    save_checkpoint(base, SMALL, params.randomise(SMALL, 3))
    narrow = SMALL.with_(embed_dim=16)
    save_checkpoint(other, narrow, params.randomise(narrow, 3))
    save_checkpoint(tmp_path / "alike", SMALL, params.randomise(SMALL, 4))
    assert call("adapter", "export", run, "--out", tmp_path / "peft", "--name", "first")[0] == 0
    (tmp_path / "empty").mkdir()
    out = ("--out", tmp_path / "out")
    for arguments, sentence in (
        (("merge", run, *out, "--names", "frist"), "did you mean 'first'"),
        (("merge", run, *out, "--names", ","), "--names names no adapter"),
        (("merge", base, *out), "has no adapters"),
        (("merge", tmp_path / "nowhere", *out), "nowhere"),
        (("merge", tmp_path / "peft", *out), "without its base"),
        (("merge", run, "--out", run), "holds the state of a training run"),
        (("remove", run, *out, "--adapter", "frist"), "did you mean 'first'"),
        (("remove", base, *out), "has no adapters"),
        (("remove", run, "--out", run), "holds the state of a training run"),
        (("export", run, *out), "2 adapters; choose one of first, second by --name"),
        (("export", run, *out, "--name", "secnd"), "did you mean 'second'"),
        (("export", base, *out), "has no adapters"),
        (("import", tmp_path / "peft", "--weights", other, *out), "this adapter is for another base"),
        (
            ("import", tmp_path / "peft", "--weights", tmp_path / "alike", *out),
            "another base, whose matrices are not these",
        ),
        (("import", base, "--weights", base, *out), "adapter_config.json is missing, it holds config.json"),
        (("import", tmp_path / "empty", "--weights", base, *out), "it is empty"),
        (("import", tmp_path / "nowhere", "--weights", base, *out), "There is no folder"),
        (("import", tmp_path / "peft", "--weights", base, *out, "--name", "1"), "digits"),
        (("import", tmp_path / "peft", "--weights", run, *out, "--name", "first"), "already"),
        (("import", tmp_path / "peft", "--weights", base, "--out", base), "is the source itself"),
        (("info", tmp_path / "peft"), "name its base by --weights"),
        (("info", tmp_path / "nowhere"), "nowhere"),
        (("info", run, "--dtype", "float23"), "did you mean"),
    ):
        code, told, err = call("adapter", *arguments)
        assert (code, told) == (2, ""), arguments
        assert sentence in err, (arguments, err)
    assert not (tmp_path / "out").exists()
    code, _, err = call("adapter", "import", tmp_path / "peft", "--weights", tmp_path / "alike", *out, "--any-base")
    assert code == 0, err
