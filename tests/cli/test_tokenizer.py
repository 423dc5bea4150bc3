"""`parallax tokenizer`: a vocabulary from a text, a model that is trained with it, and what is refused."""

import pytest

from common import params
from common.config import PRESETS
from common.data import gutenberg
from common.data.corpora import corpus
from common.tokenizers import TRAINED, tokenizer

GREEDY = ("book", "book-greedy")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(corpus("pydoc").text[:20_000], encoding="utf-8")
    return path


def test_a_vocabulary_from_a_text_to_a_model_that_writes(call, tmp_path, text, monkeypatch):
    """The run keeps its vocabulary, so neither going on nor generating asks for it again."""
    monkeypatch.setitem(
        PRESETS, "nano", PRESETS["nano"].with_(num_layers=1, embed_dim=32, context_length=32, ff_dim=64)
    )
    code, out, _ = call("tokenizer", "train", text, "--vocab-size", 300, "--out", tmp_path / "vocabulary")
    assert code == 0
    assert out.startswith("300 tokens; 20,000 characters of ")
    code, out, err = call("tokenizer", "encode", "the for", "--vocab", tmp_path / "vocabulary")
    assert code == 0
    ids, pieces = out.splitlines()
    assert len(ids.split()) == len(pieces.split()) < len("the for")
    assert f"{len(ids.split())} ids of 300" in err
    for written in (ids.split(), [ids], [ids.replace(" ", ", ")]):
        code, out, _ = call("tokenizer", "decode", *written, "--vocab", tmp_path / "vocabulary")
        assert (code, out) == (0, "the for\n")
    run, how = tmp_path / "run", ["--batch-size", 2, "--warmup-steps", 1, "--eval-every", 2, "--length", 16]
    own = ["--tokenizer", "bpe", "--vocab", tmp_path / "vocabulary"]
    code, _, err = call("train", "--data", text, "--steps", 4, "--until", 2, "--out", run, *own, *how)
    assert code == 0, err
    expected = params.count(PRESETS["nano"].with_(vocab_size=300))
    assert f"{expected:,} parameters" in err
    code, _, err = call("train", "--resume", run)
    assert code == 0, err
    texts = {}
    for backend in ("torch", "numpy"):
        asked = ["--weights", run, "--prompt", "the for", "--max-new-tokens", 8]
        code, texts[backend], err = call("generate", "--backend", backend, *asked)
        assert code == 0, err
    assert texts["torch"] == texts["numpy"]


def test_a_run_by_the_books_own_encoder_goes_on_by_it(call, tmp_path, text):
    """The vocabulary is that of `book`; the name says how it merges, in token files and runs, too."""
    own, run = tmp_path / "vocabulary", tmp_path / "run"
    assert call("tokenizer", "train", text, "--kind", "book", "--vocab-size", 400, "--out", own)[0] == 0
    written = {kind: call("tokenizer", "encode", "information", "--kind", kind, "--vocab", own)[1] for kind in GREEDY}
    assert len(set(written.values())) == 2
    tokens = tmp_path / "text.tokens"
    asked = ["--tokenizer", "book-greedy", "--vocab", own]
    code, _, err = call("corpus", "tokens", text, *asked, "--out", tokens)
    assert code == 0, err
    how = ["--batch-size", 2, "--steps", 2, "--length", 16, "--out", run]
    code, _, err = call("train", "--data", tokens, *asked, *how)
    assert code == 0, err
    kept = tokenizer("book-greedy", run)
    assert kept.encode("information").tolist() == [int(one) for one in written["book-greedy"].split("\n")[0].split()]
    code, _, err = call("generate", "--weights", run, "--prompt", "information", "--max-new-tokens", 2)
    assert code == 0, err
    code, _, err = call("train", "--data", tokens, "--tokenizer", "book", "--vocab", own, *how[:-1], tmp_path / "other")
    assert code == 2
    assert "are of tokenizer 'book-greedy', not of 'book'" in err


@pytest.mark.parametrize("kind", ["bpe", "book", "words"])
def test_a_vocabulary_of_prepared_books_is_that_of_their_texts(call, tmp_path, kind):
    """What parts books, and what was noted of their preparation, is no text; one shard alone has its books alone."""
    books = ["one fish two fish " * 8, "red fish blue fish " * 8, "zebra zebra " * 20]
    (tmp_path / "books").mkdir()
    for number, text in enumerate(books):
        (tmp_path / "books" / f"{number}.txt").write_text(text)
    shards = gutenberg.prepare(
        sorted((tmp_path / "books").iterdir()), tmp_path / "shards", gutenberg.Rules(shard_bytes=320)
    )["shards"]
    assert [one["books"] for one in shards] == [2, 1]
    how = ["--kind", kind, *([] if kind == "words" else ["--vocab-size", 280])]
    code, said, err = call("tokenizer", "train", tmp_path / "shards", *how, "--out", tmp_path / "own")
    assert code == 0, err
    texts = [text.strip() for text in books]
    assert f" {sum(map(len, texts)):,} characters of shards become " in said
    module = TRAINED[kind]
    want = "\n\n".join(texts)
    want = module.train(want) if kind == "words" else module.train(texts if kind == "bpe" else want, 280)
    found = tokenizer(kind, tmp_path / "own")
    assert [found.decode([one]) for one in range(found.vocab_size)] == [
        want.decode([one]) for one in range(want.vocab_size)
    ]
    code, _, err = call("tokenizer", "train", tmp_path / "shards" / "shard-0001.txt", *how, "--out", tmp_path / "one")
    assert code == 0, err
    alone = tokenizer(kind, tmp_path / "one")
    spelt = [{one.decode([number]).strip() for number in range(one.vocab_size)} for one in (found, alone)]
    assert ["fish" in one for one in spelt] == [True, False]
    assert all("zebra" in one for one in spelt)
    (tmp_path / "shards" / "shard-0001.txt").write_text("cut")
    code, _, err = call("tokenizer", "train", tmp_path / "shards", *how, "--out", tmp_path / "two")
    assert (code, "prepare the books anew" in err, (tmp_path / "two").exists()) == (2, True, False)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["traim", "pydoc"], "did you mean 'train'"),
        (["train", "pydoc", "--kind", "bp"], "did you mean 'bpe'"),
        (["train", "pydoc", "--kind", "gpt2"], "Unknown kind of tokenizer to train 'gpt2'"),
        (["train", "nothing.txt"], "Corpus 'nothing.txt' does not exist"),
        (["train", "pydoc", "--vocab-size", "12"], "at least 257 tokens"),
        (["train", "pydoc", "--vocab", "x"], "--out is where it goes"),
        (["encode", "text"], "needs the folder of its vocabulary"),
        (["encode", "text", "--kind", "book-greedy"], "`parallax tokenizer train TEXT --kind book` makes one"),
        (["decode", "12", "x3", "--kind", "bytes"], "'x3' is no id"),
        (["decode", "256", "--kind", "bytes"], "Token id 256 at position 0 is outside the vocabulary"),
        (["encode", "text", "--vocab", "nowhere"], "nowhere holds no vocabulary"),
    ],
)
def test_mistakes_get_one_sentence(call, asked, told):
    code, out, err = call("tokenizer", *asked)
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err
