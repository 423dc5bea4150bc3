"""Windows of ids and batches of examples, in an order that is the same for both wings and can be taken up again.

Shape suffixes: A accumulated micro-batches, B batch, T positions.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np

from common import rng
from common.errors import UserError

READ = 1 << 22  # ids that are looked at together


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value <= 0:
        raise UserError(f"{name} is {value!r}; allowed is a whole number > 0.")
    return int(value)


class Examples(Protocol):
    """What can be put into batches. `kind` and `source` are the words of error messages, as in "windows" of a
    "corpus"; `gather` gives inputs and targets of many examples, [*indices.shape, T] unless it says otherwise."""

    kind: str
    source: str

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray | int) -> tuple[np.ndarray, Any]: ...

    def describe(self) -> dict[str, Any]:
        """What identifies these examples, as plain data that JSON keeps."""
        ...


class Windows(Sequence[tuple[np.ndarray, np.ndarray]]):
    """Window i holds inputs ids[s : s+length] and targets ids[s+1 : s+length+1] with s = i * stride.

    Starts lie below len(ids) - length, so every window is full. Raises UserError if not even one fits.
    Source: Raschka, *Build a Large Language Model (From Scratch)*, section 2.6.
    """

    kind, source = "windows", "corpus"

    def __init__(self, ids: np.ndarray | Sequence[int], length: int, stride: int | None = None):
        self.length = _positive("Window length", length)
        self.stride = self.length if stride is None else _positive("Window stride", stride)
        given = np.asarray(ids)
        if given.ndim != 1 or (given.size and not np.issubdtype(given.dtype, np.integer)):
            raise UserError(
                f"Ids of shape {list(given.shape)} and type {given.dtype}; windows need one row of whole numbers."
            )
        if given.size <= self.length:
            raise UserError(
                f"A corpus of {given.size} tokens is too short for windows of {self.length}: it needs at least"
                f" {self.length + 1} tokens; use a longer corpus or shorter windows."
            )
        # what is mapped from a file stays there
        self.ids = given if isinstance(ids, np.memmap) else np.array(given, np.int32)
        self.ids.setflags(write=False)

    def __len__(self) -> int:
        return -(-(self.ids.size - self.length) // self.stride)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs [T], targets [T]) int32 of one window."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        return self.gather(index % len(self))

    def gather(self, indices: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) int32 of many windows, both of shape [*indices.shape, T]."""
        places = np.asarray(indices)[..., None] * self.stride + np.arange(self.length)
        return self.ids[places].astype(np.int32, copy=False), self.ids[places + 1].astype(np.int32, copy=False)

    def describe(self) -> dict[str, Any]:
        """What identifies these windows: tokens, their SHA-256 (as little-endian int32), length and stride."""
        sha256 = hashlib.sha256()
        for start in range(0, self.ids.size, READ):
            sha256.update(self.ids[start : start + READ].astype("<i4").tobytes())
        sizes = {"length": self.length, "stride": self.stride}
        return {"tokens": self.ids.size, "sha256": sha256.hexdigest(), **sizes}


class Batches(Iterator[tuple[np.ndarray, Any]]):
    """Endless steps of (inputs_ABT, targets_ABT) int32, or what else the examples gather; every epoch is a permutation
    of its own.

    Epoch e sorts the windows (or other examples) by 64-bit words drawn at the address (seed, DATA, e) of the shared
    random numbers. Those that do not fill the last step of an epoch are left out of that epoch. `latest` are those of
    the latest step [A, B]. Raises UserError if there are fewer than one step needs.
    """

    _STATE = ("epoch", "position", "seed", "shuffle", "batch_size", "accumulate", "windows")

    def __init__(self, windows: Examples, batch_size: int, *, seed: int, shuffle: bool = True, accumulate: int = 1):
        self.windows = windows
        self.batch_size = _positive("Batch size", batch_size)
        self.accumulate = _positive("Number of accumulated batches", accumulate)
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
            raise UserError(f"Seed is {seed!r}; allowed is a whole number in [0, 2^32).")
        self.seed, self.shuffle = int(seed), bool(shuffle)
        self.epoch = self.position = 0  # position counts steps within the epoch
        self._order: tuple[int, np.ndarray] | None = None
        self.latest = np.empty((self.accumulate, 0), np.int64)
        self._identity = windows.describe()
        if self.steps_per_epoch == 0:
            raise UserError(
                f"One step needs {self._per_step} {windows.kind} (batch size {self.batch_size} times"
                f" {self.accumulate} accumulated), but the {windows.source} gives {len(windows)}; use a larger"
                f" {windows.source} or smaller batches."
            )

    @property
    def _per_step(self) -> int:
        return self.batch_size * self.accumulate

    @property
    def steps_per_epoch(self) -> int:
        """Full steps in one pass over the windows."""
        return len(self.windows) // self._per_step

    def order(self, epoch: int) -> np.ndarray:
        """The indices of the windows in the order of that epoch."""
        if not self.shuffle:
            return np.arange(len(self.windows))
        words = rng.bits(rng.address(self.seed, rng.DATA, epoch), (len(self.windows),), 64)
        return np.argsort(words, kind="stable")

    def __next__(self) -> tuple[np.ndarray, Any]:
        if self._order is None or self._order[0] != self.epoch:
            self._order = self.epoch, self.order(self.epoch)
        start = self.position * self._per_step
        chosen_AB = self._order[1][start : start + self._per_step].reshape(self.accumulate, self.batch_size)
        self.latest = chosen_AB
        self.position += 1
        if self.position == self.steps_per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        return self.windows.gather(chosen_AB)

    def state(self) -> dict[str, Any]:
        """Plain data from which `resume` goes on with exactly the next step."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "batch_size": self.batch_size,
            "accumulate": self.accumulate,
            "windows": dict(self._identity),
        }

    @classmethod
    def resume(cls, windows: Examples, state: Mapping[str, Any]) -> Self:
        """The iterator that `state` was taken from; refused if its examples were others."""
        lacking = [name for name in cls._STATE if not isinstance(state, Mapping) or name not in state]
        if lacking or not isinstance(state["windows"], Mapping):
            raise UserError(f"The data state is damaged: it lacks {', '.join(lacking or ['windows'])}.")
        recorded, epoch, position = state["windows"], state["epoch"], state["position"]
        here = windows.describe()
        differs = [f"{k} was {recorded.get(k)}, is {here[k]}" for k in here if recorded.get(k) != here[k]]
        if differs:
            raise UserError(
                f"The data state is of another {windows.source} or other {windows.kind}: {'; '.join(differs)}."
            )
        settings = {name: state[name] for name in ("seed", "shuffle", "accumulate")}
        batches = cls(windows, state["batch_size"], **settings)
        whole = all(isinstance(number, int) and number >= 0 for number in (epoch, position))
        if not whole or position >= batches.steps_per_epoch:
            steps = batches.steps_per_epoch
            raise UserError(f"The data state is damaged: epoch {epoch!r}, position {position!r} of {steps} steps.")
        batches.epoch, batches.position = epoch, position
        return batches
