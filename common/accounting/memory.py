"""Bytes in closed form."""

from common import params
from common.config import ModelConfig

ITEM_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}


def weights(config: ModelConfig, dtype: str = "float32") -> int:
    """Bytes of all parameters; a tied head counts once."""
    return params.count(config) * ITEM_BYTES[dtype]


def training(config: ModelConfig, dtype: str = "float32") -> int:
    """Bytes of parameters, gradients and AdamW's two averages."""
    return 4 * weights(config, dtype)


def kv_cache(config: ModelConfig, batch: int, slots: int, dtype: str = "float32") -> int:
    """Bytes of the keys and values of all layers, without the slots' positions."""
    return 2 * config.num_layers * batch * slots * config.embed_dim * ITEM_BYTES[dtype]
