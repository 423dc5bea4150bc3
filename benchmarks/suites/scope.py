"""What a run is about: device, sizes, and the contenders that every suite chooses from."""

from dataclasses import dataclass, replace
from importlib.util import find_spec

from benchmarks.harness import machine
from benchmarks.harness.contenders import Contender
from common import allocator
from common.config import ModelConfig, mode, preset
from common.weights.grow import padded_size

ROUND = 64  # a padded vocabulary is a multiple of it
TITLES = {"torch": "PyTorch", "jax": "JAX"}
FASTEST = "fast"
# PyTorch's own clipping adds the squares of a tensor one after the other: off by 2.7e-3 for 4e7 numbers in float32
CLIPPED = {"grad_norm": 1e-2, "exp_avg": 1e-2}


@dataclass(frozen=True)
class Scope:
    """`quick` takes the small model alone and fewer sizes; `model` is the large one of every suite."""

    device: str = "cpu"
    quick: bool = False
    model: str = "gpt2-124m"
    small: str = "nano"

    def config(self, name: str) -> ModelConfig:
        return preset(name)

    @property
    def models(self) -> tuple[str, ...]:
        """The models of the suites that look at several, the small one first, each once."""
        return (self.small,) if self.quick or self.model == self.small else (self.small, self.model)

    @property
    def narrow(self) -> tuple[str, ...]:
        """PyTorch's fast mode in bfloat16: with wide products on a CPU that lacks instructions for 16 bits."""
        return (FASTEST,) if self.multiplies_16_bits else (f"{FASTEST}+wide",)

    @property
    def flash(self) -> tuple[str, ...]:
        """Modes of both wings in 16 bits whose attention is a GPU's own kernel (flash attention, cuDNN), asked for."""
        return () if self.device == "cpu" else (f"{FASTEST}+fused",)

    @property
    def graphs(self) -> tuple[str, ...]:
        """PyTorch's fast mode with its launches recorded, as JAX's programs are compiled whole: on a GPU."""
        return () if self.device == "cpu" else (f"{FASTEST}+graphs",)

    @property
    def multiplies_16_bits(self) -> bool:
        """Whether the device has instructions for products of bfloat16."""
        return self.device != "cpu" or machine.has_bfloat16()

    def dtypes(self, model: str) -> tuple[str, ...]:
        """float32, and bfloat16 where a step of the large model does not take minutes for lack of instructions."""
        return ("float32", "bfloat16") if self.multiplies_16_bits or model == self.small else ("float32",)

    @property
    def main(self) -> str:
        """The model of the suites that look at one."""
        return self.small if self.quick else self.model


def wing(
    name: str, how: str = "default", dtype: str | None = None, model: tuple[str, ModelConfig] | None = None
) -> Contender:
    """A wing in one of the modes of `common.config.MODES`, and in a precision of its own, or with a model of its own
    and what it is called."""
    label, told = (called if how == "default" else f"{called} {how}" for called in (name, TITLES[name]))
    called, config = model or (None, None)
    for own in filter(None, (dtype, called)):
        label, told = f"{label} {own}", f"{told}, {own}"
    return Contender(label, told, name, name, how, mode(how, name), dtype=dtype, config=config)


def outside(name: str, title: str, entry: str, framework: str, lower_bound: bool = False) -> tuple[Contender, ...]:
    """A contender from outside, if its package is installed: one or none."""
    package = name.partition(" ")[0]
    if find_spec(package) is None:
        return ()
    return (Contender(name, title, entry, framework, "as it is", {}, lower_bound, CLIPPED),)


def plain(clipped: bool = False, **options: str) -> tuple[Contender, ...]:
    """As little as each framework needs for the same work in float32: plain calls of its own functions. `clipped`: the
    work is a sum over more numbers than PyTorch's clipping adds up well."""
    return tuple(
        Contender(
            f"plain {name}",
            f"plain {title}",
            f"benchmarks.outside.plain_{name}:backend",
            name,
            "as it is",
            options,
            lower_bound=True,
            allowed=CLIPPED if clipped and name == "torch" else {},
        )
        for name, title in TITLES.items()
    )


def padded(config: ModelConfig) -> tuple[str, ModelConfig] | None:
    """The same model with a padded vocabulary, by name; None where there is nothing to pad."""
    found = config.with_(vocab_size=padded_size(config.vocab_size, ROUND))
    return None if found == config else ("padded vocabulary", found)


def kept(scope: Scope, **modes: str) -> tuple[Contender, ...]:
    """Wings in a mode, in a process that keeps its memory: on a CPU, for a GPU's memory is the framework's own, and
    where the C library can be told so."""
    there = scope.device == "cpu" and allocator.available()
    return tuple(wing(name, f"{how}+kept") for name, how in modes.items()) if there else ()


def transformers(kept: bool = False, cast: bool = False) -> tuple[Contender, ...]:
    """Hugging Face's GPT-2, where it is installed; `kept` adds it in a process that keeps its memory. With `cast` its
    parameters are float32 and its products bfloat16, by autocast: as the wings keep and compute them, but for decoding.
    """
    if cast:
        source = "benchmarks.outside.transformers_gpt2:autocast"
        return outside("transformers autocast", "transformers, autocast", source, "transformers")
    found = outside("transformers", "transformers", "transformers", "transformers")
    more = {
        "name": "transformers kept",
        "title": "transformers, kept memory",
        "mode": "kept",
        "options": mode("kept", ""),
    }
    return found + tuple(replace(one, **more) for one in found if kept)
