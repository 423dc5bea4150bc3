"""Matrix-multiplication FLOPs in closed form, 2 per multiply-add; elementwise work, norms and softmax are not counted.

`causal=False` counts the full T x T scores, which is what the plain kernels compute; `causal=True` counts the visible
pairs T (T + 1) / 2, which is the work that has to be done.
"""

from common.config import GPTConfig, ModelConfig


def _gpt(config: GPTConfig, batch: int, length: int, causal: bool) -> dict[str, int]:
    tokens, embed, layers = batch * length, config.embed_dim, config.num_layers
    pairs = batch * (length * (length + 1) // 2 if causal else length * length)
    return {
        "attention projections": layers * 2 * tokens * 4 * embed * embed,
        "attention scores and values": layers * 4 * pairs * embed,
        "feed-forward": layers * 2 * tokens * 2 * embed * config.ff_dim,
        "head": 2 * tokens * embed * config.vocab_size,
    }


RULES = {"gpt": _gpt}


def forward(config: ModelConfig, batch: int, length: int, causal: bool = False) -> dict[str, int]:
    """FLOPs of one forward pass over `batch` sequences of `length` tokens, by component."""
    return RULES[config.family](config, batch, length, causal)


def training(config: ModelConfig, batch: int, length: int, causal: bool = False) -> dict[str, int]:
    """FLOPs of forward and backward: every matmul again for its input and for its weight, so three times forward."""
    return {name: 3 * flops for name, flops in forward(config, batch, length, causal).items()}
