"""What the user asked for, as given; `plan.py` turns it into work and refuses what cannot be done."""

import shlex
from dataclasses import asdict, dataclass
from typing import Any

from common.config import ModelConfig


@dataclass(frozen=True)
class Settings:
    """The options of `parallax compare`; None means: chosen to fit. `model` takes the place of a preset."""

    preset: str = "nano"
    weights: str | None = None
    heads: int | None = None
    data: str = "pydoc"
    tokenizer: str | None = None
    vocab: str | None = None
    prompt: str | None = None
    steps: int | None = None
    batch_size: int | None = None
    length: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    mode: str = "default"
    attention: str | None = None
    compile: bool = False
    seed: int = 0
    out: str = "out/compare"
    quick: bool = False
    model: ModelConfig | None = None
    wings: tuple[str, str] = ("torch", "jax")

    def to_dict(self) -> dict[str, Any]:
        """The options as plain data."""
        values = asdict(self)
        del values["model"]
        return {**values, "wings": list(self.wings)}

    def command(self) -> str:
        """The command line that asks for the same again."""
        words, default = ["parallax", "compare"], Settings()
        for name, value in asdict(self).items():
            if name in ("model", "wings") or value == getattr(default, name):
                continue
            option = f"--{name.replace('_', '-')}"
            words += [option] if value is True else [option, str(value)]
        return shlex.join(words)
