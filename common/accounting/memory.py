"""Bytes in closed form: parameters, gradients, optimizer, cache, and what a decode step has to move.

Activations are in `activations.py`. Where `dtype` is a number format, it is that of the tensors in question; where it
is an execution's, `PRECISIONS` says what is kept in which format.
"""

import math
from collections.abc import Callable

from common import nf4, params
from common.accounting.parts import entry, kind
from common.config import PRECISIONS, ModelConfig, TrainConfig
from common.parameter import is_matrix
from common.variants import Attention

ITEM_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}
LOOKED_UP = ("embed_tokens", "embed_positions")  # tables of which only some rows are read


def weights(config: ModelConfig, dtype: str = "float32") -> int:
    """Bytes of all parameters kept in `dtype`; a tied head counts once."""
    return params.count(config) * ITEM_BYTES[dtype]


def matrix(size: int, dtype: str) -> int:
    """Bytes of a matrix of `size` weights in a number format, or in 4 bits: two codes a byte and a float32 for every 64
    ("nf4"), or a byte for every 64, a float32 for every 256 of these bytes, and one more ("nf4_double")."""
    if dtype in ITEM_BYTES:
        return size * ITEM_BYTES[dtype]
    codes, blocks = math.ceil(size / 2), math.ceil(size / nf4.BLOCK)
    return codes + (4 * blocks if dtype == "nf4" else blocks + 4 * math.ceil(blocks / nf4.GROUP) + 4)


def base(config: ModelConfig, dtype: str = "float32", base: str = "plain") -> int:
    """Bytes of all parameters, those that a base in 4 bits keeps so in them, the others in `dtype`."""
    chosen = () if base == "plain" else nf4.names(config)
    sizes = {name: one.size for name, one in params.table(config).items()}
    return sum(matrix(size, base if name in chosen else dtype) for name, size in sizes.items())


def gradients(config: ModelConfig, dtype: str = "float32", train: TrainConfig = params.EVERYTHING) -> int:
    """Bytes of one gradient for every parameter that a run trains, in the parameters' format."""
    return learning(config, train) * ITEM_BYTES[dtype]


def learning(config: ModelConfig, train: TrainConfig = params.EVERYTHING) -> int:
    """How many numbers a run trains."""
    chosen = params.trained(config, train)
    return sum(one.size for name, one in params.table(config).items() if chosen[name])


def optimizer_slots(config: ModelConfig, dtype: str = "float32", train: TrainConfig = params.EVERYTHING) -> int:
    """Bytes of what the optimizer of a run remembers, in the parameters' format: AdamW's two averages, or Muon's one of
    the matrices that it moves."""
    return sum(map(math.prod, params.slots(config, train).values())) * ITEM_BYTES[dtype]


def training(config: ModelConfig, dtype: str = "float32", train: TrainConfig = params.EVERYTHING) -> int:
    """Bytes of parameters, and of gradients and averages of those that a run trains: for each of them 16 with AdamW in
    float32."""
    return weights(config, dtype) + gradients(config, dtype, train) + optimizer_slots(config, dtype, train)


def kv_cache(config: ModelConfig, batch: int, slots: int, dtype: str = "float32") -> int:
    """Bytes of the keys and values of all layers, or what stands for them, without the slots' positions. `dtype` is the
    execution's: states are kept in its precision of reductions."""
    return _held(config, dtype, batch, lambda layer: layer.cached_numbers(config, batch, slots))


def states(config: ModelConfig, batch: int, dtype: str = "float32") -> int:
    """Bytes of those of them that are states: what every token changes, and no context lengthens."""
    layers = map(config.attention_of, range(config.num_layers))
    return sum(layer.state_numbers(config, batch) for layer in layers) * ITEM_BYTES[PRECISIONS[dtype].reduce]


def _held(config: ModelConfig, dtype: str, batch: int, numbers: Callable[[Attention], int]) -> int:
    layers = [config.attention_of(layer) for layer in range(config.num_layers)]
    others = sum(numbers(layer) - layer.state_numbers(config, batch) for layer in layers)
    return others * ITEM_BYTES[PRECISIONS[dtype].compute] + states(config, batch, dtype)


def decode_bytes(config: ModelConfig, batch: int, slots: int, dtype: str = "float32") -> dict[str, int]:
    """Bytes that one decode step of an execution in `dtype` must move: "weights read", "cache read", "cache written".

    Every weight is read once for all rows, matrices in the format of compute; of a table whose rows are looked up, one
    row for every row of the batch; of a layer's experts as many as the rows take if each takes others, so at most all.
    A tied head reads the whole token table once, the looked-up rows among it. The cache is read in all its `slots`,
    which is what the kernels do (give the visible ones for the least possible), and written in one.
    """
    precision = PRECISIONS[dtype]
    read = 0
    for name, parameter in params.table(config).items():
        module, size = name.rpartition(".")[0], parameter.size
        if kind(module) in LOOKED_UP and not (config.tied and kind(module) == "embed_tokens"):
            size = min(batch, parameter.shape[0]) * parameter.shape[1]
        elif parameter.part == "experts":
            layer = entry(config, module.rpartition(".")[0])
            size = size // layer.num_experts * min(layer.num_experts, batch * layer.top_k)
        read += size * ITEM_BYTES[precision.compute if is_matrix(name, len(parameter.shape)) else precision.param]
    return {
        "weights read": read,
        "cache read": _held(config, dtype, batch, lambda layer: layer.read_numbers(config, batch, slots)),
        "cache written": kv_cache(config, batch, 1, dtype),
    }
