"""What a model costs, by context length and batch, from its config alone: nothing is built, nothing is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common import params
from common.accounting import activations, flops, memory
from common.accounting.parts import decoding, inside
from common.config import Execution, ModelConfig
from common.errors import UserError
from common.variants import MultiHead
from common.variants.multi_head import DROPPING, KERNELS

LAYERS, ROWS = 1024, 1000  # more than that is not estimated in one go


@dataclass(frozen=True)
class Estimate:
    """One model at one context length and batch, in numbers, matrix FLOPs and bytes.

    `active` are the parameters that one token meets. `forward` and `training` (with the backward pass) are FLOPs of the
    whole batch, `decode` those of one more token a row on a full cache, in the form its layers name (`Part.decodes`);
    "causal" ones count visible pairs alone. `weights` are bytes of the parameters as an execution keeps them, `state`
    with gradients and AdamW's averages, `kept` those of the activations between the passes (None: no closed form),
    `cache` those of all layers' caches, `states` of these the ones that no context lengthens, and `moved` what a
    decoding step must read and write (`memory.decode_bytes`).
    """

    name: str
    context: int
    batch: int
    parameters: int
    active: int
    forward: int
    forward_causal: int
    training: int
    training_causal: int
    decode: int
    decode_causal: int
    weights: int
    state: int
    kept: int | None
    cache: int
    states: int
    moved: int


def estimate(
    name: str, config: ModelConfig, context: int, batch: int, dtype: str = "float32", attention: str = "plain"
) -> Estimate:
    """The costs of one model executed in `dtype`; `attention` is the kernel of multi-head attention."""
    precision = Execution(dtype, attention=attention).precision
    _check(name, config, attention)
    config = reaching(config, context)
    step = {"batch": batch, "length": context}
    return Estimate(
        name=name,
        context=context,
        batch=batch,
        parameters=parameters(config),
        active=active(config),
        forward=flops.flops_full(config, "forward", **step),
        forward_causal=flops.flops_causal(config, "forward", **step),
        training=flops.flops_full(config, "train", **step, attention=attention),
        training_causal=flops.flops_causal(config, "train", **step, attention=attention),
        decode=flops.flops_full(config, "decode", **step, forms=decoding(config)),
        decode_causal=flops.flops_causal(config, "decode", **step, forms=decoding(config)),
        weights=memory.weights(config, precision.param),
        state=memory.training(config, precision.param),
        kept=_kept(config, batch, context, dtype, attention),
        cache=cache_bytes(config, batch, context, dtype),
        states=memory.states(config, batch, dtype),
        moved=sum(memory.decode_bytes(config, batch, context, dtype).values()),
    )


def grid(
    models: Mapping[str, ModelConfig],
    contexts: Sequence[int],
    batches: Sequence[int],
    dtype: str = "float32",
    attention: str = "plain",
) -> list[Estimate]:
    """Every model at every context and batch: by batch, then by context, then by model."""
    if (rows := len(models) * len(contexts) * len(batches)) > ROWS:
        raise UserError(f"These are {rows:,} estimates; up to {ROWS:,} are made at once, so ask for fewer sizes.")
    return [
        estimate(name, config, context, batch, dtype, attention)
        for batch in batches
        for context in contexts
        for name, config in models.items()
    ]


def reaching(config: ModelConfig, context: int) -> ModelConfig:
    """The same model with room for that context: learned positions then have as many rows."""
    return config if context <= config.context_length else config.with_(context_length=context)


def parameters(config: ModelConfig, path: str = "") -> int:
    """Parameters of the module at `path`, or of the whole model."""
    return sum(p.size for name, p in params.table(config).items() if inside(path, name))


def active(config: ModelConfig, path: str = "") -> int:
    """Of these the ones that one token meets: of a layer's experts those that it takes."""
    found = 0
    for name, parameter in params.table(config).items():
        if inside(path, name):
            experts = config.feed_forward_of(int(name.split(".")[2])) if parameter.part == "experts" else None
            found += parameter.size if experts is None else parameter.size // experts.num_experts * experts.top_k
    return found


def cache_bytes(config: ModelConfig, batch: int, slots: int, dtype: str = "float32") -> int:
    """Bytes of the caches of all layers, without positions: keys and values are kept as they are multiplied, states
    that every token changes in the precision of reductions.
    """
    return memory.kv_cache(config, batch, slots, dtype)


def saving(before: int, after: int) -> tuple[float, float]:
    """(how many times less, the share that is saved)."""
    return (before / after if after else float("inf")), 1 - after / before


def match_dense(width: int, hidden: int, experts: int, matrices: int = 3) -> int:
    """The hidden size at which `experts` experts and their router have as many parameters as one feed-forward layer of
    `hidden`, as nearly as a whole number can; `matrices` are 3 of a gated layer and 2 of a plain one, without biases.
    """
    router = width * experts
    found = round((matrices * width * hidden - router) / (experts * matrices * width))
    if found < 1:
        raise UserError(f"{experts} experts cannot be as small as one layer of {hidden}: nothing is left for each.")
    return found


def _check(name: str, config: ModelConfig, attention: str) -> None:
    if config.num_layers > LAYERS:
        raise UserError(f"{name} has {config.num_layers:,} layers; up to {LAYERS:,} are estimated.")
    if attention not in KERNELS:
        raise UserError(
            f"What the attention kernel {attention!r} keeps has no closed form; {', '.join(KERNELS)} have one."
        )
    for entry in config.attention if attention != "plain" else ():
        if not isinstance(entry, MultiHead):
            raise UserError(
                f"{name} has {entry.kind!r} attention, which has no kernel {attention!r}; only multi-head attention has"
                " kernels beside 'plain'."
            )
    if attention not in DROPPING and config.dropout_attn > 0:
        raise UserError(
            f"{name} cannot be trained with the attention kernel {attention!r}, which draws no dropout on the weights:"
            f" set dropout_attn=0, or take {' or '.join(DROPPING)}."
        )


def _kept(config: ModelConfig, batch: int, context: int, dtype: str, attention: str) -> int | None:
    """Bytes between the passes of a training step, or None where a kind of layer does not say what it keeps."""
    try:
        return sum(activations.saved(config, batch, context, dtype, attention, dropout=True).values())
    except NotImplementedError:
        return None
