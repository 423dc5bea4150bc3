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
    weights: Annotated[Path, typer.Option(help="A run of `parallax finetune classify`.")] = Path("out/classify"),
    file: Annotated[Path | None, typer.Option(help="File of texts, one a line.")] = None,
    backend: options.Backend = "torch",
    batch_size: Annotated[int, typer.Option(help="Texts that are computed at once.")] = 8,
    vocab: options.Vocab = None,
    how: groups.Ways = _HOW,
    json: Annotated[bool, typer.Option("--json", help="Print texts and all probabilities as JSON.")] = False,
) -> None:
    """Say of which class texts are, and how probable that is, by a model that was trained to."""
    from json import dumps

    import numpy as np

    from common import backend as door
    from common import run as runs
    from common.commands.finetune import tuning
    from common.commands.finetune.classify import Texts
    from common.data.labelled import TextExamples
    from common.errors import UserError
    from common.tuning import classes

    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; allowed is a whole number > 0.")
    execution = how.execution(backend)
    found, record = runs.weights_of(weights)
    names = record.get("classes")
    if found.config.num_labels is None or not isinstance(names, list) or len(names) != found.config.num_labels:
        raise UserError(f"{weights} holds no run of `parallax finetune classify`, which knows the names of classes.")
    laid = tuning.again(Texts, record)
    texts = _texts(text or [], file)
    encoder = options.tokenizer_for(record["tokenizer"], vocab, found.config.vocab_size, weights)
    own = {"length": record["length"], "read": laid.read, "pad_to": laid.pad_to, "multiple": laid.pad_multiple}
    ids, unknown = [encoder.encode(one) for one in texts], np.zeros(len(texts), np.int64)
    examples = TextExamples(ids, unknown, pad_id=tuning.end_of(encoder), **own)
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


def _texts(said: list[str], file: Path | None) -> list[str]:
    """What is to be classified."""
    import sys

    from common.data.corpora import read_text
    from common.errors import UserError

    texts: list[Any] = []
    for one in said:
        texts += sys.stdin.read().split("\n") if one == STDIN else [one]
    if file is not None:
        texts += read_text(file).split("\n")
    texts = [one for one in texts if one.strip()]
    if not texts:
        raise UserError("There is no text to classify; give some, or --file, or - for standard input.")
    return texts
