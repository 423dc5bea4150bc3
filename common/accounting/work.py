"""What passes through a model in one call, and the names of what is counted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

PROJECTIONS, SCORES, FEED_FORWARD, HEAD = (
    "attention projections",
    "attention scores and values",
    "feed-forward",
    "head",
)
NORMS, SOFTMAX, ACTIVATION, SUMS = "norms", "softmax", "activation", "biases and residual sums"
ATTENTION, DROPOUT = "attention", "dropout"
TRIANGLES = "triangular systems"
ADAPTERS, ROW_NORMS = "adapters", "row norms of adapters"
BOOL, SCALE = 1, 4  # bytes; the scale of a dropout is one float32


@dataclass(frozen=True)
class Component:
    """A kind of matrix FLOPs. `backward` are the products on the way back: one for the input's gradient and one for the
    weight's; none for choices, one where no gradient leaves by the input; three for a triangular system, which is half
    a product: it is solved once more, and its triangle's gradient is a whole one. `again` says, by attention kernel,
    how many halves of the forward pass are computed again then.
    """

    name: str
    backward: int = 2
    again: Mapping[str, int] = field(default_factory=dict)

    def halves(self, kernel: str) -> int:
        """Forward and backward together, in halves of the forward pass."""
        return 2 + 2 * self.backward + self.again.get(kernel, 0)


@dataclass(frozen=True)
class Work:
    """`batch` rows of `length` queries behind `past` tokens each; kernels read `slots` keys a row, those of a cache if
    it is `cached`. With `causal` only the visible pairs count. The head predicts for `predicted` tokens. `forms` are
    fields of the execution that are not plain, and change what a kind of layer multiplies; so may a `wing`, where what
    it multiplies is asked for, and not what there is to do.
    """

    batch: int
    length: int
    slots: int
    predicted: int
    causal: bool = False
    past: int = 0
    cached: bool = False
    forms: Mapping[str, str] = field(default_factory=dict)
    wing: str | None = None

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    def pairs(self, window: int | None = None) -> int:
        """(query, key) pairs of one head: those that the kernels compute, or with `causal` those that are visible."""
        if self.causal:
            return self.batch * (_triangle(self.past + self.length, window) - _triangle(self.past, window))
        return self.batch * self.length * self.keys(window)

    def keys(self, window: int | None = None) -> int:
        """Keys that every query of a row meets, hidden ones among them. A ring of `window` slots is read as it was,
        with the new keys behind it; a single new key is written first. No more slots than that are no ring."""
        if window is None or window >= self.slots or not self.cached:
            return self.slots
        return window if self.length == 1 else window + self.length


def _triangle(length: int, window: int | None) -> int:
    """Visible pairs of a text of `length` tokens, each of which sees itself and what is before, `window` at most."""
    full = length if window is None else min(length, window)
    return full * (full + 1) // 2 + (length - full) * full


@dataclass(frozen=True)
class Pass:
    """One forward pass whose backward pass will come: its sizes, the bytes of a number in its formats, its attention
    kernel, whether dropout is on."""

    batch: int
    length: int
    compute: int
    reduce: int
    copies: bool
    kernel: str
    dropout: bool

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    def dropped(self, name: str, rate: float, numbers: int) -> "Buffers":
        """A dropout keeps which numbers survive, and its scale."""
        if self.dropout and rate:
            yield DROPOUT, name, numbers * BOOL + SCALE


Buffers = Iterator[tuple[str, str, int]]  # (component, name, bytes)
