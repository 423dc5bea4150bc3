"""Bytes and GPT-2's byte pairs: known ids, round trips, streaming, and what is said when the vocabulary is missing."""

import hashlib
import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.tokenizers import NAMES, Stream, tokenizer
from common.tokenizers.gpt2 import TIKTOKEN_BASE

# Raschka 2024, chapter 2 and bonus material; the second column is what tiktoken's "gpt2" gives.
KNOWN = [
    ("Akwirw ier", [33901, 86, 343, 86, 220, 959]),
    ("Hello, I am", [15496, 11, 314, 716]),
    ("Every effort moves you", [6109, 3626, 6100, 345]),
    ("<|user|>", [27, 91, 7220, 91, 29]),
    ("Hello, world. Is this-- a test?", [15496, 11, 995, 13, 1148, 428, 438, 257, 1332, 30]),
    ("This is some text", [1212, 318, 617, 2420]),
    ("Implementations", [3546, 26908, 602]),
    ("Hello,", [15496, 11]),
]
TEA = "Hello, do you like tea? <|endoftext|> In the sunlit terracesof someunknownPlace."
TEA_IDS = [15496, 11, 466, 345, 588, 8887, 30, 220, 50256, 554, 262]
TEA_IDS += [4252, 18250, 8812, 2114, 1659, 617, 34680, 27271, 13]


@pytest.fixture(scope="module")
def gpt2(data_dir):
    return tokenizer("gpt2", data_dir / "gpt2")


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine on which no vocabulary is found."""
    monkeypatch.delenv("PARALLAX_VOCAB", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setenv("PARALLAX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def test_bytes_are_the_utf8_of_the_text():
    made = tokenizer("bytes")
    ids = made.encode("aé€😀<|endoftext|>", special=True)
    assert ids.dtype == np.int32
    assert ids[:10].tolist() == [0x61, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80]
    assert bytes(ids[10:].tolist()) == b"<|endoftext|>"
    assert (made.vocab_size, made.end_token) == (256, None)
    assert made.decode([0x61, 0xC3]) == "a\ufffd"


@given(st.text())
def test_bytes_round_trip(text):
    made = tokenizer("bytes")
    assert made.decode(made.encode(text)) == text


@given(st.lists(st.lists(st.integers(0, 255), max_size=4)))
def test_stream_gives_the_text_of_all_ids_and_no_half_character(pieces):
    made, text = tokenizer("bytes"), ""
    stream = Stream(made)
    seen = []
    for piece in pieces:
        text += stream.feed(piece)
        seen += piece
        assert made.decode(seen).startswith(text)
    assert text + stream.finish() == made.decode(seen)


def test_stream_holds_a_character_back_until_it_is_whole():
    stream = Stream(tokenizer("bytes"))
    assert [stream.feed(byte) for byte in "😀!".encode()] == ["", "", "", "😀", "!"]
    assert stream.feed(0xF0) == ""
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize(("text", "ids"), KNOWN)
def test_gpt2_known_ids(gpt2, text, ids):
    assert gpt2.encode(text).tolist() == ids
    assert gpt2.encode(text).dtype == np.int32
    assert gpt2.decode(ids) == text


def test_gpt2_end_of_text_is_plain_unless_asked(gpt2):
    assert gpt2.encode(TEA, special=True).tolist() == TEA_IDS
    plain = gpt2.encode(TEA)
    assert 50256 not in plain
    assert gpt2.decode(plain) == gpt2.decode(TEA_IDS) == TEA
    assert (gpt2.vocab_size, gpt2.end_token) == (50257, 50256)


@pytest.mark.parametrize(("name", "tokens"), [("the-verdict.txt", 5145), ("tinyshakespeare.txt", 338025)])
def test_gpt2_counts_of_real_texts(gpt2, data_dir, name, tokens):
    text = (data_dir / name).read_text(encoding="utf-8")
    ids = gpt2.encode(text)
    assert len(ids) == tokens
    assert gpt2.decode(ids) == text


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_gpt2_round_trip_and_stream(gpt2, text):
    ids = gpt2.encode(text)
    assert gpt2.decode(ids) == text
    stream = Stream(gpt2)
    assert "".join(stream.feed(i) for i in ids) + stream.finish() == text


def test_gpt2_other_file_names_are_the_same_vocabulary(data_dir, tmp_path, monkeypatch, gpt2):
    shutil.copy(data_dir / "gpt2" / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(data_dir / "gpt2" / "vocab.bpe", tmp_path / "merges.txt")
    monkeypatch.setenv("PARALLAX_VOCAB", str(tmp_path))
    made = tokenizer("gpt2")
    assert made.encode(TEA).tolist() == gpt2.encode(TEA).tolist()
    assert made.describe()["source"] == "PARALLAX_VOCAB"


def test_gpt2_finds_fetched_files(data_dir, nowhere):
    shutil.copytree(data_dir / "gpt2", nowhere / "home" / "weights" / "gpt2-124m")
    assert tokenizer("gpt2").describe()["source"] == "fetched files"


def test_gpt2_finds_tiktokens_cache_and_leaves_it_alone(data_dir, nowhere):
    cache = nowhere / "cache"
    cache.mkdir()
    for name in ("vocab.bpe", "encoder.json"):
        shutil.copy(data_dir / "gpt2" / name, cache / hashlib.sha1((TIKTOKEN_BASE + name).encode()).hexdigest())
    before = sorted(cache.iterdir())
    assert tokenizer("gpt2").encode("Hello, I am").tolist() == [15496, 11, 314, 716]
    assert sorted(cache.iterdir()) == before
    assert os.environ["TIKTOKEN_CACHE_DIR"] == str(cache)


def test_gpt2_without_files_downloads_nothing_and_says_what_to_do(nowhere, monkeypatch):
    def refuse(*_):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("tiktoken.load.read_file", refuse)
    with pytest.raises(UserError, match=r"parallax fetch gpt2-124m.*PARALLAX_VOCAB"):
        tokenizer("gpt2")
    assert not (nowhere / "cache").exists()


def test_gpt2_named_folder_is_never_passed_over(nowhere, monkeypatch):
    with pytest.raises(
        UserError, match=r"the given folder.*encoder\.json and vocab\.bpe or vocab\.json and merges\.txt"
    ):
        tokenizer("gpt2", nowhere)
    monkeypatch.setenv("PARALLAX_VOCAB", str(nowhere / "gone"))
    with pytest.raises(UserError, match=r"gone \(PARALLAX_VOCAB\)"):
        tokenizer("gpt2")


@pytest.mark.parametrize("name", ["encoder.json", "vocab.bpe"])
def test_gpt2_refuses_other_files(data_dir, tmp_path, name):
    folder = tmp_path / "changed"
    shutil.copytree(data_dir / "gpt2", folder)
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    (folder / name).write_bytes(content[:-1] + b" ")
    with pytest.raises(UserError, match=rf"{name} is not GPT-2's"):
        tokenizer("gpt2", folder)


@pytest.mark.parametrize("bad", [-1, 256, 2**40])
def test_ids_outside_the_vocabulary_are_named(bad):
    with pytest.raises(UserError, match=rf"Token id {bad} at position 2 .*'bytes' \(0 to 255\)"):
        tokenizer("bytes").decode([65, 66, bad])


def test_gpt2_id_outside_the_vocabulary(gpt2):
    with pytest.raises(UserError, match=r"Token id 50257 at position 1 .*\(0 to 50256\)"):
        gpt2.decode(np.array([0, 50257]))


@pytest.mark.parametrize("ids", [[[1, 2], [3, 4]], [0.5], ["a"]])
def test_ids_must_be_one_row_of_whole_numbers(ids):
    with pytest.raises(UserError, match="one row of whole numbers"):
        tokenizer("bytes").decode(ids)


def test_no_ids_are_no_text(gpt2):
    assert tokenizer("bytes").decode([]) == gpt2.decode([]) == ""
    assert tokenizer("bytes").encode("").shape == gpt2.encode("").shape == (0,)


def test_lone_surrogate_is_refused(gpt2):
    for made in (tokenizer("bytes"), gpt2):
        with pytest.raises(UserError, match=r"Character 1 of the text is U\+D800"):
            made.encode("a\ud800")


def test_table_of_names():
    assert NAMES == ("bytes", "gpt2", "bpe", "book", "words", "book-greedy", "hf")
    with pytest.raises(UserError, match="did you mean 'gpt2'"):
        tokenizer("gpt-2")
    with pytest.raises(UserError, match="needs no vocabulary"):
        tokenizer("bytes", "somewhere")
