"""A vocabulary and its model grow together: old rows, old logits and tied heads stay."""

import numpy as np
import pytest

from common import backend, params
from common.config import Execution, GPTConfig, SamplingConfig
from common.errors import UserError
from common.run import weights_of
from common.tokenizers import bpe
from common.weights.checkpoint import save_checkpoint
from common.weights.grow import grown, padded, padded_size

SENTENCE = "Sample text with MyNewToken_1 and MyNewToken_2. <|endoftext|>"


@pytest.mark.full_for("untied-jax")
@pytest.mark.parametrize("wing", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_old_rows_and_logits_stay_to_the_bit(wing, tied):
    config = GPTConfig(13, 16, 8, 2, 2, ff_dim=12, tie_embeddings=tied)
    weights, ids = params.randomise(config, 3), np.arange(12, dtype=np.int32)[None]
    larger, more = grown(config, weights, 2, seed=5)
    assert larger == config.with_(vocab_size=15)
    assert set(more) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(more[name][: len(value)], value)
        assert more[name].dtype == value.dtype
        assert len(more[name]) == len(value) + 2 * (value.shape[0] == 13)
    table = [more[name][13:] for name in ("model.embed_tokens.weight", "lm_head.weight") if name in weights]
    assert len(table) == (1 if tied else 2)
    assert all(0.005 < rows.std() < 0.05 for rows in table)
    old, new = (
        backend.load(wing).build(c, w, Execution("float64")).forward(ids).logits
        for c, w in ((config, weights), (larger, more))
    )
    np.testing.assert_allclose(new[..., :13], old, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(grown(config, weights, 2, seed=5)[1]["model.embed_tokens.weight"], table_of(more))
    assert (grown(config, weights, 2, seed=6)[1]["model.embed_tokens.weight"][13:] != table[0]).any()


def table_of(weights):
    return weights["model.embed_tokens.weight"]


@pytest.mark.parametrize(("size", "multiple", "found"), [(50257, 64, 50304), (256, 64, 256), (1, 8, 8), (9, 8, 16)])
def test_a_vocabulary_is_rounded_up(size, multiple, found):
    assert padded_size(size, multiple) == found


@pytest.mark.full_for("jax", "untied-torch")  # tests/cli/train/test_learning.py pads one in JAX
@pytest.mark.parametrize("wing", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_pads_a_vocabulary_is_never_chosen(wing, tied):
    """However likely the model finds it; and tokens are drawn as by the model without, for their noise is the same."""
    config = GPTConfig(13, 16, 8, 2, 2, ff_dim=12, tie_embeddings=tied)
    weights, prompts = params.randomise(config, 3), [[1, 2, 3], [4]]
    larger, more = padded(config, weights, 8)
    assert larger.vocab_size == 16
    assert padded(larger, more, 8) == (larger, more)
    more = dict(more)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in more:  # one of three opposite rows wins at every position
            more[name] = np.concatenate([more[name][:13], [[9.0] * 8, [-9.0] * 8, [9.0, -9.0] * 4]]).astype(np.float32)
    build = backend.load(wing).build
    plain, model = (build(c, w, Execution("float64")) for c, w in ((config, weights), (larger, more)))
    assert any(token > 12 for row in model.generate(prompts, SamplingConfig(6)) for token in row)
    for drawn in ({}, {"temperature": 1.3, "seed": 2}, {"temperature": 1.0, "top_k": 5, "top_p": 0.8, "cache": False}):
        sampling = SamplingConfig(6, **drawn)
        assert model.generate(prompts, sampling.with_(tokens=13)) == plain.generate(prompts, sampling)


@pytest.mark.parametrize(("tokens", "size"), [(2, 16), (3, 16), (5, 18)])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_new_tokens_take_the_rows_of_the_padding_first(tied, tokens, size):
    """And are there what they are in a model that was never padded; what is padding still stays."""
    config = GPTConfig(13, 16, 8, 2, 2, ff_dim=12, tie_embeddings=tied)
    weights = params.randomise(config, 3)
    wide, more = padded(config, weights, 8)
    want_config, want = grown(config, weights, tokens, seed=5)
    found_config, found = grown(wide, more, tokens, seed=5, known=13)
    assert (found_config.vocab_size, want_config.vocab_size) == (size, 13 + tokens)
    for name, parameter in params.table(found_config).items():
        assert found[name].shape == parameter.shape
        rows = len(want[name])
        np.testing.assert_array_equal(found[name][:rows], want[name])
        np.testing.assert_array_equal(found[name][rows:], more[name][rows:])


def test_more_tokens_than_a_vocabulary_has_are_refused():
    config = GPTConfig(13, 16, 8, 2, 2, ff_dim=12)
    model = backend.load("numpy").build(config, params.randomise(config, 3), Execution("float64"))
    with pytest.raises(UserError, match="14 tokens are to choose from, and the model's vocabulary has 13"):
        model.generate([[1]], SamplingConfig(1, tokens=14))
    with pytest.raises(UserError, match=r"The end token 12 is outside the vocabulary \(0 to 11\)"):
        model.generate([[1]], SamplingConfig(1, tokens=12, end_token=12))
    assert "tokens" not in SamplingConfig().to_dict()


@pytest.mark.parametrize("tokens", [0, -1, 1.5])
def test_a_number_that_is_none_is_refused(tokens):
    config = GPTConfig(13, 16, 8, 2, 2, ff_dim=12)
    with pytest.raises(UserError, match="a whole number of tokens > 0"):
        grown(config, params.initialise(config, 0), tokens)


def test_gpt2s_vocabulary_by_two_tokens(data_dir):
    made = bpe.load(data_dir / "gpt2").grown(["MyNewToken_1", "MyNewToken_2"])
    ids = made.encode(SENTENCE, special=True)
    assert ids.tolist() == [36674, 2420, 351, 220, 50257, 290, 220, 50258, 13, 220, 50256]
    assert made.decode(ids) == SENTENCE
    with pytest.raises(UserError, match="'MyNewToken_1' is in this vocabulary already"):
        made.grown(["MyNewToken_1"])
    with pytest.raises(UserError, match="A special token is empty"):
        made.grown([""])


def test_on_the_command_line_both_grow_into_one_folder(call, tmp_path):
    bpe.train("some text, some more text", 270).save(tmp_path / "vocabulary")
    own = bpe.load(tmp_path / "vocabulary")
    config = GPTConfig(own.vocab_size, 16, 8, 2, 2, ff_dim=12)
    save_checkpoint(tmp_path / "model", config, params.initialise(config, 0))
    asked = ["tokenizer", "grow", "<new>", "--vocab", tmp_path / "vocabulary", "--weights", tmp_path / "model"]
    code, out, err = call(*asked, "--out", tmp_path / "both")
    assert (code, err) == (0, "")
    assert out.startswith(f"{own.vocab_size + 1:,} tokens, the new ones: <new> {own.vocab_size}.")
    found, _ = weights_of(tmp_path / "both")
    assert found.config.vocab_size == own.vocab_size + 1
    how = ["--weights", tmp_path / "both", "--tokenizer", "bpe", "--prompt", "some<new>", "--max-new-tokens", 2]
    assert call("generate", *how)[0] == 0
    code, _, err = call(
        *asked[:3], "--vocab", tmp_path / "both", "--weights", tmp_path / "model", "--out", tmp_path / "x"
    )
    assert (code, (tmp_path / "x").exists()) == (2, False)
    assert "is in this vocabulary already" in err
    code, _, err = call(*asked[:2], "<other>", "--vocab", tmp_path / "both", "--weights", tmp_path / "model")
    assert code == 2
    assert f"has {own.vocab_size} tokens, the vocabulary {own.vocab_size + 1}; they belong together" in err


def test_weights_and_vocabulary_are_written_both_or_neither(call, tmp_path, monkeypatch):
    own = bpe.train("some text, some more text", 270)
    own.save(tmp_path / "vocabulary")
    config = GPTConfig(own.vocab_size, 16, 8, 2, 2, ff_dim=12)
    save_checkpoint(tmp_path / "model", config, params.initialise(config, 0))

    def full(*_):
        raise UserError("No space left.")

    monkeypatch.setattr(bpe.BPE, "save", full)
    asked = ["tokenizer", "grow", "<new>", "--vocab", tmp_path / "vocabulary", "--weights", tmp_path / "model"]
    code, _, err = call(*asked, "--out", tmp_path / "out")
    assert (code, "No space left." in err, (tmp_path / "out").exists()) == (2, True, False)


def test_a_padded_run_grows_with_its_own_vocabulary_alone(call, tmp_path):
    """Of another one nobody knows whether the rows behind it are padding."""
    own = bpe.train("some text, some more text", 270)
    own.save(tmp_path / "run")
    bpe.train("quite another text, quite another", 268).save(tmp_path / "other")
    config = GPTConfig(own.vocab_size, 16, 8, 2, 2, ff_dim=12)
    wide, weights = padded(config, params.initialise(config, 0), 64)
    save_checkpoint(tmp_path / "run" / "checkpoint", wide, weights, training={"tokenizer": "bpe"})
    asked = ["tokenizer", "grow", "<one>", "<two>", "--weights", tmp_path / "run"]
    code, _, err = call(*asked, "--vocab", tmp_path / "other", "--out", tmp_path / "out")
    assert (code, (tmp_path / "out").exists()) == (2, False)
    assert "if the model is padded and its run has this vocabulary" in err
    assert call(*asked, "--vocab", tmp_path / "run", "--out", tmp_path / "out")[0] == 0
    found, _ = weights_of(tmp_path / "out")
    assert found.config == wide
    assert bpe.load(tmp_path / "out").specials["<two>"] == own.vocab_size + 1
    again = ["tokenizer", "grow", "<three>", "--weights", tmp_path / "out", "--vocab", tmp_path / "out"]
    assert call(*again, "--out", tmp_path / "more")[0] == 0
    how = ["--weights", tmp_path / "more", "--prompt", "some<one><three>", "--max-new-tokens", 2]
    assert call("generate", *how, "--backend", "numpy")[0] == 0
