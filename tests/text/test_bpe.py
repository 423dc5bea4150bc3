"""Byte-pair encoding from scratch: against tiktoken's encoder, Hugging Face's trainer, OpenAI's files, the book."""

import inspect
import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext.openai_public import r50k_pat_str

from common.data.corpora import corpus
from common.errors import UserError
from common.tokenizers import book, bpe, kept, merges, tokenizer, words

TEXT = corpus("pydoc").text[:120_000]
ODD = "naïve café: 東京は 42 мир 👩‍👩‍👧 \t x  = {'a':1}\n\n  don't we'll\r\n\x00 ﷽ e\u0301"
CODE = Path(inspect.__file__).read_text(encoding="utf-8")
NOISE = random.Random(7).randbytes(1 << 16).decode("latin-1")
LINES = ("a\nb", "a\n\nb", "\nHello", "Hello\n", "a\r\nb", "Hello \nworld", "Hello\n world")
GPT2_IDS = {
    "This is some text": [1212, 318, 617, 2420],
    "Implementations": [3546, 26908, 602],
    "asdf asdfasdf a!!, @aba 9asdf90asdfk": [
        292, 7568, 355, 7568, 292, 7568, 257, 3228, 11, 2488, 15498, 860, 292, 7568, 3829, 292, 7568, 74,
    ],
}  # fmt: skip
SENTENCE = "Jack embraced beauty through art and life."


@pytest.fixture(scope="module")
def trained():
    return bpe.train(TEXT, 1500)


@pytest.fixture(scope="module")
def theirs(trained):
    """tiktoken with our vocabulary."""
    ranks = {token: number for number, token in enumerate(trained.tokens[:-1])}
    return tiktoken.Encoding("ours", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=trained.specials)


@pytest.fixture(scope="module")
def gpt2_files(data_dir):
    return data_dir / "gpt2"


# --- byte-level -------------------------------------------------------------------------------------------------------


def test_tokens_are_tiktokens(trained, theirs):
    for text in (TEXT, ODD, "", " ", "\n\n\n", "a" * 5000, ODD * 40):
        assert trained.encode(text).tolist() == theirs.encode_ordinary(text)
        assert trained.decode(trained.encode(text)) == text


def test_tokens_of_code_and_of_random_bytes_are_tiktokens(trained, theirs):
    assert len(CODE) > 50_000
    assert set(NOISE) == set(map(chr, range(256)))
    for text in (CODE, NOISE):
        assert trained.encode(text).tolist() == theirs.encode_ordinary(text)
        assert trained.decode(trained.encode(text)) == text


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80))
def test_tokens_of_any_text_are_tiktokens(trained, theirs, text):
    assert trained.encode(text).tolist() == theirs.encode_ordinary(text)
    assert trained.decode(trained.encode(text)) == text


def test_bytes_that_are_no_text_come_back(trained):
    ids = random.Random(0).choices(range(trained.vocab_size), k=500)
    joined = b"".join(trained.tokens[number] for number in ids)
    assert trained.decode_bytes(ids) == joined
    assert trained.decode(ids) == joined.decode("utf-8", errors="replace")


def test_merges_are_those_of_hugging_faces_trainer(trained):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    other = Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1499, initial_alphabet=alphabet, show_progress=False)
    other.train_from_iterator([TEXT], trainer)
    want = [tuple(pair) for pair in json.loads(other.to_str())["model"]["merges"]]
    got = [tuple(bpe._letters(trained.tokens[number]) for number in pair) for pair in trained.merges]
    assert len(got) == 1500 - 257
    assert got == want


def test_special_tokens_are_text_unless_they_are_allowed(trained, theirs):
    text = f"one{bpe.END_OF_TEXT}two {bpe.END_OF_TEXT}"
    assert trained.end_token == trained.vocab_size - 1
    assert trained.encode(text).tolist() == theirs.encode(text, disallowed_special=())
    assert trained.encode(text, special=True).tolist() == theirs.encode(text, allowed_special="all")
    assert (trained.encode(text, special=True) == trained.end_token).sum() == 2
    assert trained.decode(trained.encode(text, special=True)) == text


def test_of_several_special_tokens_the_longest_counts():
    made = bpe.train(TEXT[:2000], 300, specials=("<a>", "<a><b>"))
    assert made.encode("<a><b><a>", special=True).tolist() == [made.specials["<a><b>"], made.specials["<a>"]]


def test_special_tokens_of_a_text_are_not_learnt_from():
    plain, spelt = bpe.train("ab ab", 300), bpe.train("<|endoftext|>".join(["ab", " ab", ""]), 300)
    assert spelt.merges == plain.merges


def test_saved_and_loaded_it_is_the_same(trained, tmp_path):
    trained.save(tmp_path)
    found = tokenizer("bpe", tmp_path)
    assert (found.tokens, found.merges, found.specials) == (trained.tokens, trained.merges, trained.specials)
    assert found.describe() == trained.describe()
    assert np.array_equal(found.encode(ODD), trained.encode(ODD))


def test_a_small_text_gives_fewer_tokens():
    made = bpe.train("abc", 1000)
    assert (made.vocab_size, made.merges) == (257, ())
    seen = []
    bpe.train("aaaa bbbb aaaa", 259, report=lambda learnt, wanted: seen.append((learnt, wanted)))
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize("text", ["a" * 200_000, "ab" * 60_000, "".join(map(chr, range(97, 123))) * 4000])
def test_long_words_take_no_longer_than_they_are_long(trained, theirs, text):
    assert trained.encode(text).tolist() == theirs.encode_ordinary(text)


def test_counts_kept_up_to_date_are_counts_taken_anew():
    """Runs of one letter too, whose pairs overlap."""
    rng = random.Random(1)
    found = {tuple(rng.choices(range(3), k=rng.randrange(1, 12))): rng.randrange(1, 9) for _ in range(60)}
    learnt = list(merges.learn(found, 3, 25))
    now = {word: (list(word), times) for word, times in found.items()}
    for new, pair in enumerate(learnt, 3):
        often = {}
        for ids, times in now.values():
            for one in pairwise(ids):
                often[one] = often.get(one, 0) + times
        most = max(often.values())
        assert pair == min(one for one, times in often.items() if times == most)
        now = {word: (merges.merged(ids, pair, new), times) for word, (ids, times) in now.items()}
    ranks = {pair: (rank, 3 + rank) for rank, pair in enumerate(learnt)}
    assert all(merges.apply(ranks, word) == ids for word, (ids, _) in now.items())


# --- OpenAI's files ---------------------------------------------------------------------------------------------------


def test_gpt2s_own_vocabulary(gpt2_files):
    made, fast = bpe.load(gpt2_files), tokenizer("gpt2", gpt2_files)
    assert (made.vocab_size, made.specials) == (50257, {bpe.END_OF_TEXT: 50256})
    for text, ids in GPT2_IDS.items():
        assert made.encode(text).tolist() == ids
    for text in (TEXT, ODD, CODE, NOISE, *LINES):
        assert np.array_equal(made.encode(text), fast.encode(text))
        assert made.decode(made.encode(text)) == text


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("vocab.bpe", "#version: 0.2\na b c\n", "Line 2 of .* is no merge of two known tokens"),
        ("vocab.bpe", "#version: 0.2\nq QQ\n", "is no merge of two known tokens"),
        ("encoder.json", "{", "is no JSON"),
        ("encoder.json", '{"a": 0, "b": 0}', "does not give every token an id of its own"),
        ("encoder.json", '{"a": 0, "b": 1}', "is no merge|lacks 254 of the 256 bytes"),
    ],
)
def test_damaged_files_are_named(trained, tmp_path, name, content, told):
    trained.save(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=told):
        bpe.load(tmp_path)


def test_what_a_vocabulary_cannot_be(tmp_path):
    with pytest.raises(UserError, match="at least 257 tokens, special ones among them, not 256"):
        bpe.train("text", 256)
    with pytest.raises(UserError, match="no text to learn"):
        bpe.train("", 300)
    with pytest.raises(UserError, match=r"holds no vocabulary; expected are encoder.json and vocab.bpe"):
        bpe.load(tmp_path)
    with pytest.raises(UserError, match=r"needs the folder of its vocabulary \(--vocab\)"):
        tokenizer("bpe")
    with pytest.raises(UserError, match="did you mean 'bpe'"):
        tokenizer("bp")


@pytest.mark.parametrize(
    ("spelt", "told"),
    [
        (["a"], "'a' is in this vocabulary already"),
        (["Ġa"], "'Ġa' is in this vocabulary already"),  # so the files spell a space and a letter
        (["<x>", "<x>"], "'<x>' is named twice"),
        ([""], "is empty"),
        (["\ud800"], r"'\\ud800' is no UTF-8 text"),
    ],
)
def test_a_special_token_has_a_spelling_of_its_own(spelt, told):
    with pytest.raises(UserError, match=told):
        bpe.train(" a a a a", 300, specials=spelt)
    with pytest.raises(UserError, match=told):
        bpe.train(" a a a a", 258).grown(spelt)
    if "Ġ" not in spelt[0]:
        with pytest.raises(UserError, match=told):
            book.train(" a a a a", 300, specials=spelt)
    if spelt != ["a"] and "Ġ" not in spelt[0]:
        with pytest.raises(UserError, match=told):
            words.train(" a a a a", specials=spelt)


def test_a_vocabulary_grows_and_is_loaded(trained, tmp_path):
    more = trained.grown(["<user>", "the cat"])
    more.save(tmp_path)
    assert bpe.load(tmp_path).describe() == more.describe()
    with pytest.raises(UserError, match=r"'the' is in this vocabulary already"):
        trained.grown(["the"])


# --- the book's -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verdict(data_dir):
    return (data_dir / "the-verdict.txt").read_text(encoding="utf-8")


def test_the_books_simpler_encoding(verdict, tmp_path):
    made = book.train(verdict, 1000)
    assert len(made.merges) == 742
    known = {256: "Ġ", 257: bpe.END_OF_TEXT, 258: "Ġt", 259: "he", 266: "Ġthe"}
    assert {number: made.tokens[number] for number in known} == known
    assert not any("Ġ" in token[1:] for token in made.tokens)
    ranked = [74, 361, 310, 109, 98, 114, 305, 272, 300, 97, 317, 121, 519, 699, 299, 808, 534]
    assert made.encode(SENTENCE).tolist() == ranked
    assert len(made.encode(verdict)) == 6850
    assert made.decode(made.encode(verdict)) == verdict
    made.save(tmp_path)
    greedy = book.load(tmp_path, "left to right")
    left = [74, 361, 310, 109, 98, 420, 397, 100, 300, 428, 116, 121, 519, 699, 299, 808, 534]
    assert greedy.encode(SENTENCE).tolist() == left
    assert len(greedy.encode(verdict)) == 7414
    assert np.array_equal(tokenizer("book", tmp_path).encode(verdict), made.encode(verdict))


def test_the_books_words_take_one_space_each():
    assert list(book.split("a  b\r\n c \t")) == ["a", "Ġ", "Ġb", "\r", "\n", "Ġc", "Ġ", "\t"]
    made = book.train("a b a b", 300)
    for text in ("a  b\n a ", "\t a"):
        assert made.decode(made.encode(text)) == text
    with pytest.raises(UserError, match="The character '東' has no token"):
        made.encode("東")
    with pytest.raises(UserError, match="spells out the special token"):
        made.encode(f"a{bpe.END_OF_TEXT}")
    assert made.encode(f"a{bpe.END_OF_TEXT}", special=True).tolist()[1] == made.end_token
    with pytest.raises(UserError, match="Unknown order 'ranks': did you mean 'rank'"):
        book.Book(made.tokens, made.merges, made.specials, "ranks")


def test_the_book_reads_openais_files(trained, tmp_path):
    """Of a vocabulary of ours in their form: the ids of `bpe`, where its pattern parts no word either; no bytes."""
    trained.save(tmp_path)
    made = tokenizer("book", tmp_path)
    assert (made.vocab_size, made.end_token, made.specials) == (1500, trained.end_token, trained.specials)
    assert len(made.merges) == len(trained.merges) == 1243
    for text in ("the value of an object", "  two  spaces ", *LINES, "a\tb"):
        assert made.encode(text).tolist() == trained.encode(text).tolist(), text
        assert made.decode(made.encode(text)) == text
    left = book.Book(trained.spelt(), made.merges, made.specials, "left to right", made.new)
    assert left.encode("information").tolist() != made.encode("information").tolist()  # the order can be seen
    assert made.encode("é").tolist() == [trained.spelt()["é"]] != trained.encode("é").tolist()  # no byte map
    assert made.decode(made.encode("é")) == "é"
    assert made.encode(f"a{bpe.END_OF_TEXT}", special=True).tolist()[1] == made.end_token
    with pytest.raises(UserError, match="spells out the special token"):
        made.encode(bpe.END_OF_TEXT)
    with pytest.raises(UserError, match="The character '東' has no token: the book reads bytes as characters"):
        made.encode("東")
    with pytest.raises(UserError, match="The character 'č' stands for white space in OpenAI's files"):
        made.encode("ečo")
    with pytest.raises(UserError, match="merges OpenAI's vocabularies by rank: name the tokenizer 'book'"):
        tokenizer("book-greedy", tmp_path)


def test_openais_files_are_kept_in_the_books_form(trained, tmp_path):
    """Hugging Face's names of them will do; what a run keeps is the book's, and says so."""
    trained.save(tmp_path)
    for theirs, own in zip(("encoder.json", "vocab.bpe"), bpe.OTHER_NAMES, strict=True):
        (tmp_path / theirs).rename(tmp_path / own)
    made, run = tokenizer("book", tmp_path), tmp_path / "run"
    made.save(run)
    assert kept(run) == ["book"]
    again = tokenizer("book", run)
    assert again.describe() == made.describe()
    plain = TEXT[:5000].encode("ascii", "ignore").decode()
    assert again.encode(plain).tolist() == made.encode(plain).tolist()
    told = json.loads((run / book.VOCABULARY).read_text())
    (run / book.VOCABULARY).write_text(json.dumps({**told, "spelling": "runes"}))
    with pytest.raises(UserError, match=r"is damaged \(KeyError: 'runes'\)"):
        tokenizer("book", run)
    with pytest.raises(UserError, match=r"\(book-vocab.json, book-merges.json\), nor OpenAI's \(encoder.json and"):
        tokenizer("book", tmp_path / "nowhere")


def test_the_book_reads_gpt2s_vocabulary(gpt2_files):
    made = tokenizer("book", gpt2_files)
    assert (made.vocab_size, made.end_token, len(made.merges)) == (50257, 50256, 50000)
    for text, ids in {**GPT2_IDS, "Hello,": [15496, 11]}.items():
        assert made.encode(text).tolist() == ids
    whole = tokenizer("gpt2", gpt2_files)
    for text in LINES:
        assert np.array_equal(made.encode(text), whole.encode(text))
        assert made.decode(made.encode(text)) == text
    assert [made.encode(text).tolist() for text in ("\n", "\r", " ")] == [[198], [201], [220]]
    assert made.decode([198, 201, 262]) == "\n\r the"


def test_the_books_vocabularies_of_words(verdict, tmp_path):
    first, second = words.train(verdict, ()), words.train(verdict)
    assert len(words.split(verdict)) == 4690
    assert (first.vocab_size, second.vocab_size) == (1130, 1132)
    said = '"It\'s the last he painted, you know," Mrs. Gisburn said with pardonable pride.'
    ids = [1, 56, 2, 850, 988, 602, 533, 746, 5, 1126, 596, 5, 1, 67, 7, 38, 851, 1108, 754, 793, 7]
    assert first.encode(said).tolist() == ids
    asked = "Hello, do you like tea? <|endoftext|> In the sunlit terraces of the palace."
    assert second.encode(asked).tolist() == [
        1131,
        5,
        355,
        1126,
        628,
        975,
        10,
        1130,
        55,
        988,
        956,
        984,
        722,
        988,
        1131,
        7,
    ]
    assert second.decode(second.encode(asked)).startswith("<|unk|>, do you like tea? <|endoftext|> In the sunlit")
    with pytest.raises(UserError, match="The word 'Hello' is not in this vocabulary"):
        first.encode(asked)
    second.save(tmp_path)
    assert tokenizer("words", tmp_path).words == second.words
    for content, told in (("[1]", "no list of words"), ("[", "no JSON"), ('["a", "a"]', "names one of them twice")):
        (tmp_path / words.FILE).write_text(content)
        with pytest.raises(UserError, match=told):
            words.load(tmp_path)
