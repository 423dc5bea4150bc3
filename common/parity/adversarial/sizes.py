"""Sums so long that too few bits stop growing, stacks and caches that outgrow their first size, and vectors of which
16 bits do not hold what matters."""

import functools

import numpy as np

from common import params
from common.backend import IGNORED
from common.config import GPTConfig, SamplingConfig
from common.parity.adversarial.edge import Build, Edge, Outcome, flat

MANY = GPTConfig(5, 13, 4, 1, 2, ff_dim=4, tie_embeddings=False)
ROWS, LEFT_OUT = 640, 33  # 8,320 tokens, of which 8,287 count: more than 8 bits can say
DEEP = GPTConfig(3, 4, 2, 12, 1, ff_dim=2)
ROOMY = GPTConfig(7, 160, 4, 1, 2, ff_dim=4)
ROOM = ((40, 20), (17, 47), (64, 65), (60, 100))  # prompts and new tokens, about sizes that are rounded up
CLOSE = GPTConfig(3, 6, 2, 1, 1, ff_dim=2, tie_embeddings=False, qkv_bias=False, norm_eps=1e-12)
BLOCK = "model.layers.0"


def _many(build: Build) -> Outcome:
    """Every token is the same, so that all that is added to a gradient points the same way."""
    ids = np.ones((ROWS, MANY.context_length), np.int32)
    targets = np.where(np.arange(ids.size) % 3, 2, 3).reshape(ids.shape).astype(np.int32)
    targets.reshape(-1)[:LEFT_OUT] = IGNORED
    found = build(MANY, params.randomise(MANY, 0)).gradients(ids, targets)
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    return {
        "loss": found.value,
        "embedding": found.grads[tables[0]],
        "head": found.grads[tables[1]],
        "others": flat(MANY, found.grads, skip=tables),
    }


def _deep(build: Build) -> Outcome:
    """More layers than one digit counts."""
    model = build(DEEP, params.randomise(DEEP, 0))
    return {"logits": model.forward(np.array([[0, 1, 2, 1]])).logits, "weights": flat(DEEP, model.weights())}


def _room(build: Build) -> Outcome:
    """Sampled continuations of three rows, with a cache."""
    model, out = build(ROOMY, params.randomise(ROOMY, 0)), {}
    for length, new in ROOM:
        prompts = [[(3 * i + row) % 7 for i in range(length - row)] for row in range(3)]
        drawn = model.generate(prompts, SamplingConfig(new, temperature=1.0, seed=length))
        out[f"{length} and {new}"] = np.array(drawn)
    return out


def _close(weight: float, bias: float, build: Build) -> Outcome:
    """Every token is (1, -1), whose norm is (1, -1): its second channel becomes bias - weight, 2^-10, which the feed-
    forward makes so large that the other id is chosen. Attention adds nothing: its matrices are zero.
    """
    weights = {name: 0 * value for name, value in params.randomise(CLOSE, 0).items()}
    weights["model.embed_tokens.weight"] += np.array([1, -1], np.float32)
    for name in ("model.norm", f"{BLOCK}.input_layernorm", f"{BLOCK}.post_attention_layernorm"):
        weights[f"{name}.weight"] += np.float32(1)
    weights[f"{BLOCK}.post_attention_layernorm.weight"][1] = weight
    weights[f"{BLOCK}.post_attention_layernorm.bias"][1] = bias
    weights[f"{BLOCK}.mlp.up_proj.weight"][0, 1] = 2.0**12
    weights[f"{BLOCK}.mlp.down_proj.weight"][0, 0] = -2
    weights["lm_head.weight"][:2] = np.eye(2)
    model = build(CLOSE, weights)
    chosen = model.forward(np.zeros((1, 3), np.int32)).logits.argmax(-1)
    return {"choice": chosen.astype(np.int32), "tokens": np.array(model.generate([[0, 2]], SamplingConfig(4)))}


EDGES = (
    Edge(
        "eight thousand tokens of one kind",
        ("Long",),
        "a sum in bfloat16 stops growing after 256 equal terms, and a count of 8,287 is 8,256 there",
        _many,
        tiers=("float64", "bfloat16"),
        # measured: at most 0.08, 0.7, 0.9 and 7 (behind a norm, whose gradient is a difference); the rounded count
        # moves the loss by 0.85, chunks summed in 16 bits the head by 3, a narrow table the embedding by 200
        roundings={"loss": 0.3, "head": 1.5, "others": 2.5, "embedding": 16.0},
    ),
    Edge(
        "twelve layers",
        ("Long",),
        "sorted as text, layers 10 and 11 come before layer 2",
        _deep,
    ),
    Edge(
        "caches of several sizes",
        ("Boundary",),
        "a cache whose slots are rounded up must have room for the prompt as it is padded and all new tokens",
        _room,
        slow=True,
    ),
    Edge(
        "a bias of 24 bits",
        ("Close",),
        "a norm adds 1 + 2^-10 to -1: rounded to 16 bits before it is added, nothing is left and another id is chosen",
        functools.partial(_close, 1.0, 1 + 2.0**-10),
        tiers=("float64", "bfloat16"),
    ),
    Edge(
        "a weight of 24 bits",
        ("Close",),
        "a norm multiplies -1 by 1 - 2^-10 and adds 1: the same of its weight",
        functools.partial(_close, 1 - 2.0**-10, 1.0),
        tiers=("float64", "bfloat16"),
    ),
)
