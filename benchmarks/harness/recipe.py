"""Where a model's weights come from, in a few words that travel to any process instead of the weights."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from common import params
from common.config import ModelConfig
from common.errors import unknown
from common.quantised import quantised

KINDS = ("initial", "uneven", "uneven nf4", "randomised", "stored", "file")
UNEVEN = 0.1


@dataclass(frozen=True)
class Recipe:
    """How to get the weights of `config`: "initial" and "randomised" from `seed`; "uneven" are the initial ones with
    noise of UNEVEN on norms, biases and the B of adapters, which hide mistakes while they are ones and zeros; "uneven
    nf4" has in the place of matrices that can be kept in 4 bits what those bits would stand for, so that models that
    keep them so compute the same; "stored" from any place that
    `common.weights.formats` reads (with `heads` where it does not say), "file" from a safetensors file of ours.
    """

    kind: str
    config: ModelConfig
    seed: int = 0
    path: str = ""
    heads: int | None = None

    def weights(self) -> Mapping[str, np.ndarray]:
        """The weights by name, made or read one at a time."""
        if self.kind == "initial":
            return params.initialise(self.config, self.seed)
        if self.kind == "uneven":
            return self._uneven()
        if self.kind == "uneven nf4":
            return quantised(self.config, self._uneven(), "nf4")
        if self.kind == "randomised":
            return params.randomise(self.config, self.seed)
        if self.kind == "stored":
            from common.weights import formats

            return formats.load(self.path, heads=self.heads).weights
        if self.kind == "file":
            return read_arrays(self.path)
        raise unknown("kind of recipe", self.kind, KINDS)

    def _uneven(self) -> params.LazyWeights:
        initial = params.initialise(self.config, self.seed)

        def made(one: params.Parameter) -> np.ndarray:
            if len(one.shape) > 1 and one.init != "zeros":
                return initial[one.name]
            noise = UNEVEN * params.draw(self.seed, f"uneven/{one.name}", one.shape)
            return initial[one.name] + noise.astype(np.float32)

        table = params.table(self.config)
        return params.LazyWeights({name: functools.partial(made, one) for name, one in table.items()})


@contextmanager
def on_disk(recipe: Recipe) -> Iterator[Recipe]:
    """The same weights from a file that lives as long as the block: many processes need not draw each number anew."""
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "weights.safetensors")
        write_arrays(path, dict(recipe.weights()))
        yield Recipe("file", recipe.config, path=path)


class FileWeights(params.LazyWeights):
    """The arrays of a file by name, each read when it is asked for; and where it is, for who reads it otherwise."""

    def __init__(self, path: str):
        from common.weights import safetensors_io

        super().__init__({name: stored.read for name, stored in safetensors_io.open_file(path).items()})
        self.path = path


def read_arrays(path: str) -> FileWeights:
    """The arrays of a file by name."""
    return FileWeights(path)


def write_arrays(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Arrays by name into one safetensors file."""
    from common.weights import safetensors_io, stored

    safetensors_io.write_file(path, stored.stored(arrays))
