"""`parallax tokenizer`"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from common.commands import options

ACTIONS = ("train", "encode", "decode", "grow")


def tokenizer(
    action: Annotated[
        str, typer.Argument(help="train, encode or decode (to look at it), or grow (by more special tokens).")
    ],
    text: Annotated[
        list[str],
        typer.Argument(
            help="train: pydoc, a file, folder, or prepared shards. encode: the text; decode: ids; grow: new tokens."
        ),
    ],
    kind: Annotated[
        str,
        typer.Option(
            help="bpe (byte-level, as GPT-2), book (its simpler one), book-greedy, words; to look at, any other."
        ),
    ] = "bpe",
    vocab_size: Annotated[int, typer.Option(help="Tokens of the vocabulary, special ones among them.")] = 8192,
    special: Annotated[
        list[str] | None,
        typer.Option(help="A special token (may be given again; default: <|endoftext|>, of words <|unk|> too)."),
    ] = None,
    vocab: options.Vocab = None,
    weights: Annotated[Path | None, typer.Option(help="grow: a model whose embedding and head grow, too.")] = None,
    out: Annotated[Path, typer.Option(help="train, grow: folder for the result.")] = Path("out/tokenizer"),
) -> None:
    """Learn a vocabulary from text, see what a text becomes, or add tokens to a vocabulary and its model."""
    from common.errors import UserError, unknown

    if action not in ACTIONS:
        raise unknown("action", action, ACTIONS)
    if action == "train" and vocab is not None:
        raise UserError("--vocab names a vocabulary to read, and training makes one; --out is where it goes.")
    if action in ("train", "encode") and len(text) > 1:
        raise UserError(f"{action} takes one text, not {len(text)}; put it in quotes.")
    if action != "grow" and weights is not None:
        raise UserError("--weights is for grow alone.")
    if action == "train":
        _train(text[0], kind, vocab_size, special, out)
    elif action == "encode":
        _encode(text[0], kind, vocab)
    elif action == "decode":
        _decode(text, kind, vocab)
    else:
        _grow(text, kind, vocab, weights, out)


def _train(source: str, kind: str, vocab_size: int, special: list[str] | None, out: Path) -> None:
    from common.errors import unknown
    from common.tokenizers import LEARNERS, words

    if kind not in LEARNERS:
        raise unknown("kind of tokenizer to train", kind, LEARNERS)
    origin, texts = _texts(source)
    named = {} if special is None else {"specials": tuple(special)}
    if kind == "words":  # as many as there are
        made = LEARNERS[kind]("\n\n".join(texts()), **named)
    else:
        with options.bar("merges") as report:
            several = texts() if kind == "bpe" else "\n\n".join(texts())
            made = LEARNERS[kind](several, vocab_size, report=report, **named)
    sizes = [(len(text), len(made.encode(text, special=True))) for text in texts()]
    characters, ids = map(sum, zip(*sizes, strict=True))
    made.save(out)
    print(f"{made.vocab_size:,} tokens; {characters:,} characters of {origin} become {ids:,} ids.")
    if kind != "words" and made.vocab_size < vocab_size:
        print(f"No pair was left that occurs twice, so there are fewer tokens than {vocab_size:,}.")
    if kind == "words" and not made.knows_unknown:
        print(f"A word that this text has not will be refused; a --special '{words.UNKNOWN}' would stand for it.")
    print(f"Use it: parallax train --tokenizer {kind} --vocab {out}")


def _texts(source: str) -> tuple[str, Callable[[], Iterable[str]]]:
    """(name, what gives the texts, as often as it is asked): a corpus as one text, prepared shards book by book."""
    from common.data import gutenberg
    from common.data.corpora import NAMED, corpus

    path = Path(source).expanduser()
    folder = None if source in NAMED else gutenberg.prepared(path)
    if folder is None:
        found = corpus(source)
        return found.name, lambda: (found.text,)
    shards = gutenberg.shards(folder)
    chosen = [path] if path.is_file() else shards
    return path.resolve().name, lambda: (text for one in chosen for text in gutenberg.documents(one))


def _encode(text: str, kind: str, vocab: Path | None) -> None:
    from common.tokenizers import tokenizer as of_name

    made = of_name(kind, vocab)
    ids = made.encode(text, special=True)
    print(" ".join(map(str, ids)))
    print(" ".join(repr(made.decode([number]))[1:-1].replace(" ", "·") or "·" for number in ids))
    options.show(f"{len(text):,} characters, {len(ids):,} ids of {made.vocab_size:,}")


def _decode(numbers: list[str], kind: str, vocab: Path | None) -> None:
    from common.errors import UserError
    from common.tokenizers import tokenizer as of_name

    words = " ".join(numbers).replace(",", " ").split()
    wrong = next((word for word in words if not (word.isascii() and word.isdigit())), None)
    if wrong is not None:
        raise UserError(f"{wrong!r} is no id; decode takes whole numbers, as encode prints them.")
    print(of_name(kind, vocab).decode(map(int, words)))


def _grow(tokens: list[str], kind: str, vocab: Path | None, weights: Path | None, out: Path) -> None:
    from tempfile import TemporaryDirectory

    from common.errors import UserError
    from common.run import weights_of
    from common.tokenizers import bpe, gpt2, vocabulary_files
    from common.weights.checkpoint import save_checkpoint
    from common.weights.grow import grown

    if kind not in ("bpe", "gpt2"):
        raise UserError(f"Vocabularies of kind 'bpe' grow, GPT-2's among them (--kind gpt2), not of kind {kind!r}.")
    if kind == "bpe" and vocab is None:
        raise UserError("Name the folder of the vocabulary that is to grow (--vocab), or --kind gpt2.")
    if kind == "gpt2":
        files = gpt2.find(vocab)
        files.verify()
        own = bpe.of_files(files.encoder, files.merges)
    else:
        own = bpe.load(vocab)
    made = own.grown(tokens)
    if weights is not None:
        found, record = weights_of(weights)
        padded = found.config.vocab_size > own.vocab_size and _beside(weights, record, kind, own)
        if found.config.vocab_size != own.vocab_size and not padded:
            sizes = f"{found.config.vocab_size} tokens, the vocabulary {own.vocab_size}"
            told = "they belong together if these are equal, or if the model is padded and its run has this vocabulary"
            raise UserError(f"The model in {weights} has {sizes}; {told}.")
        larger = grown(found.config, found.weights, len(tokens), known=own.vocab_size)
        with TemporaryDirectory() as place:  # so that both are there, or neither
            made.save(place)
            save_checkpoint(out, *larger, beside=vocabulary_files(Path(place)))
    else:
        made.save(out)
    named = ", ".join(f"{token} {made.specials[token]}" for token in tokens)
    print(f"{made.vocab_size:,} tokens, the new ones: {named}.")
    use = f"--weights {out} --tokenizer bpe" if weights is not None else f"--tokenizer bpe --vocab {out}"
    print(f"Use it: {use}")


def _beside(weights: Path, record: Mapping[str, Any], kind: str, own: Any) -> bool:
    """Whether weights are of this vocabulary: it lies beside them, or, of GPT-2's, their run's record says so."""
    from common.tokenizers import bpe, holds

    if holds(weights, "bpe"):
        return bpe.load(weights).tokens == own.tokens
    return kind == "gpt2" and record.get("tokenizer") == "gpt2"
