"""Books into shards, shards into a token file, and a run that is trained on it."""

import json

import numpy as np
import pytest

from common import params
from common.config import GPTConfig
from common.data import gutenberg, tokens
from common.data.windows import Batches, Windows
from common.errors import UserError
from common.tokenizers import TRAINED, bpe, tokenizer
from common.weights.checkpoint import save_checkpoint

HEAD = "\ufeffThe Project Gutenberg eBook of {0}\n\nTitle: {0}\n\nLanguage: {1}\n\n"
BEGUN = "*** START OF THE PROJECT GUTENBERG EBOOK {0} ***\n\nProduced by Somebody\nand others\n\n\n\n"
ENDED = "\n\nEnd of the Project Gutenberg EBook of {0}\n\n*** END OF THE PROJECT GUTENBERG EBOOK {0} ***\nlicence\n"
TITLE = "A BOOK"


def made(body, title=TITLE, language="English"):
    return (HEAD + BEGUN).format(title, language) + body + ENDED.format(title)


@pytest.fixture
def library(tmp_path):
    """Six files: two books, a double of the first, one in another language, one of other letters, one that is empty."""
    folder = tmp_path / "library"
    folder.mkdir()
    texts = {
        "1.txt": made("First book.\n\n\n\nIts end."),
        "2.txt": made("Second book, " * 20),
        "3.txt": made("FIRST  book.\n\nIts end.", "ANOTHER COPY"),
        "4.txt": made("Ein Buch.", language="German"),
        "5.txt": made("Это книга о чём-то."),
        "6.txt": made(""),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return sorted(folder.iterdir())


def prepared(library, out, **rules):
    return gutenberg.prepare(library, out, gutenberg.Rules(**rules))


def test_a_books_own_text_alone():
    found = gutenberg.book(made("One.\r\n\r\n\r\n\r\nTwo.\n"))
    assert (found.text, found.language) == ("One.\n\nTwo.", "English")
    older = (
        "Language: English\n\n***START OF THIS PROJECT GUTENBERG EBOOK X***\nText.\n*** END OF THIS PROJECT GUTENBERG"
    )
    assert gutenberg.book(older).text == "Text."
    assert gutenberg.book("No marks.\n\n\n\nAt all.") == gutenberg.Book("No marks.\n\nAt all.", None)


@pytest.mark.parametrize(
    "mark",
    [
        "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
        "*END THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.02/11/02*END*",
    ],
)
def test_a_book_of_the_nineties_begins_behind_the_small_print(mark):
    """Also where a new mark was put before its header; one behind its end does not hide it."""
    header = f"***START**THE SMALL PRINT!FOR PUBLIC DOMAIN ETEXTS**START***\nWhy is this here?\n{mark}\n\n\n"
    text, end = "One.\n\nTwo.", "\n\nEnd of The Project Gutenberg Etext of A Book\n"
    for whole in (header + text + end, BEGUN.format(TITLE) + header + text + end, text + end + header):
        assert gutenberg.book(whole).text == text
    assert gutenberg.book(f"Language: Latin\n{header}{text}{end}") == gutenberg.Book(text, "Latin")
    for unmarked in (f"{text}\n\n{mark}\n", "A line.\n" * 6000 + f"{mark}\nMore.\n"):  # at an end without a mark
        assert gutenberg.book(unmarked).text == unmarked.strip().replace("\n\n\n", "\n\n")


def test_real_books(data_dir):
    for name, first, last in (
        ("11-0.txt", "ALICE’S ADVENTURES IN WONDERLAND\n\nLewis Carroll", "THE END"),
        ("1342-0.txt", "PRIDE AND PREJUDICE", "had been the means of uniting them."),
    ):
        found = gutenberg.book(gutenberg.read(data_dir / "gutenberg" / name))
        assert found.text.startswith(first)
        assert " ".join(found.text.split()).endswith(last)
        assert "gutenberg" not in found.text.casefold()
        assert found.language == "English"
        assert found.ascii_share > 0.95


def test_languages_doubles_and_other_letters_are_left_out(library, tmp_path):
    found = prepared(library, tmp_path / "out")
    why = {one["name"]: one["left_out"] for one in found["files"]}
    assert why.pop("5.txt").endswith("% ASCII")
    assert why == {"1.txt": None, "2.txt": None, "3.txt": "a double", "4.txt": "language German", "6.txt": "empty"}
    (path,) = gutenberg.shards(tmp_path / "out")
    assert list(gutenberg.documents(path)) == ["First book.\n\nIts end.", ("Second book, " * 20).strip()]
    both = prepared(library, tmp_path / "both", languages=("english", "German"))
    assert sum(one["books"] for one in both["shards"]) == 3


def test_shards_have_a_size(library, tmp_path):
    found = prepared(library, tmp_path / "out", languages=(), ascii_share=0.0, shard_bytes=100)
    assert [one["books"] for one in found["shards"]] == [1, 1, 2]  # the second is larger than a shard
    for one in found["shards"]:
        size = (tmp_path / "out" / one["name"]).stat().st_size
        assert size == one["bytes"]
        assert size <= 100 or one["books"] == 1


def test_what_was_stopped_goes_on_and_gives_the_same(library, tmp_path):
    rules = gutenberg.Rules(languages=(), ascii_share=0.0, shard_bytes=60)
    whole = gutenberg.prepare(library, tmp_path / "whole", rules)

    def stops(done, of, name):
        if name == "5.txt":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gutenberg.prepare(library, tmp_path / "out", rules, stops)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard*")}
    assert kept
    assert gutenberg.prepare(library, tmp_path / "out", rules) == whole
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == when for name, when in kept.items())


def test_a_preparation_of_something_else_is_not_gone_on_with(library, tmp_path):
    prepared(library, tmp_path)
    with pytest.raises(UserError, match="by other rules"):
        prepared(library, tmp_path, ascii_share=0.5)
    with pytest.raises(UserError, match="of other files"):
        prepared(library[1:], tmp_path)
    (tmp_path / "shard-0000.txt").write_text("cut")
    with pytest.raises(UserError, match="or its shards have changed"):
        prepared(library, tmp_path)
    (tmp_path / gutenberg.MANIFEST).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        prepared(library, tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "has 0 bytes where"), (b"cut", "has 3 bytes where"), (None, "is missing; prepare the books anew")],
)
def test_a_shard_that_has_changed_is_refused(call, library, tmp_path, content, told):
    prepared(library, tmp_path / "shards", shard_bytes=100)
    path = tmp_path / "shards" / "shard-0001.txt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    out = tmp_path / "tokens"
    code, _, err = call("corpus", "tokens", tmp_path / "shards", "--tokenizer", "bytes", "--processes", 1, "--out", out)
    assert code == 2
    assert told in err
    assert err.startswith(f"parallax: {path} ")
    assert not out.exists()


def test_a_preparation_without_a_shard_is_no_text(library, tmp_path):
    with pytest.raises(UserError, match="Not one of 1 files"):
        prepared(library[3:4], tmp_path)
    with pytest.raises(UserError, match="has no shard yet"):
        gutenberg.shards(tmp_path)
    assert gutenberg.shards(tmp_path / "nowhere") is gutenberg.shards(library[0]) is None


@pytest.mark.parametrize(
    ("rules", "told"), [({"ascii_share": 2}, "share of ASCII"), ({"shard_bytes": 0}, "holds nothing")]
)
def test_rules_that_cannot_be(rules, told):
    with pytest.raises(UserError, match=told):
        gutenberg.Rules(**rules)


def test_nothing_kept_is_told(library, tmp_path):
    with pytest.raises(UserError, match=r"Not one of 1 files is kept \(language German\)"):
        prepared(library[3:4], tmp_path)


# --- token files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    bpe.train("some text and some more text, and the rest of it", 280).save(folder)
    return folder


TEXTS = ["some text", "and the rest", "", "of it: naïve"] * 3


def test_ids_and_ends_of_documents(vocabulary, tmp_path):
    found, made = tokens.write(TEXTS, tmp_path / "t", "bpe", vocabulary), tokenizer("bpe", vocabulary)
    want = np.concatenate([np.append(made.encode(text), made.end_token) for text in TEXTS])
    assert isinstance(found.ids, np.memmap)
    assert found.ids.dtype == np.dtype("<u2")
    np.testing.assert_array_equal(found.ids, want)
    assert (found.head["tokens"], found.head["documents"]) == (len(want), len(TEXTS))
    found.check(made)
    with pytest.raises(UserError, match="of tokenizer 'bpe', not of 'bytes'"):
        found.check(tokenizer("bytes"))


@pytest.mark.parametrize("kind", ["bpe", "book", "words"])
def test_a_vocabulary_of_the_same_size_is_another_one(tmp_path, kind):
    texts, made = ("one two three two three two one two", "six ten four ten four ten six ten"), []
    for number, text in enumerate(texts):
        more = () if kind == "words" else (264,)
        TRAINED[kind].train(text, *more).save(tmp_path / str(number))
        made.append(tokenizer(kind, tmp_path / str(number)))
    one, other = (own.describe() for own in made)
    assert one.pop("sha256") != other.pop("sha256")
    assert one == other
    found = tokens.write([texts[0]], tmp_path / "t", kind, tmp_path / "0")
    found.check(made[0])
    with pytest.raises(UserError, match="with another vocabulary"):
        found.check(made[1])
    head = json.loads((tmp_path / "t" / tokens.HEAD).read_text())
    del head["tokenizer"]["sha256"]  # as older ones are
    (tmp_path / "t" / tokens.HEAD).write_text(json.dumps(head))
    tokens.read(tmp_path / "t").check(made[0])


def test_weights_learn_from_tokens_of_their_own_vocabulary_alone(call, tmp_path):
    """Two vocabularies of one size: of which tokens are, the folder of the weights knows."""
    config = GPTConfig(264, 32, 16, 2, 1, ff_dim=32)
    for name, text in (("A", "one two three two three two one two "), ("B", "six ten four ten four ten six ten ")):
        bpe.train(text, 264).save(tmp_path / name)
        tokens.write([text * 40], tmp_path / f"tokens{name}", "bpe", tmp_path / name)
        save_checkpoint(tmp_path / f"weights{name}", config, params.randomise(config, 1))
        bpe.load(tmp_path / name).save(tmp_path / f"weights{name}")
    how = ["--steps", 1, "--length", 8, "--batch-size", 2, "--warmup-steps", 0, "--out", tmp_path / "run"]
    code, _, err = call("train", "--weights", tmp_path / "weightsB", "--data", tmp_path / "tokensA", *how)
    assert (code, "with another vocabulary" in err) == (2, True)
    code, _, err = call("train", "--weights", tmp_path / "weightsA", "--data", tmp_path / "tokensA", *how)
    assert code == 0, err


def test_several_processes_write_the_same(vocabulary, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "TOGETHER", 10)
    seen = []
    one = tokens.write(TEXTS, tmp_path / "one", "bpe", vocabulary, report=seen.append)
    two = tokens.write(TEXTS, tmp_path / "two", "bpe", vocabulary, processes=2)
    assert (tmp_path / "one" / tokens.BINARY).read_bytes() == (tmp_path / "two" / tokens.BINARY).read_bytes()
    assert one.head == two.head
    assert seen == sorted(seen)
    assert len(seen) > 3


def test_windows_of_a_file_are_those_of_its_ids(vocabulary, tmp_path):
    ids = tokens.write(TEXTS * 5, tmp_path / "t", "bpe", vocabulary).ids
    mapped, held = Windows(ids, 8), Windows(np.array(ids, np.int32), 8)
    assert isinstance(mapped.ids.base, np.memmap) or isinstance(mapped.ids, np.memmap)
    assert mapped.describe() == held.describe()
    for one, other in zip(*(next(Batches(w, 2, seed=3)) for w in (mapped, held)), strict=True):
        assert one.dtype == np.int32
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (tokens.BINARY, b"abc", "has 3 bytes where"),
        (tokens.HEAD, b"{", "is damaged"),
        (tokens.HEAD, b'{"format": "x", "dtype": "<u2", "tokens": 1}', "of another format"),
    ],
)
def test_damaged_token_files_are_named(vocabulary, tmp_path, name, content, told):
    tokens.write(TEXTS, tmp_path / "t", "bpe", vocabulary)
    (tmp_path / "t" / name).write_bytes(content)
    with pytest.raises(UserError, match=told):
        tokens.read(tmp_path / "t")


def test_an_empty_token_file_is_named(vocabulary, tmp_path):
    head = tokens.write(TEXTS, tmp_path / "t", "bpe", vocabulary).head
    (tmp_path / "t" / tokens.BINARY).write_bytes(b"")
    (tmp_path / "t" / tokens.HEAD).write_text(json.dumps({**head, "tokens": 0}))
    with pytest.raises(UserError, match=r"tokens\.bin holds no tokens; make it anew\.$"):
        tokens.read(tmp_path / "t")


def test_what_cannot_become_a_token_file(vocabulary, tmp_path):
    with pytest.raises(UserError, match="no text to make tokens of"):
        tokens.write([], tmp_path / "t", "bpe", vocabulary)
    assert not (tmp_path / "t").exists()
    with pytest.raises(UserError, match="0 processes"):
        tokens.write(TEXTS, tmp_path / "t", "bpe", vocabulary, processes=0)
    with pytest.raises(UserError, match="holds no token file"):
        tokens.read(tmp_path)


# --- on the command line ----------------------------------------------------------------------------------------------


def test_from_books_to_a_run_that_goes_on(call, library, tmp_path):
    code, out, err = call("corpus", "prepare", library[0].parent, "--out", tmp_path / "shards")
    assert (code, err) == (0, "")
    assert out.startswith("2 of 6 books in 1 shard in ")
    assert "Left out, a double: 1" in out
    for shards in (tmp_path / "shards", tmp_path / "shards" / "shard-0000.txt"):  # books end by a token there
        code, _, err = call("train", "--data", shards, "--out", tmp_path / "run")
        assert code == 2
        assert f"parallax corpus tokens {tmp_path / 'shards'} --tokenizer bytes)" in err
        assert not (tmp_path / "run").exists()
    how = ["--tokenizer", "bytes", "--processes", 1, "--out", tmp_path / "tokens"]
    code, out, _ = call("corpus", "tokens", tmp_path / "shards", *how)
    assert (code, out.splitlines()[0].split(" of ")[1].split(" in ")[0]) == (0, "2 documents")
    assert "Tokenizer bytes has no token that ends a text" in out
    run, small = tmp_path / "run", ["--length", 8, "--batch-size", 2, "--warmup-steps", 1, "--eval-every", 2]
    code, _, err = call("train", "--data", tmp_path / "tokens", "--steps", 4, "--until", 2, "--out", run, *small)
    assert code == 0, err
    code, _, err = call("train", "--resume", run)
    assert code == 0, err
    told = json.loads((run / "checkpoint" / "config.json").read_text())
    assert told["format"].startswith("parallax")


@pytest.mark.full
@pytest.mark.parametrize(("first", "second"), [("torch", "jax"), ("jax", "torch")])
def test_the_two_books_from_their_files_to_a_model_that_writes(call, data_dir, tmp_path, first, second):
    """As they are from Project Gutenberg: licence off, a vocabulary of their own, tokens, and a run that one framework
    begins and the other one ends."""
    shards, own, tokens, run = (tmp_path / name for name in ("shards", "own", "tokens", "run"))
    code, out, err = call("corpus", "prepare", data_dir / "gutenberg", "--out", shards)
    assert (code, out.startswith("2 of 2 books in 1 shard in ")) == (0, True), err
    told = (shards / "shard-0000.txt").read_text(encoding="utf-8")
    assert "Alice was beginning to get very tired" in told
    assert "It is a truth universally acknowledged" in told
    assert "gutenberg" not in told.lower()
    code, _, err = call("tokenizer", "train", shards, "--vocab-size", 2000, "--out", own)
    assert code == 0, err
    how = ["--tokenizer", "bpe", "--vocab", own]
    code, out, err = call("corpus", "tokens", shards, *how, "--out", tokens)
    assert (code, " of 2 documents in " in out) == (0, True), err
    small = ["--length", 32, "--batch-size", 4, "--warmup-steps", 1, "--eval-every", 10, "--eval-windows", 8]
    asked = ["--data", tokens, *how, *small, "--dropout", 0.1, "--learning-rate", 2e-3]
    code, _, err = call("train", "--backend", first, *asked, "--steps", 40, "--until", 20, "--out", run)
    assert code == 0, err
    code, _, err = call("train", "--backend", second, "--resume", run)
    assert code == 0, err
    log = [json.loads(line) for line in (run / "log.jsonl").open()]
    held_out = [line["held_out"] for line in log if "held_out" in line]
    assert len(log) == 40
    assert 4.0 < held_out[-1] < held_out[0] < 7.8  # of a guess, ln 2000 = 7.6
    code, out, err = call("generate", "--weights", run, "--prompt", "Alice was", "--max-new-tokens", 8)
    assert code == 0, err
    assert out.startswith("Alice was")


@pytest.mark.parametrize("chunk", [1, 5, 13, 40, 1000])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_documents_of_a_file_that_is_never_read_whole(tmp_path, monkeypatch, chunk, encoding):
    """As if it were split as a whole, wherever a chunk ends: in a separator, in a character, in an end of a line."""
    texts = ["naïve\r\ntext", "", "<|endof", "é", "text|>", "x" * 100, "end ß"]
    path = tmp_path / "text.txt"
    path.write_bytes(gutenberg.SEPARATOR.join(texts).encode(encoding))
    want = [text for text in gutenberg.read(path).split(gutenberg.SEPARATOR) if text]
    assert want == [text for text in texts if text]
    monkeypatch.setattr(gutenberg, "CHUNK", chunk)
    monkeypatch.setattr(type(path), "read_bytes", None)
    assert list(gutenberg.documents(path)) == want


def test_files_that_give_no_document_are_named_and_binary_ones_refused(call, tmp_path):
    folder, how = tmp_path / "texts", ["--tokenizer", "bytes", "--processes", 1, "--out", tmp_path / "tokens"]
    folder.mkdir()
    (folder / "a.txt").write_text("some text")
    (folder / "b.txt").write_text("")
    code, out, _ = call("corpus", "tokens", folder, *how)
    assert (code, f"Without a document: {folder / 'b.txt'}\n" in out, "a.txt" in out) == (0, True, False)
    (folder / "c.txt").write_bytes(b"some\0thing")
    code, _, err = call("corpus", "tokens", folder, *how)
    assert (code, "c.txt is binary (a NUL byte at offset 4)" in err) == (2, True)


def test_what_was_prepared_is_no_book(call, library, tmp_path):
    """The result may lie among the books: what was stopped goes on, and a token file is of the books alone."""
    books, how = library[0].parent, ["--tokenizer", "bytes", "--processes", 1]
    for _ in range(2):
        code, out, err = call("corpus", "prepare", books, "--out", books / "more" / "shards")
        assert (code, err) == (0, "")
        assert out.startswith("2 of 6 books in 1 shard in ")
    for _ in range(2):
        code, out, err = call("corpus", "tokens", books, "--out", books / "tokens", *how)
        assert code == 0, err
        assert f"of {len(library)} documents in" in out
    code, _, err = call("corpus", "prepare", books, "--out", books)
    assert (code, "is where the texts are" in err) == (2, True)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["prepare", ".", "--shard-megabytes", "nan"], "--shard-megabytes is nan"),
        (["prepare", ".", "--shard-megabytes", "inf"], "--shard-megabytes is inf"),
        (["prepar", "."], "did you mean 'prepare'"),
        (["prepare", "nowhere"], "nothing at nowhere"),
        (["tokens", "nowhere"], "nothing at nowhere"),
        (["tokens", ".", "--tokenizer", "bytes", "--processes", "0"], "0 processes were asked for"),
    ],
)
def test_mistakes_get_one_sentence(call, asked, told):
    code, out, err = call("corpus", *asked)
    assert (code, out) == (2, "")
    assert told in err
