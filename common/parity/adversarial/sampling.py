"""Choosing tokens where the choice hangs on a rule: ties, filters at their ends, extreme temperatures.

The final norm gives its bias alone, so that the logits are the first column of the head, exactly, at every position.
"""

from typing import Any

import numpy as np

from common import params
from common.config import GPTConfig, SamplingConfig
from common.parity.adversarial.edge import Build, Edge, Outcome, refused

CONFIG = GPTConfig(7, 9, 4, 1, 1, ff_dim=4, tie_embeddings=False, qkv_bias=False)
PROMPTS = [[row] * (1 + row % 3) for row in range(7)]  # rows draw apart, at three positions
DISTINCT = [0.5, 2.0, -1.0, 1.5, 0.0, 2.5, 1.0]
TIED = [0.5, 2.0, -1.0, 2.0, 0.0, 2.0, 1.5]
EQUAL = [1.0] * 7
WIDE = [1e4, -1e4, 0.0, 1e4, -1e4, 5e3, 1e4]


def weights(logits: list[float], config: GPTConfig = CONFIG) -> dict[str, np.ndarray]:
    """A model with these logits, whatever it reads."""
    out = params.randomise(config, 0)
    out["model.norm.weight"] = np.zeros(4, np.float32)
    out["model.norm.bias"] = np.array([1, 0, 0, 0], np.float32)
    out["lm_head.weight"] = np.zeros((7, 4), np.float32)
    out["lm_head.weight"][:, 0] = logits
    return out


def _tokens(build: Build, logits: list[float], new: int, **sampling: Any) -> Outcome:
    """The new tokens of all rows, -1 where a row has ended."""
    rows = build(CONFIG, weights(logits)).generate(PROMPTS, SamplingConfig(new, **sampling))
    return {"tokens": np.array([row + [-1] * (new - len(row)) for row in rows])}


def _edge(
    name: str,
    flags: tuple[str, ...],
    why: str,
    logits: list[float],
    new: int = 1,
    slow: bool = False,
    tiers: tuple[str, ...] = ("float64",),
    **sampling: Any,
) -> Edge:
    result = "policy" if "Policy" in flags else "valid"
    return Edge(name, flags, why, lambda build: _tokens(build, logits, new, **sampling), result, tiers, slow)


def _equal_rows(build: Build) -> Outcome:
    """Ids 2 and 5 share an embedding. The hidden state and the table have few bits, so all products are exact."""
    tied = CONFIG.with_(tie_embeddings=True)
    changed = params.randomise(tied, 0)
    changed["model.norm.weight"] = np.zeros(4, np.float32)
    changed["model.norm.bias"] = np.array([1, -0.5, 0.25, 2], np.float32)
    table = np.round(4 * changed["model.embed_tokens.weight"]) / 4
    table[5] = table[2] = [2, -2, 1, 3]
    changed["model.embed_tokens.weight"] = table
    model = build(tied, changed)
    return {"tokens": np.array(model.generate(PROMPTS, SamplingConfig(2))), "logits": model.forward([[1, 5, 2]]).logits}


def _context(build: Build) -> Outcome:
    """Prompt and new tokens fill the context exactly; one more is refused, or cropped."""
    model = build(CONFIG, params.randomise(CONFIG, 1))  # every logit depends on what is read
    prompt = [[1, 2, 3, 4]]
    return {
        "exactly": np.array(model.generate(prompt, SamplingConfig(6, temperature=1.0))),
        "one more": refused(lambda: model.generate(prompt, SamplingConfig(7))),
        "cropped": np.array(model.generate(prompt, SamplingConfig(24, temperature=0.2, overflow="crop"))),
        "an end token beyond": refused(lambda: model.generate(prompt, SamplingConfig(1, end_token=7))),
    }


_TIE, _LIMIT = ("Tie", "Policy"), ("Boundary",)

EDGES = (
    _edge("greedy among equals", _TIE, "the lowest id of the largest logits wins", TIED, 3),
    _edge("greedy among all equals", _TIE, "every logit is equal: id 0", EQUAL, 3),
    Edge(
        "two equal rows of a tied head",
        _TIE,
        "equal embeddings have equal logits where products are exact (otherwise matrix kernels may round two columns"
        " differently), and the lowest id wins",
        _equal_rows,
        result="policy",
    ),
    _edge("k = 1", _LIMIT, "the largest logit alone: the same as greedy", DISTINCT, temperature=1.0, top_k=1),
    _edge("k = 1 among equals", _TIE, "what equals the largest may be drawn too", TIED, temperature=1.0, top_k=1),
    _edge("a tie at the cut of top-k", _TIE, "k = 2 of three equals keeps all three", TIED, temperature=1.0, top_k=2),
    _edge("k = V", _LIMIT, "nothing is cut", DISTINCT, temperature=1.0, top_k=7, seed=4),
    _edge("k > V", ("Boundary", "Policy"), "the same as k = V", DISTINCT, 1, True, temperature=1.0, top_k=50, seed=4),
    _edge("p of almost 0", _LIMIT, "the most likely token is always kept", DISTINCT, temperature=1.0, top_p=1e-9),
    _edge("p near 0 among equals", _TIE, "what equals the last kept token is kept", TIED, temperature=1.0, top_p=1e-9),
    _edge("p = 1", _LIMIT, "nothing is cut", DISTINCT, 1, True, temperature=1.0, top_p=1.0, seed=5),
    _edge("a tie at the cut of top-p", _TIE, "p = 1/2 of seven equals keeps all", EQUAL, temperature=1.0, top_p=0.5),
    _edge(
        "both filters",
        _LIMIT,
        "top-k first, then top-p of what is left",
        DISTINCT,
        4,
        temperature=0.7,
        top_k=4,
        top_p=0.9,
        seed=7,
    ),
    _edge("a temperature of 1e-6", ("Overflow",), "logits times a million", DISTINCT, 1, True, temperature=1e-6),
    _edge("a temperature of 1e6", _LIMIT, "all ids are about equally likely", DISTINCT, 1, True, temperature=1e6),
    _edge(
        "logits of 1e4 to draw from",
        ("Overflow", "Tie"),
        "probabilities of exactly 0, and a tie at the top that the noise decides",
        WIDE,
        tiers=("float64", "float32"),
        temperature=1.0,
        top_p=0.99,
        seed=10,
    ),
    _edge(
        "an end token",
        _LIMIT,
        "rows end one by one; the end is not part of the text, and an ended row stays ended",
        DISTINCT,
        5,
        temperature=1.0,
        end_token=3,
        seed=12,
    ),
    _edge(
        "drawn beyond the context",
        _LIMIT,
        "the noise of a token belongs to its place in the text, not to its place in the cropped window",
        EQUAL,
        14,
        temperature=1.0,
        overflow="crop",
        seed=3,
    ),
    _edge(
        "a padded vocabulary",
        _LIMIT,
        "ids that are no tokens have the largest logits, and nobody takes them",
        DISTINCT,
        2,
        tokens=5,
    ),
    _edge(
        "drawn from a padded vocabulary",
        _LIMIT,
        "top-k and top-p are of tokens, whose noise is what it was",
        DISTINCT,
        6,
        temperature=1.0,
        tokens=5,
        top_k=4,
        top_p=0.9,
        seed=6,
    ),
    Edge("a full context", _LIMIT, "the last new token needs no place in the context", _context, slow=True),
)
