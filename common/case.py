"""A case: what is computed, from which recipe, and what is looked at. They are registered in `common/cases.py`."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from common import params
from common.config import ModelConfig, SamplingConfig, TrainConfig
from common.inputs import IGNORED
from common.preference import Pairs, Preference


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
    optimizer: str = "adamw"
    trained: tuple[str, ...] = ()
    preference: Preference | None = None
    sampling: tuple[SamplingConfig, ...] = ()

    @property
    def special(self) -> bool:
        """Whether it does not predict tokens, or trains only some parameters, or learns something else."""
        config = self.config
        return bool(self.preference or self.trained or config.adapters or config.num_labels or not config.cacheable)

    @property
    def train(self) -> TrainConfig:
        """The optimizer of a model case: every term matters (decay, clipping, warm-up)."""
        return TrainConfig(
            steps=10,
            warmup_steps=2,
            learning_rate=1e-2,
            initial_rate=1e-3,
            clip_norm=0.5,
            seed=self.seed,
            optimizer=self.optimizer,
            trained=self.trained,
        )

    def weights(self) -> dict[str, np.ndarray]:
        """float32 [by the parameter table], every one random."""
        return params.randomise(self.config, self.seed)

    def tokens(self) -> tuple[np.ndarray, np.ndarray | Pairs]:
        """(ids, targets) int32 [B, T]; the first row ignores its first labels, so rows count unequally."""
        ids, targets = self.batch_of("cases", "ids", (self.batch, self.length + 1))
        targets[0, : self.length // 3] = IGNORED
        return ids, self.aimed(targets)

    def batch_of(self, purpose: str, what: str | int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(ids, next ids) int32 [..., T] drawn as [..., T + 1]; of a classifier any labels in place of the latter."""
        uniform = np.abs(params.draw(self.seed, f"{purpose}/{self.name}/{what}", shape))
        words = (uniform * 1e6).astype(np.int64)
        ids, last = ((words % size).astype(np.int32) for size in (self.config.vocab_size, self.config.outputs))
        return ids[..., :-1].copy(), last[..., 1:].copy()

    def aimed(self, targets: np.ndarray) -> np.ndarray | Pairs:
        """Targets [..., B, T] as they are, or as those of pairs, with log-probabilities of a reference drawn at random:
        such as untrained models have, about log V a token."""
        if self.preference is None:
            return targets
        counts = (targets != IGNORED).sum(-1)
        each = 1 if self.preference.reduction == "mean" else counts
        noise = 1 + 0.1 * params.draw(self.seed, f"cases/{self.name}/reference", targets.shape[:-1])
        return Pairs(targets, -each * np.log(self.config.outputs) * noise, self.preference)

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
