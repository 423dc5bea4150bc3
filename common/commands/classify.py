"""`parallax classify`"""

from pathlib import Path
from typing import Annotated, Any

import typer

from common.commands import groups, options

_HOW = groups.Ways()
STDIN = "-"


@groups.grouped
def classify(
    text: Annotated[
        list[str] | None, typer.Argument(help="Texts to classify; - reads them from standard input, one a line.")
    ] = None,
    weights: Annotated[Path, typer.Option(help="A run of `parallax finetune classify`, or another classifier.")] = Path(
        "out/classify"
    ),
    file: Annotated[Path | None, typer.Option(help="File of texts, one a line.")] = None,
    backend: options.Backend = "torch",
    batch_size: Annotated[int, typer.Option(help="Texts that are computed at once.")] = 8,
    labels: Annotated[
        str | None, typer.Option(help="Names of the classes, as in ham,spam (default: the run's, or 0, 1, …).")
    ] = None,
    read: Annotated[
        str | None, typer.Option(help="Position read: last, first or flexible (default: the run's, or flexible).")
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens of a text at most (default: the run's, or the context).")
    ] = None,
    tokenizer: options.TokenizerName = None,
    vocab: options.Vocab = None,
    adapter: options.Adapter = None,
    no_adapters: options.NoAdapters = False,
    how: groups.Ways = _HOW,
    json: Annotated[bool, typer.Option("--json", help="Print texts and all probabilities as JSON.")] = False,
) -> None:
    """Say of which class texts are, and how probable that is, by a model that was trained to."""
    from json import dumps

    import numpy as np

    from common import backend as door
    from common import run as runs
    from common.commands.finetune import tuning
    from common.data.labelled import TextExamples
    from common.errors import UserError
    from common.tuning import classes

    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; allowed is a whole number > 0.")
    execution = how.execution(backend)
    found, record = runs.weights_of(weights)
    if found.config.num_labels is None:
        raise UserError(f"{weights} holds no run of `parallax finetune classify`, nor another classifier.")
    found = options.with_adapters(found, weights, adapter, no_adapters)
    layout = _layout(record, read, length, found.config)
    names = _names(weights, record, labels, found.config.num_labels)
    texts = _texts(text or [], file)
    encoder = options.tokenizer_for(
        tokenizer or options.tokenizer_of(record, weights), vocab, found.config.vocab_size, weights
    )
    ids, unknown = [encoder.encode(one) for one in texts], np.zeros(len(texts), np.int64)
    examples = TextExamples(ids, unknown, pad_id=tuning.end_of(encoder), **layout)
    if examples.truncated:
        options.show(f"{examples.truncated} texts are longer than {examples.length} tokens and are cut there.")
    model = door.load(backend).build(found.config, found.weights, execution)
    rows = []
    for one, shares in zip(texts, classes.probabilities(model, examples, batch_size).tolist(), strict=True):
        best = int(np.argmax(shares))
        told = dict(zip(names, shares, strict=True))
        rows.append({"text": one, "label": names[best], "probability": shares[best], "probabilities": told})
    if json:
        print(dumps({"backend": backend, "rows": rows}, ensure_ascii=False))
    else:
        print("\n".join(f"{row['label']}\t{row['probability']:.4f}\t{row['text']}" for row in rows))


def _names(weights: Path, record: dict[str, Any], labels: str | None, count: int) -> list[str]:
    """What the classes are called: as is said, as the run has it, or by their numbers."""
    from common.errors import UserError

    if labels is not None:
        names = [name.strip() for name in labels.split(",")]
        if len(names) != count or len(set(names)) != count or not all(names):
            raise UserError(f"--labels {labels} is no list of {count} different names; {weights} has {count} classes.")
        return names
    names = record.get("classes")
    if isinstance(names, list) and len(names) == count:
        return [str(name) for name in names]
    options.show(f"{weights} does not know the names of its classes; here they are numbers (--labels names them).")
    return [str(number) for number in range(count)]


def _layout(record: dict[str, Any], read: str | None, length: int | None, config: Any) -> dict[str, Any]:
    """How texts are laid out: as is said, as the run did, or so that the last token of a text is read."""
    from common.commands.finetune import tuning
    from common.commands.finetune.classify import Texts
    from common.errors import UserError

    if read is not None and config.pooling == "mean":
        raise UserError(f"This classifier averages all positions, so --read {read} chooses none; leave it out.")
    if length is not None and not 0 < length <= config.context_length:
        raise UserError(f"--length is {length}; allowed is a whole number from 1 to {config.context_length}.")
    if record.get("kind") == "classify":
        laid = tuning.again(Texts, record)
        own = {
            "length": tuning.length_of(record),
            "read": laid.read,
            "pad_to": laid.pad_to,
            "multiple": laid.pad_multiple,
        }
    else:  # who reads or sees padding gets as much whatever stands beside it
        padded = read == "last" or not config.cacheable
        own = {"length": config.context_length, "read": "flexible", "pad_to": "length" if padded else "batch"}
    return own | {name: one for name, one in (("read", read), ("length", length)) if one is not None}


def _texts(said: list[str], file: Path | None) -> list[str]:
    """What is to be classified."""
    import sys

    from common.data.corpora import decoded, lines, read_text
    from common.errors import UserError

    texts: list[Any] = []
    for one in said:
        texts += lines(decoded(sys.stdin.buffer.read(), "Standard input")) if one == STDIN else [one]
    if file is not None:
        texts += lines(read_text(file))
    texts = [one for one in texts if one.strip()]
    if not texts:
        raise UserError("There is no text to classify; give some, or --file, or - for standard input.")
    return texts
