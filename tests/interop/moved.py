"""What tests of power share: settings, moved one at a time, which a comparison with another library has to notice."""

from dataclasses import fields

from common.variants.rotary import Rotary

OTHER = {
    "window": lambda keys: keys + 1,
    "softcap": lambda cap: 1.1 * cap,
    "scale": lambda scale: 1.1 * scale,
    "base": lambda base: 1.1 * base,
    "fraction": lambda share: share + 0.1,
    "scaling": lambda scaling: "none",
    "truncate": lambda rounded: not rounded,
    "factor": lambda factor: 1.1 * factor,
    "original": lambda length: 2 * length,
    "low": lambda low: 1.2 * low,
    "high": lambda high: 1.2 * high,
    "fast": lambda turns: turns / 3,
    "slow": lambda turns: turns / 3,
    "attention_factor": lambda factor: 1.1 * factor,
    "top_k": lambda chosen: chosen + 1,
    "routing": lambda routing: "softmax_then_top_k",
    "normalise": lambda divided: not divided,
    "num_groups": lambda groups: groups // 2,
    "top_groups": lambda groups: groups + 1,
    "limit": lambda limit: 1.1 * limit,
    "offset": lambda offset: 1.1 * offset,
}
SHAPES = (  # of parameters, or whether there are any: the others' would not fit
    *("num_kv_heads", "head_dim", "qk_norm", "sinks", "gate", "out_bias", "norm"),
    *("rank", "query_rank", "value_dim", "rotary_dim", "num_key_heads", "num_value_heads", "key_dim", "kernel"),
    *("num_experts", "expert_dim", "router_bias", "choice_bias", "expert_bias", "shared_dim", "shared_gate"),
)


def moved(entry):
    """(name, entry) with one setting moved, of all that are not at their defaults and shape no parameter."""
    for field in fields(entry):
        value = getattr(entry, field.name)
        if isinstance(value, Rotary):
            yield from ((name, entry.with_(**{field.name: other})) for name, other in moved(value))
        elif value != field.default and field.name not in SHAPES:
            yield field.name, entry.with_(**{field.name: OTHER[field.name](value)})
