"""Elementwise FLOPs in closed form: what matmul FLOPs leave out, and never added to them.

One for every number that an operation of the oracle's formulas makes or sums up (+ - * / max, exp, log, tanh, erf,
sqrt, power); choosing by a mask, comparing and picking rows are free. XLA's own figure contains such work.
"""

from collections.abc import Callable, Mapping

from common import params
from common.accounting.parts import entry, kind, low_rank, rules_under, times
from common.accounting.work import ADAPTERS, NORMS, SUMS, Work
from common.adapters import PARTS
from common.config import ModelConfig
from common.params import Parameter

ADAMW_COST, CLIP_COST = 15, 3  # of one parameter: the averages 7, decay 1, the step 7; square, sum, scale


def _nothing(config: ModelConfig, path: str, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    return {}


def _layer_norm(config: ModelConfig, path: str, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    """Sum, subtract, square, sum, divide, scale, shift for every number; two divisions, + eps and a root a token."""
    return {NORMS: work.tokens * (7 * own["weight"].size + 4)}


def _rms_norm(config: ModelConfig, path: str, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    """Square, sum, divide, scale for every number; a division, + eps and a root for every norm that is taken."""
    return {NORMS: work.tokens * times(config, path) * (4 * own["weight"].size + 3)}


def _bias(config: ModelConfig, path: str, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    return {SUMS: work.tokens * own["bias"].size} if "bias" in own else {}


def _low_rank(config: ModelConfig, path: str, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    """B's output is scaled and added. DoRA also scales, adds, squares and sums up a matrix once a call, takes roots and
    divides by them; of every token it takes the bias away, weighs the two parts and adds them."""
    part = kind(path.rpartition(".")[0])
    changed, (out_dim, in_dim), _ = low_rank(config, path)
    if part == PARTS[2]:
        biased = f"{changed}.bias" in params.table(config)
        return {ADAPTERS: out_dim * (4 * in_dim + 3) + work.tokens * out_dim * (3 + biased)}
    return {ADAPTERS: 2 * work.tokens * out_dim} if part == PARTS[1] else {}


def _entry(config: ModelConfig, path: str, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    return entry(config, path).elements(config, work)


def _model(config: ModelConfig, path: str, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    """Positions are added to the embeddings, where a model has any; pooling adds up a row and divides once."""
    sums = (config.positions != "none") * work.tokens + (config.pooling == "mean") * (work.tokens + work.batch)
    return {SUMS: sums * config.embed_dim} if sums else {}


def _block(config: ModelConfig, path: str, work: Work, own: Mapping[str, Parameter]) -> dict[str, int]:
    return {SUMS: 2 * work.tokens * config.embed_dim}


RULES: dict[str, Callable] = {
    **dict.fromkeys(("", "layers", "embedding", "experts", "shared_expert", "router", *PARTS), _nothing),
    "lora": _low_rank,
    "model": _model,
    "layers.#": _block,
    "self_attn": _entry,
    "mlp": _entry,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "linear": _bias,
}


def forward(config: ModelConfig, batch: int, length: int, path: str = "") -> dict[str, int]:
    """Elementwise FLOPs of one forward pass without dropout, by component, with full T x T scores."""
    found: dict[str, int] = {}
    work = Work(batch, length, length, batch * length)
    for module, rule, own in rules_under(config, path, RULES, "common/accounting/elementwise.py"):
        for component, flops in rule(config, module, work, own).items():
            found[component] = found.get(component, 0) + flops
    return found


def loss(config: ModelConfig, batch: int, length: int) -> int:
    """Of the cross-entropy of [B, T, V] logits: maximum, subtract, exp and sum for every logit, 4 more a token."""
    return batch * length * (4 * config.outputs + 4)


def optimizer(config: ModelConfig) -> int:
    """Of one AdamW step on all parameters, measuring and clipping the gradient's norm included."""
    return (ADAMW_COST + CLIP_COST) * params.count(config)
