"""`parallax quantise` as a table, and the losses that it shows."""

import numpy as np

from common import backend as door
from common import quantised
from common.config import Execution, ModelConfig
from common.data.corpora import corpus
from common.data.windows import Windows

TITLES = {"float32": "float32", "bfloat16": "bfloat16", "nf4": "NF4", "nf4_double": "NF4 double"}


def rows(data: str, encoder, config: ModelConfig, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(inputs [W, T], targets [W, T]) of the first windows of a text, at most so many."""
    windows = Windows(encoder.encode(corpus(data).text), config.context_length)
    return windows.gather(np.arange(min(most, len(windows))))


def losses(backend: str, run: Execution, config: ModelConfig, weights, batch) -> dict[str, float]:
    """Nats a token of these rows: with the weights as they are, and with those that 4 bits stand for."""
    found = {}
    for name in ("float32", *quantised.BASES):
        own = weights if name == "float32" else quantised.quantised(config, weights, name)
        model = door.load(backend).build(config, own, run)
        found[name] = float(
            np.mean([model.loss(ids[None], targets[None]) for ids, targets in zip(*batch, strict=True)])
        )
    return found


def build(source: str, report: quantised.Report):
    """Errors, bits and bytes by kind of matrix, then the whole model, then the losses."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def table(title: str, *columns: str) -> Table:
        made = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        made.add_column("", no_wrap=True)
        for name in columns:
            made.add_column(name, justify="right", no_wrap=True)
        return made

    every = (*report.kinds, report.base)
    errors = table(
        f"{source}: what 4 bits change", "matrices", "weights", "RMS", "RMS double", "largest", "largest double"
    )
    for one in every:
        rms = [f"{100 * one.rms[base]:.2f} %" for base in quantised.BASES]
        largest = [f"{one.largest[base]:.3g}" for base in quantised.BASES]
        errors.add_row(one.name, f"{one.matrices:,}", f"{one.weights:,}", *rms, *largest)
    bits = table("bytes", *TITLES.values(), "bits", "bits double")
    for one in every:
        own = [f"{one.bytes[name]:,}" for name in TITLES]
        bits.add_row(one.name, *own, *(f"{one.bits(base):.3f}" for base in quantised.BASES))
    bits.add_row("model", *(f"{report.whole(name):,}" for name in TITLES), "", "")
    told = [errors, bits, Text(NOTE)]
    if report.loss is not None:
        loss = table(f"loss in nats a token, {report.tokens:,} tokens", *(TITLES[name] for name in report.loss))
        loss.add_row("", *(f"{value:.4f}" for value in report.loss.values()))
        told.append(loss)
    return Group(*told)


NOTE = (
    "RMS: root mean square of what changes, over that of the weights; largest: of one weight. double: absmax of"
    " blocks in 8 bits, too. model: with embeddings, norms, biases and head, which stay (in float32 beside 4 bits)."
)
