"""Numbers that are very small, very large, equal, or no numbers at all."""

import numpy as np

from common import params
from common.config import GPTConfig, SamplingConfig
from common.parity.adversarial.edge import Build, Edge, Outcome

CONFIG = GPTConfig(5, 4, 8, 1, 2, ff_dim=8, tie_embeddings=False, qkv_bias=False, norm_eps=1e-9)
EXACT_GELU = CONFIG.with_(activation="gelu")
NORM, MLP = "model.norm", "model.layers.0.mlp"
BOTH = ("float64", "float32")
IDS = np.array([[1, 2, 3, 4], [1, 0, 3, 2]], np.int32)
STEPS = np.array([-3, 1, 2, -1, 0, 4, -2, 5], np.float64)  # eight numbers, so that their mean is exact


def weights() -> dict[str, np.ndarray]:
    """Every parameter random, except that the feed-forward is the activation alone: both matrices are the identity."""
    out = params.randomise(CONFIG, 0)
    for name in ("up_proj", "down_proj"):
        out[f"{MLP}.{name}.weight"], out[f"{MLP}.{name}.bias"] = np.eye(8, dtype=np.float32), np.zeros(8, np.float32)
    return out


def _component(config: GPTConfig, path: str, rows: list, build: Build) -> Outcome:
    """Output and gradient of the input, one token for every row of numbers."""
    x = np.array(rows, np.float64)[None]
    output, gradients = build(config, weights()).component(path, x, np.tile([1.0, -0.5], x.size // 2).reshape(x.shape))
    return {"output": output, "gradient of x": gradients.grads["input"]}


def _norm(name: str, flags: tuple[str, ...], why: str, *rows: np.ndarray) -> Edge:
    return Edge(name, flags, why, lambda build: _component(CONFIG, NORM, list(rows), build), tiers=BOTH)


def _gelu(name: str, config: GPTConfig, values: list[float], why: str, flags: tuple[str, ...] = ("Boundary",)) -> Edge:
    return Edge(name, flags, why, lambda build: _component(config, MLP, [values], build), tiers=BOTH)


def _subnormal(build: Build) -> Outcome:
    """Subnormal numbers of float64 and of float32 through the activation and the norm, beside an ordinary row."""
    rows = [2.0**-1030 * STEPS, 2.0**-140 * STEPS, STEPS]
    mlp, norm = _component(CONFIG, MLP, rows, build), _component(CONFIG, NORM, rows, build)
    return {"activation": mlp["output"], "norm": norm["output"]}


def _bad(name: str, row: int, value: float, build: Build) -> Outcome:
    """Logits of every token and the greedy continuation, with one row of a table spoilt."""
    changed = weights()
    changed[name][row] = value
    model = build(CONFIG, changed)
    tokens = model.generate(IDS[:, 1:].tolist(), SamplingConfig(2))
    return {"logits": model.forward(IDS).logits, "tokens": np.array(tokens)}


def _infinite_head(value: float, build: Build) -> Outcome:
    """One weight of one id's row in the head is infinite: its logits are +inf or -inf by the sign of the channel."""
    changed = weights()
    changed["lm_head.weight"][2, 3] = value
    return {"logits": build(CONFIG, changed).forward(IDS).logits}


EDGES = (
    _norm("a row of zeros", ("Degenerate",), "variance 0: only the epsilon keeps the norm finite", 0 * STEPS, STEPS),
    _norm("a row of equal numbers", ("Degenerate",), "variance 0 at mean 1000", 0 * STEPS + 1000, STEPS),
    _norm(
        "variance 1e-8",
        ("Degenerate",),
        "spread of 1e-4 around 1, where the epsilon weighs and E[x^2] - mean^2 has lost all digits of float32",
        1 + STEPS * 2**-15,
    ),
    _norm(
        "mean 1000",
        ("Overflow",),
        "Flax's fast variance, E[x^2] - mean^2, is off by 0.2 here in float32",
        1000 + STEPS / 4,
        -1000 + STEPS / 8,
    ),
    _norm("numbers of 1e15", ("Overflow",), "the square is 1e30, near the end of float32", 2.0**50 * STEPS, STEPS),
    _gelu("tanh GELU to 10", CONFIG, [-10, -6, -4, -2, 2, 4, 6, 10], "both tails, and where 1 + tanh cancels"),
    _gelu("tanh GELU to 100", CONFIG, [-100, -50, -20, 0, -0.0, 20, 50, 100], "the cube is 1e6; zero has slope 1/2"),
    _gelu("exact GELU to 10", EXACT_GELU, [-10, -6, -4, -2, 2, 4, 6, 10], "both tails, and where 1 + erf cancels"),
    _gelu("exact GELU to 100", EXACT_GELU, [-100, -50, -20, 0, -0.0, 20, 50, 100], "erf is exactly 1 or -1"),
    _gelu(
        "GELU whose cube overflows",
        CONFIG,
        [-(2.0**44), 2.0**44, 1, -1, 2.0**43, -(2.0**43), 0, 2],
        "in float32 the cube of 2^44 is infinite: the value is x or 0, the slope 1 or 0, and neither is NaN",
        ("Overflow",),
    ),
    Edge(
        "subnormal numbers",
        ("Subnormal", "Policy"),
        "XLA counts them as zero, PyTorch and NumPy keep them: either is right, nothing larger may come of it",
        _subnormal,
        result="policy",
        tiers=BOTH,
    ),
    Edge(
        "NaN in one position",
        ("NonFinite", "Policy"),
        "a hidden key has weight 0, and 0 times NaN is NaN: the whole row is spoilt, its earlier tokens too; the"
        " largest of NaNs is the first id",
        lambda build: _bad("model.embed_positions.weight", 2, np.nan, build),
        result="policy",
    ),
    Edge(
        "NaN in one token",
        ("NonFinite", "Policy"),
        "a row that has the token is spoilt as a whole, a row without it stays as it is; where the greedy choice meets"
        " NaN it takes the first id",
        lambda build: _bad("model.embed_tokens.weight", 4, np.nan, build),
        result="policy",
    ),
    Edge(
        "infinity in one token",
        ("NonFinite", "Policy"),
        "the norm makes NaN of infinity, which then spreads as NaN does",
        lambda build: _bad("model.embed_tokens.weight", 4, np.inf, build),
        result="policy",
    ),
    Edge(
        "an infinite weight in the head",
        ("NonFinite",),
        "the logits of one id are infinite, of either sign, and no others",
        lambda build: _infinite_head(np.inf, build),
    ),
)
