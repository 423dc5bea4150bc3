"""`parallax tokenizer`: a vocabulary from a text, a model that is trained with it, and what is refused."""

import json

import pytest

from common import params
from common.commands import options
from common.config import PRESETS, model_to_dict
from common.data import gutenberg
from common.data.corpora import corpus
from common.tokenizers import TRAINED, kept, tokenizer
from common.weights.checkpoint import load_checkpoint

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


def test_a_run_by_the_books_class_on_openais_files_keeps_them_as_its_own(call, tmp_path, text, monkeypatch):
    """Their folder alone still chooses `bpe`; the run's chooses `book`."""
    small = PRESETS["nano"].with_(num_layers=1, embed_dim=32, context_length=32, ff_dim=64)
    monkeypatch.setitem(PRESETS, "nano", small)
    own, run = tmp_path / "vocabulary", tmp_path / "run"
    text.write_text("the value, the values\nof a value " * 100, encoding="utf-8")
    assert call("tokenizer", "train", text, "--vocab-size", 270, "--out", own)[0] == 0
    code, out, err = call("tokenizer", "encode", "the\n value", "--kind", "book", "--vocab", own)
    assert code == 0, err
    ids = out.splitlines()[0]
    assert ids == call("tokenizer", "encode", "the\n value", "--vocab", own)[1].splitlines()[0]
    assert call("tokenizer", "decode", ids, "--kind", "book", "--vocab", own)[:2] == (0, "the\n value\n")
    how = ["--data", text, "--batch-size", 2, "--length", 16, "--steps", 1, "--out", run]
    code, _, err = call("train", "--tokenizer", "book", "--vocab", own, *how)
    assert code == 0, err
    assert (kept(own), kept(run)) == (["bpe"], ["book"])
    assert tokenizer("book", run).encode("the\n value").tolist() == list(map(int, ids.split()))
    code, _, err = call("generate", "--weights", run, "--prompt", "the", "--max-new-tokens", 2)
    assert code == 0, err
    refused = (("book-greedy", "a", "merges OpenAI's vocabularies by rank"), ("book", "東", "has no token"))
    for kind, string, told in refused:
        code, _, err = call("tokenizer", "encode", string, "--kind", kind, "--vocab", own)
        assert (code, told in err, err.count("\n")) == (2, True, 1)


@pytest.mark.parametrize("kind", GREEDY)
def test_a_vocabulary_says_how_the_books_merges_are_applied(call, tmp_path, text, kind):
    """So its folder alone chooses the tokenizer, of `train` and `book`; a name that is given goes before it."""
    own, other = tmp_path / "vocabulary", GREEDY[1 - GREEDY.index(kind)]
    code, out, _ = call("tokenizer", "train", text, "--kind", kind, "--vocab-size", 400, "--out", own)
    assert (code, f"--tokenizer {kind} --vocab {own}" in out) == (0, True)
    short = ["--data", text, "--batch-size", 2, "--length", 16]
    for name, words in ((kind, []), (other, ["--tokenizer", other])):
        run, again = tmp_path / name, tmp_path / f"{name} again"
        few = [*short, "--steps", 1, "--vocab"]
        code, _, err = call("train", *few, own, *words, "--out", run)
        assert code == 0, err
        assert load_checkpoint(run / "checkpoint").training["tokenizer"] == name
        assert call("train", *few, run, "--out", again)[0] == 0  # that of a run is its own, too
        assert load_checkpoint(again / "checkpoint").training["tokenizer"] == name
    small = PRESETS["book-124m"].with_(embed_dim=12, num_heads=2, ff_dim=20, num_layers=1)
    counts = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(PRESETS, "book-124m", small)
        for name, words in (("default", []), *((name, ["--tokenizer", name]) for name in GREEDY)):
            few = [*short, "--epochs", 1, "--eval-every", 1000, "--eval-batches", 1, "--prompt", "the"]
            code, _, err = call("book", *few, "--vocab", own, *words)
            assert code == 0, err
            counts[name] = err.splitlines()[0]
    assert counts["default"] == counts[kind] != counts[other]


def test_a_vocabulary_alone_chooses_whatever_the_size_of_the_model(call, tmp_path, text):
    """A config's file says its own size, with room to spare; of GPT-2's size are those that do not read its files."""
    greedy, bpe = tmp_path / "greedy", tmp_path / "bpe"
    for own, kind in ((greedy, "book-greedy"), (bpe, "bpe")):
        assert call("tokenizer", "train", text, "--kind", kind, "--vocab-size", 400, "--out", own)[0] == 0
    file = tmp_path / "config.json"
    file.write_text(json.dumps(model_to_dict(PRESETS["nano"].with_(vocab_size=448, embed_dim=12, num_heads=2))))
    short = ["--data", text, "--batch-size", 2, "--length", 16, "--steps", 1, "--config", file]
    for own, kind in ((greedy, "book-greedy"), (bpe, "bpe")):
        code, _, err = call("train", *short, "--vocab", own, "--out", tmp_path / f"{kind} run")
        assert code == 0, err
        made = load_checkpoint(tmp_path / f"{kind} run" / "checkpoint")
        assert (made.config.vocab_size, made.training["tokenizer"]) == (448, kind)
    large = PRESETS["gpt2-124m"].vocab_size
    assert [options.kind_in([own], large) for own in (greedy, bpe)] == ["book-greedy", None]


def test_a_vocabulary_that_does_not_say_how_it_merges(call, tmp_path, text):
    """One that is older merges by rank; one that says nonsense is damaged."""
    own = tmp_path / "vocabulary"
    assert call("tokenizer", "train", text, "--kind", "book", "--vocab-size", 400, "--out", own)[0] == 0
    told = json.loads((own / "book-vocab.json").read_text())
    assert told.pop("order") == "rank"
    (own / "book-vocab.json").write_text(json.dumps(told))
    assert kept(own) == ["book"]
    (own / "book-vocab.json").write_text(json.dumps({**told, "order": "sideways"}))
    code, _, err = call("train", "--data", text, "--vocab", own, "--out", tmp_path / "run")
    assert (code, "is damaged (KeyError: 'sideways')" in err, err.count("\n")) == (2, True, 1)


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
