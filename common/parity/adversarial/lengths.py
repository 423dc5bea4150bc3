"""Lengths, positions, slots and ids at their limits, and the smallest models."""

import numpy as np

from common import params
from common.config import GPTConfig, SamplingConfig
from common.parity.adversarial.edge import Build, Edge, Outcome, flat, refused
from common.variants import GatedDeltaNet, GroupedQuery, MultiHead

CONFIG = GPTConfig(7, 5, 4, 1, 2, ff_dim=4, tie_embeddings=False, qkv_bias=False)
LONG = GPTConfig(5, 300, 4, 1, 2, ff_dim=4, qkv_bias=False)
ONE_HEAD = CONFIG.with_(num_heads=1)
NARROW_HEADS = CONFIG.with_(num_heads=4)
WINDOWED = CONFIG.with_(attention=GroupedQuery(1, window=3), positions="sinusoidal")
_DELTA = GatedDeltaNet(num_key_heads=1, num_value_heads=1, key_dim=2, value_dim=2, kernel=2)
ALL_CACHES = WINDOWED.with_(num_layers=3, attention=(MultiHead(), GroupedQuery(1, window=3), _DELTA))
SMALLEST = GPTConfig(1, 1, 1, 1, 1, ff_dim=1)
IDS = np.array([[3, 6, 0, 2, 5], [1, 1, 4, 6, 2]], np.int32)
TARGETS = np.array([[6, 0, 2, 5, 1], [1, 4, 6, 2, 0]], np.int32)


def weights(config: GPTConfig = CONFIG) -> dict[str, np.ndarray]:
    """Every parameter random."""
    return params.randomise(config, 0)


def _whole(config: GPTConfig, ids: np.ndarray, targets: np.ndarray, build: Build) -> Outcome:
    """Logits, loss and all gradients."""
    model = build(config, weights(config))
    gradients = model.gradients(ids, targets)
    return {"logits": model.forward(ids).logits, "loss": gradients.value, "gradients": flat(config, gradients.grads)}


def _smallest(build: Build) -> Outcome:
    """One token in the vocabulary, one position, one channel: nothing is uncertain."""
    model = build(SMALLEST, weights(SMALLEST))
    one = np.zeros((1, 1), np.int32)
    gradients = model.gradients(one, one)
    tokens = model.generate([[0]], SamplingConfig(1))
    return {"loss": gradients.value, "gradients": flat(SMALLEST, gradients.grads), "tokens": np.array(tokens)}


def _no_rows(build: Build) -> Outcome:
    model = build(CONFIG, weights())
    none = np.zeros((0, 5), np.int32)
    gradients = model.gradients(none, none)
    return {
        "logits": model.forward(none).logits,
        "loss": gradients.value,
        "gradients": flat(CONFIG, gradients.grads),
        "generate": refused(lambda: model.generate([], SamplingConfig(1))),
    }


def _last_positions(build: Build) -> Outcome:
    """The last positions of the context, without those before them."""
    positions = np.array([[255, 256, 257, 298, 299]])
    found = build(LONG, weights(LONG)).forward(np.array([[0, 1, 2, 3, 4]]), positions)
    return {"logits": found.logits}


def _beyond(build: Build) -> Outcome:
    model = build(CONFIG, weights())
    two = IDS[:, :2]
    return {
        "a position past the context": refused(lambda: model.forward(two, np.array([[0, 1], [4, 5]]))),
        "a position below -1": refused(lambda: model.forward(two, np.array([[0, 1], [-2, 0]]))),
        "positions of another shape": refused(lambda: model.forward(two, np.array([[0, 1]]))),
        "a text longer than the context": refused(lambda: model.forward(np.zeros((1, 6), np.int32))),
        "no tokens": refused(lambda: model.forward(np.zeros((2, 0), np.int32))),
        "one row without a batch": refused(lambda: model.forward(IDS[0])),
        "rows of unequal length": refused(lambda: model.forward([[1, 2], [3]])),
        "a prompt that outgrows the context": refused(lambda: model.generate([[1, 2, 3]], SamplingConfig(4))),
        "an empty prompt": refused(lambda: model.generate([[1], []], SamplingConfig(1))),
    }


def _ids_beyond(build: Build) -> Outcome:
    model = build(CONFIG, weights())
    return {
        "the last id": model.forward(np.full((1, 2), 6, np.int32)).logits,
        "an id past it": refused(lambda: model.forward(np.array([[0, 7]]))),
        "an id below 0": refused(lambda: model.forward(np.array([[-1, 0]]))),
        "an id that is no whole number": refused(lambda: model.forward(np.array([[0.0, 1.0]]))),
    }


def _full_cache(build: Build) -> Outcome:
    """The cache takes its last slot; more is refused, and it goes on as if nothing had been asked."""
    model = build(CONFIG, weights())
    cache = model.new_cache(2, 4)
    out: Outcome = {"first": model.extend(cache, IDS[:, :3])}
    out["two for one slot"] = refused(lambda: model.extend(cache, IDS[:, 3:5]))
    out["other rows"] = refused(lambda: model.extend(cache, IDS[:1, 3:4]))
    out["last slot"] = model.extend(cache, IDS[:, 3:4])
    out["one past it"] = refused(lambda: model.extend(cache, IDS[:, 4:5]))
    out["slots in use"] = np.array(cache.used)
    return out


def _wrong_caches(build: Build) -> Outcome:
    """A cache of another config, and one that others made, are refused and stay as they are."""
    model, other = build(CONFIG, weights()), build(ONE_HEAD, weights(ONE_HEAD))
    cache = model.new_cache(2, 4)
    first = model.extend(cache, IDS[:, :1])
    out: Outcome = {
        "another config": refused(lambda: other.extend(cache, IDS[:, 1:2])),
        "a reset by another config": refused(lambda: other.reset(cache)),
        "no rows": refused(lambda: model.new_cache(0, 4)),
        "half a slot": refused(lambda: model.new_cache(2, 3.5)),
    }
    out["logits"] = np.concatenate([first, model.extend(cache, IDS[:, 1:2])], 1)
    model.reset(cache)
    out["after a reset"] = model.extend(cache, IDS[:, 1:2])
    cache.maker = "somebody else in float16"
    told = refused(lambda: model.extend(cache, IDS[:, 1:2]))
    out["another maker"], out["slots in use"] = told.partition(";")[0], np.array(cache.used)  # behind it: who refuses
    return out


def _jumping_positions(build: Build) -> Outcome:
    """A window of three in a ring of three slots, and in two slots, which are no ring."""
    model = build(WINDOWED, weights(WINDOWED))
    out: Outcome = {}
    for slots, positions in ((4, (0, 2, 4)), (2, (0, 2))):
        cache = model.new_cache(2, slots)
        parts = [model.extend(cache, IDS[:, p : p + 1], np.full((2, 1), p)) for p in positions]
        out[f"{slots} slots"] = np.concatenate(parts, 1)
        out[f"back in {slots} slots"] = refused(lambda cache=cache: model.extend(cache, IDS[:, :1], np.full((2, 1), 1)))
    return out


def _reset_cache(build: Build) -> Outcome:
    """Slots, a ring and states that are full of another text, which later positions would see; then as many tokens."""
    model = build(ALL_CACHES, weights(ALL_CACHES))
    cache = model.new_cache(2, 4)
    for at in range(4):
        model.extend(cache, IDS[:, at : at + 1], np.full((2, 1), at))
    model.reset(cache)
    parts = [model.extend(cache, IDS[:, at : at + 1], np.full((2, 1), at)) for at in (3, 4)]
    return {"logits": np.concatenate(parts, 1), "slots in use": np.array(cache.used)}


def _filled_at_once(build: Build) -> Outcome:
    model = build(CONFIG, weights())
    cache = model.new_cache(2, 5)
    out: Outcome = {"logits": model.extend(cache, IDS)}
    out["beyond the context"] = refused(lambda: model.extend(model.new_cache(2, 9), np.zeros((2, 6), np.int32)))
    return out


def _unequal_rows(build: Build) -> Outcome:
    """Padding on the left and on the right; the logits of real tokens are those of the row alone."""
    model = build(CONFIG, weights())
    left = model.forward(np.array([[0, 3, 6], [1, 1, 4]]), np.array([[-1, 0, 1], [0, 1, 2]])).logits
    right = model.forward(np.array([[3, 6, 0], [1, 1, 4]]), np.array([[0, 1, -1], [0, 1, 2]])).logits
    alone = model.forward(np.array([[3, 6]])).logits
    tokens = model.generate([[3, 6], [1], [2, 5, 0]], SamplingConfig(3))
    return {
        "left": np.concatenate([left[0, 1:], left[1]]),
        "right": np.concatenate([right[0, :2], right[1]]),
        "left minus alone": np.round(left[0, 1:] - alone[0], 9),
        "right minus alone": np.round(right[0, :2] - alone[0], 9),
        "tokens": np.array(tokens),
    }


EDGES = (
    Edge(
        "one position",
        ("Boundary",),
        "T = 1: a query sees itself with weight 1, whatever the score, so queries and keys have no gradient",
        lambda build: _whole(CONFIG, IDS[:, :1], TARGETS[:, :1], build),
    ),
    Edge(
        "the whole context",
        ("Boundary",),
        "T = context_length: the last row of the position table is read",
        lambda build: _whole(CONFIG, IDS, TARGETS, build),
    ),
    Edge(
        "positions at the end",
        ("LongPosition", "Boundary"),
        "positions past 256, up to the last, without those before them",
        _last_positions,
    ),
    Edge(
        "beyond the context",
        ("Boundary",),
        "JAX clamps an index out of range, PyTorch raises: both must refuse on the host, in one sentence",
        _beyond,
        result="raises",
    ),
    Edge(
        "ids beyond the vocabulary",
        ("Boundary",),
        "the last id is valid; JAX would read the last row for the one after it",
        _ids_beyond,
        result="raises",
    ),
    Edge(
        "the last slot of the cache",
        ("Boundary",),
        "a write past a static cache shifts back and overwrites silently inside jit: it is refused, and the cache stays"
        " usable",
        _full_cache,
        result="raises",
    ),
    Edge(
        "a cache of another model",
        ("Boundary",),
        "numbers of another precision or of other layers may fit by chance: none but its maker goes on with a cache",
        _wrong_caches,
        result="raises",
    ),
    Edge(
        "positions that jump",
        ("Boundary",),
        "in a ring with fewer slots than the window visible keys overwrite each other; positions that go back find"
        " theirs overwritten: such a cache is no ring, such positions are refused",
        _jumping_positions,
        result="raises",
    ),
    Edge(
        "a cache that is reset",
        ("Boundary",),
        "what a reset leaves behind (positions, counters, states) is part of the next text",
        _reset_cache,
    ),
    Edge("a cache filled at once", ("Boundary",), "as many tokens as slots; no more than the context", _filled_at_once),
    Edge(
        "one head",
        ("Degenerate",),
        "heads and model have one width",
        lambda b: _whole(ONE_HEAD, IDS, TARGETS, b),
        slow=True,
    ),
    Edge(
        "heads of width one",
        ("Degenerate",),
        "scores are products of two numbers, divided by 1",
        lambda build: _whole(NARROW_HEADS, IDS, TARGETS, build),
        slow=True,
    ),
    Edge(
        "the smallest model",
        ("Degenerate",),
        "one id, one position, one channel: the loss and all gradients are exactly 0",
        _smallest,
    ),
    Edge(
        "a batch of no rows",
        ("Degenerate", "Policy"),
        "no rows give no logits, loss 0 and gradients 0, not NaN; there is nothing to generate from",
        _no_rows,
        result="policy",
    ),
    Edge(
        "rows of unequal length",
        ("Padded",),
        "padding on either side, and prompts of unequal length, change nothing in a row",
        _unequal_rows,
    ),
)
