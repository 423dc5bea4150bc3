"""Attention scores at which masks and softmax go wrong.

Queries are constant and keys have few bits, so that all scores are exact in float32 too: what is left is the softmax.
"""

import numpy as np

from common import params
from common.config import GPTConfig
from common.parity.adversarial.edge import Build, Edge, Outcome, Weights

CONFIG = GPTConfig(5, 6, 8, 1, 2, ff_dim=4)  # two heads of size 4: scores are divided by exactly 2
PATH = "model.layers.0.self_attn"
LENGTH = 4
BOTH = ("float64", "float32")
SHIFTED, OTHERS = [0, 4], [1, 2, 3, 5, 6, 7]  # the dimension of either head that carries the shift, and the rest


def _eighths(name: str, shape: tuple[int, ...], largest: float = 2.0) -> np.ndarray:
    """Random multiples of 1/8 up to a size: their sums and products are exact."""
    return (np.clip(np.round(8 * params.draw(0, f"edges/{name}", shape)) / 8, -largest, largest)).astype(np.float32)


def weights() -> dict[str, np.ndarray]:
    """Attention whose queries are all ones and whose keys and values are exact; the rest is random."""
    out = params.randomise(CONFIG, 0)
    out[f"{PATH}.q_proj.weight"] = np.zeros((8, 8), np.float32)
    out[f"{PATH}.q_proj.bias"] = np.ones(8, np.float32)
    for name in ("k", "v", "o"):
        out[f"{PATH}.{name}_proj.weight"] = _eighths(name, (8, 8), 1.0)
        out[f"{PATH}.{name}_proj.bias"] = _eighths(f"{name}/bias", (8,), 1.0)
    return out


def _keys(slope: float, shift: float) -> Weights:
    """Scores of shift + slope t for the key at position t, plus what the content gives: channel 7 of x holds t."""
    out = weights()
    key = f"{PATH}.k_proj"
    out[f"{key}.weight"][:, 7] = 0
    out[f"{key}.weight"][SHIFTED, 7] = 2 * slope  # one dimension of either head; the score is half of it
    out[f"{key}.bias"][SHIFTED] += 2 * shift
    return out


def _attend(changed: Weights, build: Build) -> Outcome:
    """Output and gradients of the attention alone, for two rows whose last channel holds the position.

    Queries in the dimension of the shift are left out: their gradient is the shift times a sum that is 0 but for
    rounding.
    """
    x = _eighths("x", (2, LENGTH, 8))
    x[..., 7] = np.arange(LENGTH)
    output, gradients = build(CONFIG, changed).component(PATH, x, _eighths("cotangent", x.shape))
    queries = [gradients.grads[f"{PATH}.{name}"][OTHERS] for name in ("q_proj.weight", "q_proj.bias")]
    values = [gradients.grads[f"{PATH}.{name}"] for name in ("v_proj.weight", "v_proj.bias")]
    return {
        "output": output,
        "gradient of x": gradients.grads["input"],
        "gradient of q": np.concatenate([g.ravel() for g in queries]),
        "gradient of v": np.concatenate([g.ravel() for g in values]),
    }


def _equal(build: Build) -> Outcome:
    changed = weights()
    changed[f"{PATH}.k_proj.weight"] = np.zeros((8, 8), np.float32)
    return {name: value for name, value in _attend(changed, build).items() if name != "gradient of q"}


def _positions(build: Build) -> Outcome:
    """A row of padding alone, a row with one token, a full row."""
    ids = np.array([[1, 2, 3], [4, 0, 1], [2, 2, 3]], np.int32)
    positions = np.array([[-1, -1, -1], [-1, -1, 0], [0, 1, 2]], np.int32)
    found = build(CONFIG, params.randomise(CONFIG, 1)).forward(ids, positions, taps=(f"{PATH}.output",))
    return {"logits": found.logits, "attention": found.taps[f"{PATH}.output"]}


def _padding_in_cache(build: Build) -> Outcome:
    """A row whose cache holds nothing but padding, then its first token."""
    model = build(CONFIG, params.randomise(CONFIG, 1))
    cache = model.new_cache(2, 3)
    first = model.extend(cache, np.array([[0, 0], [1, 2]]), np.array([[-1, -1], [0, 1]]))
    second = model.extend(cache, np.array([[3], [3]]), np.array([[0], [2]]))
    return {"padding": first, "first token": second}


def _edge(name: str, slope: float, shift: float, why: str) -> Edge:
    return Edge(name, ("ScoreShift",), why, lambda build: _attend(_keys(slope, shift), build), tiers=BOTH)


EDGES = (
    _edge(
        "scores shifted by -2e4",
        0.0,
        -2e4,
        "softmax does not see a shift; a mask that writes -1e4 into hidden scores lifts them above all others",
    ),
    _edge("scores shifted by 2e4", 0.0, 2e4, "without subtracting the largest score first, exp overflows"),
    _edge(
        "hidden scores 2e4 larger",
        2e4,
        -4e4,
        "every hidden key scores 2e4 more than the last visible one: a mask that adds -1e4 lets the future through",
    ),
    _edge(
        "visible scores 1e4 apart",
        -1e4,
        1e4,
        "all but one of the weights underflow to exactly zero, and so do their gradients",
    ),
    Edge("all scores equal", ("Tie",), "every visible key has the same weight, 1 / their number", _equal, tiers=BOTH),
    Edge(
        "a row of padding",
        ("FullyMasked", "Padded", "Policy"),
        "a query that sees no key gets a context of zeros, so attention gives its output bias; a row with one visible"
        " key gives that key the weight 1; other rows do not notice",
        _positions,
        result="policy",
    ),
    Edge(
        "a cache full of padding",
        ("FullyMasked", "Padded", "Policy"),
        "a row whose cache holds padding only counts as empty; its first token sees itself alone",
        _padding_in_cache,
        result="policy",
    ),
)
