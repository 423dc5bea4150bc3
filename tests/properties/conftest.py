"""What the property tests share: every registered case, and a small model, each built once so that JAX compiles once.

A property is tried on every model case of `common.cases` (fixture `case`), and those of components on every other one
(fixture `part`). A newly registered case is covered without another line here.
"""

import dataclasses
import functools

import numpy as np
import pytest

from common import backend, params
from common.case import Case
from common.cases import CASES
from common.config import Execution, GPTConfig
from common.variants import GroupedQuery

# Untied, because a tied random model repeats its last token; odd vocabulary; heads of 16; ff_dim not 4 * embed_dim.
SMALL = GPTConfig(61, 24, 32, 2, 2, ff_dim=44, tie_embeddings=False)
DROPOUT = SMALL.with_(dropout_embed=0.1, dropout_attn=0.3, dropout_shortcut=0.2)
RATES = {"dropout_embed": 0.1, "dropout_attn": 0.3}  # of the first two; every other dropout gets 0.2


@functools.cache
def weights_of(config, seed=20):  # a seed whose greedy texts do not repeat themselves
    return params.randomise(config, seed)


@functools.cache
def shared_model(name, config, execution):
    return backend.load(name).build(config, weights_of(config), execution)


@pytest.fixture(scope="session")
def small():
    return SMALL


@pytest.fixture(scope="session")
def with_dropout():
    """The small model with three different rates."""
    return DROPOUT


@pytest.fixture(scope="session")
def model_of():
    """model_of(backend, config, dtype, ...): one shared model, not to be trained."""

    def build(name, config=SMALL, dtype="float64", **execution):
        return shared_model(name, config, Execution(dtype=dtype, **execution))

    return build


@pytest.fixture(scope="session")
def fresh_model():
    """fresh_model(backend, config, dtype, weights): a model of one's own."""

    def build(name, config=SMALL, dtype="float64", weights=None, **execution):
        chosen = weights_of(config) if weights is None else weights
        return backend.load(name).build(config, chosen, Execution(dtype=dtype, **execution))

    return build


@pytest.fixture(scope="session")
def tokens():
    """tokens(batch, length, seed): random ids of the small vocabulary."""

    def draw(*shape, seed=0):
        return np.random.default_rng(seed).integers(0, SMALL.vocab_size, shape).astype(np.int32)

    return draw


@functools.cache
def cached_case_model(name, config, seed, execution):
    return backend.load(name).build(config, params.randomise(config, seed), execution)


@pytest.fixture(scope="session")
def case_model():
    """case_model(backend, case, dtype, rates, ...): one shared model of a case, not to be trained.

    `rates` is "own", "none" or "all", as in `with_rates`.
    """

    def build(name, case, dtype="float64", rates="own", **execution):
        config = with_rates(case.config, rates)
        return cached_case_model(name, config, case.seed, Execution(dtype=dtype, **execution))

    return build


@pytest.fixture(scope="session")
def fresh_case_model():
    """fresh_case_model(backend, case, dtype, rates, weights, ...): a model of a case of one's own."""

    def build(name, case, dtype="float64", rates="own", weights=None, **execution):
        config = with_rates(case.config, rates)
        chosen = params.randomise(config, case.seed) if weights is None else weights
        return backend.load(name).build(config, chosen, Execution(dtype=dtype, **execution))

    return build


def with_rates(config, rates):
    """The config with its own dropout rates, without any, or with all of them: whatever fields it has for them."""
    if rates == "own":
        return config
    fields = [f.name for f in dataclasses.fields(config) if f.name.startswith("dropout")]
    return config.with_(**{field: RATES.get(field, 0.2) if rates == "all" else 0.0 for field in fields})


@pytest.fixture(scope="session")
def late():
    """late(case, rows, length, seed): random ids, and positions that end where the context does."""

    def draw(case, rows, length, seed=0):
        config = case.config
        ids = np.random.default_rng(seed).integers(0, config.vocab_size, (rows, length)).astype(np.int32)
        return ids, np.tile(np.arange(config.context_length - length, config.context_length, dtype=np.int32), (rows, 1))

    return draw


@pytest.fixture(scope="session")
def row_by_row():
    """row_by_row(backend, case): an execution in which no row's rounding depends on other rows. PyTorch's loop over
    experts multiplies the rows of one expert together, and how many these are depends on all.
    """

    def execution(name, case):
        mixed = any(entry.kind == "mixture_of_experts" for entry in case.config.feed_forward)
        return {"experts": "gathered"} if name == "torch" and mixed else {}

    return execution


# every registered model once: cases that only learn otherwise share theirs
MODELS = list({case.config: name for name, case in reversed(CASES.items()) if not case.path}.values())[::-1]
CACHEABLE = [name for name in MODELS if CASES[name].config.cacheable]


@pytest.fixture(params=MODELS, scope="session")
def case(request):
    """Every registered model."""
    return CASES[request.param]


# a cache of what is registered as a component alone: no positions, norms over the width, beside a window
BARE = GroupedQuery(2, head_dim=6, qk_norm="width", gate=True)
UNPLACED = GPTConfig(19, 12, 16, 2, 4, ff_dim=12, attention=(BARE, BARE.with_(window=3)), positions="none")
CAUSAL = {name: CASES[name] for name in CACHEABLE} | {"gpt_unplaced": Case("gpt_unplaced", "", UNPLACED)}


@pytest.fixture(params=CAUSAL, scope="session")
def causal_case(request):
    """Every registered model whose tokens depend on earlier ones alone, and one more for what none of them has."""
    return CAUSAL[request.param]


@pytest.fixture(params=[name for name in MODELS if not CASES[name].special], scope="session")
def plain_case(request):
    """Every registered model that predicts tokens, without adapters."""
    return CASES[request.param]


@pytest.fixture(params=[MODELS[0], *(pytest.param(name, marks=pytest.mark.full) for name in MODELS[1:])])
def costly_case(request):
    """Every registered model, all but the first in the full suite only: for what compiles long."""
    return CASES[request.param]


@pytest.fixture(params=[name for name, case in CASES.items() if case.path], scope="session")
def part(request):
    """Every registered component."""
    return CASES[request.param]


@pytest.fixture(params=["numpy", "torch", "jax"])
def name(request):
    """Every implementation."""
    return request.param


@pytest.fixture(params=["torch", "jax"])
def wing(request):
    """Both wings."""
    return request.param
