"""The registry of cases. A case is data: what is computed, from which recipe, and what is looked at.

Once a case is registered, its test vectors, its parity tests in every tier and its gradient checks follow without
another line. To add one, add an entry to `CASES`.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from common import params
from common.backend import IGNORED
from common.config import GPTConfig, ModelConfig, SamplingConfig, TrainConfig
from common.errors import unknown


@dataclass(frozen=True)
class Case:
    """One definition under test: the submodule at `path` of a model ("" is the whole model), with its fixture.

    All weights are random (`params.randomise`), inputs are numbers that bfloat16 represents exactly. `full_gradient`
    asks the oracle for every element of the gradient (a complex step each: small models only); without it the oracle
    certifies one random direction per tensor. `train_steps` and `sampling` extend a model case.
    """

    name: str
    what: str
    config: ModelConfig
    path: str = ""
    batch: int = 2
    length: int = 11
    seed: int = 0
    full_gradient: bool = True
    train_steps: int = 0
    sampling: tuple[SamplingConfig, ...] = ()

    @property
    def train(self) -> TrainConfig:
        """The optimizer of a model case: every term matters (decay, clipping, warm-up)."""
        return TrainConfig(
            steps=10, warmup_steps=2, learning_rate=1e-2, initial_rate=1e-3, clip_norm=0.5, seed=self.seed
        )

    def weights(self) -> dict[str, np.ndarray]:
        """float32 [by the parameter table], every one random."""
        return params.randomise(self.config, self.seed)

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids, targets) int32 [B, T]; the first row ignores its first labels, so rows count unequally."""
        shape = (self.batch, self.length + 1)
        uniform = np.abs(params.draw(self.seed, f"cases/{self.name}/ids", shape))
        ids = ((uniform * 1e6).astype(np.int64) % self.config.vocab_size).astype(np.int32)
        targets = ids[:, 1:].copy()
        targets[0, : self.length // 3] = IGNORED
        return ids[:, :-1], targets

    def signals(self) -> tuple[np.ndarray, np.ndarray]:
        """(input, cotangent) float32 [B, T, E] of a component; the last row has almost no variance."""
        shape = (self.batch, self.length, self.config.embed_dim)
        x, cotangent = (params.draw(self.seed, f"cases/{self.name}/{which}", shape) for which in ("x", "cotangent"))
        x[-1, -1] = 1.0 + 1e-2 * x[-1, -1]
        return tuple(array.astype(ml_dtypes.bfloat16).astype(np.float32) for array in (x, cotangent))

    def prompts(self) -> list[list[int]]:
        """Prompts of unequal length for a model case."""
        ids, _ = self.tokens()
        return [ids[row, : 3 + 2 * row].tolist() for row in range(self.batch)]


_TINY = GPTConfig(19, 16, 8, 2, 2, ff_dim=20)
_WIDE = GPTConfig(211, 300, 48, 3, 3, norm_eps=1e-4)
_SAMPLING = (
    SamplingConfig(8),
    SamplingConfig(8, temperature=0.8, top_k=7, seed=11),
    SamplingConfig(8, temperature=1.3, top_p=0.7, seed=12),
)

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("layer_norm", "layer normalisation", _TINY.with_(norm_eps=1e-3), "model.norm"),
        Case("mlp", "feed-forward with tanh GELU", _TINY, "model.layers.1.mlp"),
        Case("mlp_exact_gelu", "feed-forward with exact GELU", _TINY.with_(activation="gelu"), "model.layers.1.mlp"),
        Case("attention", "causal multi-head attention", _TINY, "model.layers.0.self_attn"),
        Case(
            "attention_no_bias",
            "causal multi-head attention without q, k, v biases",
            _TINY.with_(qkv_bias=False),
            "model.layers.0.self_attn",
        ),
        Case("block", "pre-norm block", _TINY, "model.layers.1"),
        Case("gpt", "GPT with a tied head", _TINY, train_steps=2, sampling=_SAMPLING),
        Case(
            "gpt_untied",
            "GPT with a head of its own, exact GELU, no q, k, v biases",
            _TINY.with_(tie_embeddings=False, qkv_bias=False, activation="gelu"),
            sampling=_SAMPLING,
        ),
        Case(
            "gpt_dropout",
            "GPT with three dropout rates, masks from the shared generator",
            _TINY.with_(dropout_embed=0.1, dropout_attn=0.3, dropout_shortcut=0.2),
            train_steps=1,
        ),
        Case(
            "gpt_wide",
            "GPT with 16-wide heads, an odd vocabulary and positions past 256",
            _WIDE,
            length=280,
            full_gradient=False,
        ),
    )
}


def case(name: str) -> Case:
    """The case with that name; unknown names are answered with near matches."""
    if name not in CASES:
        raise unknown("case", name, CASES)
    return CASES[name]
