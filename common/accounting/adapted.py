"""What a run that trains adapters, or some other part of a model, keeps and multiplies, beside training all of it."""

from dataclasses import asdict, dataclass
from typing import Any

from common import adapters, params
from common.accounting import flops, memory
from common.adapters import Adapter
from common.config import PRECISIONS, ModelConfig, TrainConfig
from common.errors import UserError


@dataclass(frozen=True)
class Share:
    """One adapter: how many linear maps it changes, its parameters, its scale."""

    adapter: Adapter
    maps: int
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.adapter.to_dict(),
            "scale": self.adapter.scale,
            "maps": self.maps,
            "parameters": self.parameters,
        }


@dataclass(frozen=True)
class Bytes:
    """What a run keeps in every step, without activations, and the FLOPs of a step for every token (None: no closed
    form)."""

    weights: int
    gradients: int
    optimizer: int
    flops: float | None

    @property
    def together(self) -> int:
        return self.weights + self.gradients + self.optimizer

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "together": self.together}


@dataclass(frozen=True)
class Report:
    """Parameters that a run trains and those that stay, by adapter; bytes of `runs`: "full" training of the model
    without adapters, this run ("part"), and this run on a base in 4 bits ("nf4")."""

    shares: tuple[Share, ...]
    trainable: int
    frozen: int
    runs: dict[str, Bytes]

    def to_dict(self) -> dict[str, Any]:
        return {
            "adapters": [one.to_dict() for one in self.shares],
            "trainable": self.trainable,
            "frozen": self.frozen,
            "runs": {name: one.to_dict() for name, one in self.runs.items()},
        }


def report(config: ModelConfig, train: TrainConfig = params.EVERYTHING, dtype: str = "float32") -> Report:
    """Of a run with these settings. FLOPs are those of texts as long as the context, for kernels that compute all
    scores."""
    table, chosen = params.table(config), params.trained(config, train)
    shares = []
    for adapter in config.adapters:
        own = adapters.names(config, adapter.name)
        maps = {adapters.base_of(name) for name in own}
        shares.append(Share(adapter, len(maps), sum(table[name].size for name in own)))
    trainable = memory.learning(config, train)
    plain, everything = config.with_(adapters=()), TrainConfig(optimizer=train.optimizer)
    kept = PRECISIONS[dtype].param
    rest = memory.gradients(config, kept, train), memory.optimizer_slots(config, kept, train), _flops(config, chosen)
    runs = {
        "full": Bytes(
            memory.weights(plain, kept),
            memory.gradients(plain, kept, everything),
            memory.optimizer_slots(plain, kept, everything),
            _flops(plain, None),
        ),
        "part": Bytes(memory.weights(config, kept), *rest),
        "nf4": Bytes(memory.base(config, kept, "nf4"), *rest),
    }
    if config.adapters == ():
        del runs["nf4"]  # matrices in 4 bits cannot be trained
    return Report(tuple(shares), trainable, params.count(config) - trainable, runs)


def _flops(config: ModelConfig, chosen: dict[str, bool] | None) -> float | None:
    length = config.context_length
    try:
        return flops.flops_full(config, "train", 1, length, trained=chosen) / length
    except UserError:
        return None
