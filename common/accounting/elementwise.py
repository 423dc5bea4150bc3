"""Elementwise FLOPs in closed form: what matmul FLOPs leave out, and never added to them.

One for every number that an operation of the oracle's formulas makes or sums up (+ - * / max, exp, log, tanh, erf,
sqrt, power); choosing by a mask, comparing and picking rows are free. XLA's own figure contains such work.
"""

from collections.abc import Callable, Mapping

from common import params
from common.accounting.parts import rules_under
from common.config import ModelConfig
from common.params import Parameter

NORMS, SOFTMAX, ACTIVATION, SUMS = "norms", "softmax", "activation", "biases and residual sums"
ACTIVATION_COST = {"gelu_tanh": 8, "gelu": 5}  # of one number
SOFTMAX_COST = 6  # of one score: divide by sqrt(D), maximum, subtract, exp, sum, divide
ADAMW_COST, CLIP_COST = 15, 3  # of one parameter: the averages 7, decay 1, the step 7; square, sum, scale


def _nothing(config: ModelConfig, tokens: int, pairs: int, own: Mapping[str, Parameter]) -> dict[str, int]:
    return {}


def _norm(config: ModelConfig, tokens: int, pairs: int, own: Mapping[str, Parameter]) -> dict[str, int]:
    """Sum, subtract, square, sum, divide, scale, shift for every number; two divisions, + eps and a root a token."""
    return {NORMS: tokens * (7 * own["weight"].size + 4)}


def _bias(config: ModelConfig, tokens: int, pairs: int, own: Mapping[str, Parameter]) -> dict[str, int]:
    return {SUMS: tokens * own["bias"].size} if "bias" in own else {}


def _softmax(config: ModelConfig, tokens: int, pairs: int, own: Mapping[str, Parameter]) -> dict[str, int]:
    return {SOFTMAX: SOFTMAX_COST * pairs * config.num_heads}


def _activation(config: ModelConfig, tokens: int, pairs: int, own: Mapping[str, Parameter]) -> dict[str, int]:
    return {ACTIVATION: ACTIVATION_COST[config.activation] * tokens * config.ff_dim}


def _sums(count: int) -> Callable:
    return lambda config, tokens, pairs, own: {SUMS: count * tokens * config.embed_dim}


RULES: dict[str, dict[str, Callable]] = {
    "gpt": {
        "": _nothing,
        "model": _sums(1),
        "embed_tokens": _nothing,
        "embed_positions": _nothing,
        "layers": _nothing,
        "layers.#": _sums(2),
        "input_layernorm": _norm,
        "self_attn": _softmax,
        "q_proj": _bias,
        "k_proj": _bias,
        "v_proj": _bias,
        "o_proj": _bias,
        "post_attention_layernorm": _norm,
        "mlp": _activation,
        "up_proj": _bias,
        "down_proj": _bias,
        "norm": _norm,
        "lm_head": _bias,
    }
}


def forward(config: ModelConfig, batch: int, length: int, path: str = "") -> dict[str, int]:
    """Elementwise FLOPs of one forward pass without dropout, by component, with full T x T scores."""
    found: dict[str, int] = {}
    for _, rule, own in rules_under(config, path, RULES, "common/accounting/elementwise.py"):
        for component, flops in rule(config, batch * length, batch * length * length, own).items():
            found[component] = found.get(component, 0) + flops
    return found


def loss(config: ModelConfig, batch: int, length: int) -> int:
    """Of the cross-entropy of [B, T, V] logits: maximum, subtract, exp and sum for every logit, 4 more a token."""
    return batch * length * (4 * config.vocab_size + 4)


def optimizer(config: ModelConfig) -> int:
    """Of one AdamW step on all parameters, measuring and clipping the gradient's norm included."""
    return (ADAMW_COST + CLIP_COST) * params.count(config)
