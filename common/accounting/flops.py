"""Matrix-multiplication FLOPs in closed form, 2 per multiply-add; elementwise work is counted apart (`elementwise.py`).

Every count exists twice. `causal=False` ("full") is what the kernels compute: all T x T scores, all slots of a cache.
`causal=True` is the work that has to be done: the visible pairs, T (T + 1) / 2. `flops_full` and `flops_causal` are
their sums; whoever publishes a rate says which one it is. Source: PaLM (Chowdhery et al. 2022), appendix B.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from common.accounting.parts import rules_under
from common.backend import pick
from common.config import ModelConfig
from common.params import Parameter

PROJECTIONS, SCORES, FEED_FORWARD, HEAD = (
    "attention projections",
    "attention scores and values",
    "feed-forward",
    "head",
)
# Forward and backward together, in halves of the forward pass. Backward multiplies once for the input's gradient and
# once for the weight's. A fused kernel kept no scores, so its backward has 5 products for 2: it computes them again.
# Checkpointed blocks keep neither scores nor what they weigh, and multiply for both again.
HALVES = {
    "plain": {},
    "loop": {},
    "blockwise": {},
    "fused": {SCORES: 7},
    "masked": {SCORES: 7},
    "checkpointed": {SCORES: 8},
}


@dataclass(frozen=True)
class Work:
    """What passes through: tokens, (query, key) pairs of one head, and tokens for which the head predicts."""

    tokens: int
    pairs: int
    predicted: int


Rule = Callable[[ModelConfig, Work, Mapping[str, Parameter]], dict[str, int]]


def _nothing(config: ModelConfig, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    """A module without products of its own: a container, a norm, a table whose rows are picked."""
    return {}


def _linear(component: str) -> Rule:
    return lambda config, work, own: {component: 2 * work.tokens * own["weight"].size}


def _scores(config: ModelConfig, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    """q k^T and weights v: 2 D each for every pair and head."""
    return {SCORES: 2 * 2 * work.pairs * config.num_heads * config.head_dim}


def _head(config: ModelConfig, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    return {HEAD: 2 * work.predicted * own["weight"].size}


def _tied_head(config: ModelConfig, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    """A tied head has no parameters of its own, but the whole model multiplies by the token table."""
    return {HEAD: 2 * work.predicted * config.embed_dim * config.vocab_size} if config.tie_embeddings else {}


RULES: dict[str, dict[str, Rule]] = {
    "gpt": {
        "": _tied_head,
        "model": _nothing,
        "embed_tokens": _nothing,
        "embed_positions": _nothing,
        "layers": _nothing,
        "layers.#": _nothing,
        "input_layernorm": _nothing,
        "self_attn": _scores,
        "q_proj": _linear(PROJECTIONS),
        "k_proj": _linear(PROJECTIONS),
        "v_proj": _linear(PROJECTIONS),
        "o_proj": _linear(PROJECTIONS),
        "post_attention_layernorm": _nothing,
        "mlp": _nothing,
        "up_proj": _linear(FEED_FORWARD),
        "down_proj": _linear(FEED_FORWARD),
        "norm": _nothing,
        "lm_head": _head,
    }
}


def _count(config: ModelConfig, path: str, work: Work) -> dict[str, int]:
    found: dict[str, int] = {}
    for _, rule, own in rules_under(config, path, RULES, "common/accounting/flops.py"):
        for component, flops in rule(config, work, own).items():
            found[component] = found.get(component, 0) + flops
    return {name: found[name] for name in sorted(found, key=(PROJECTIONS, SCORES, FEED_FORWARD, HEAD).index)}


def forward(config: ModelConfig, batch: int, length: int, causal: bool = False, path: str = "") -> dict[str, int]:
    """FLOPs of one forward pass over `batch` sequences of `length` tokens, by component; `path` names a submodule."""
    pairs = length * (length + 1) // 2 if causal else length * length
    return _count(config, path, Work(batch * length, batch * pairs, batch * length))


def training(
    config: ModelConfig, batch: int, length: int, causal: bool = False, path: str = "", attention: str = "plain"
) -> dict[str, int]:
    """FLOPs of forward and backward: every product again for its input and for its weight, so three times forward.

    `attention="fused"` is a kernel that computes its scores again on the way back: 3.5 times forward for these;
    "checkpointed" blocks compute attention again, 4 times.
    """
    halves = pick("attention kernel", attention, HALVES)
    parts = forward(config, batch, length, causal, path)
    return {name: halves.get(name, 6) * flops // 2 for name, flops in parts.items()}


def prefill(
    config: ModelConfig, batch: int, length: int, causal: bool = False, slots: int | None = None
) -> dict[str, int]:
    """FLOPs of filling an empty cache with `length` tokens a row; the head predicts at the last position only.

    `slots` is the cache's capacity, all of which the kernels read; None is a cache that is full afterwards.
    """
    pairs = length * (length + 1) // 2 if causal else length * (length if slots is None else slots)
    return _count(config, "", Work(batch * length, batch * pairs, batch))


def decode_step(
    config: ModelConfig, batch: int, slots: int, causal: bool = False, visible: int | None = None
) -> dict[str, int]:
    """FLOPs of one more token a row on a cache of `slots` slots, all of which the kernels read.

    With `causal` only the `visible` ones count, the token's own among them; None is a full cache.
    """
    keys = visible if causal and visible is not None else slots
    return _count(config, "", Work(batch, batch * keys, batch))


TASKS = {"forward": forward, "train": training, "prefill": prefill, "decode": decode_step}


def flops_full(config: ModelConfig, task: str, batch: int, length: int, **options) -> int:
    """All that the kernels compute in one call of a task ("decode": `length` slots); options are those of the task."""
    return sum(pick("task", task, TASKS)(config, batch, length, causal=False, **options).values())


def flops_causal(config: ModelConfig, task: str, batch: int, length: int, **options) -> int:
    """The same with visible pairs only: what a kernel that skips hidden ones would do."""
    return sum(pick("task", task, TASKS)(config, batch, length, causal=True, **options).values())
