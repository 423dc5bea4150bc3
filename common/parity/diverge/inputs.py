"""What both sides are given: one config, one set of weights, the same token ids and targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import cases, params
from common.backend import IGNORED, check_ids, check_length
from common.cases import Case
from common.config import ModelConfig, preset
from common.decoding import padded
from common.errors import UserError
from common.run import weights_of
from common.weights import formats

DEFAULT_CASE = "gpt_wide"  # default initialisation hides bugs: unit norms, zero biases; here every weight is random
BATCH, LENGTH = 2, 24


@dataclass(frozen=True)
class Subject:
    """One model and one input. ids, targets [B, T] int32; positions [B, T] only where rows are padded (-1)."""

    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    source: str
    ids: np.ndarray
    targets: np.ndarray
    positions: np.ndarray | None
    text: str

    @property
    def size(self) -> int:
        return params.count(self.config)

    def read(self, letters: str) -> np.ndarray | None:
        """Which elements of an array with these axes anybody reads: not those at padded positions. None: all."""
        if self.positions is None or "b" not in letters or not {"t", "s"} & set(letters):
            return None
        along, real = "t" if "t" in letters else "s", self.positions >= 0
        return real.reshape([len(real) if x == "b" else real.shape[1] if x == along else 1 for x in letters])


@dataclass(frozen=True)
class Chosen:
    """A config with weights, where they come from, and the case they belong to, if any."""

    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    source: str
    case: Case | None = None


def model(weights: Path | None, preset_name: str | None, case: str | None, heads: int | None, seed: int) -> Chosen:
    """Config and weights: of a file or folder, or random ones for a preset or a registered case."""
    if sum(given is not None for given in (weights, preset_name, case)) > 1:
        raise UserError("Of --weights, --preset and --case, give one at most: each says which model it is.")
    if weights is not None:
        found, _ = weights_of(weights, heads)
        return Chosen(found.config, found.weights, f"weights of {weights.name}")
    if preset_name is not None:
        config = preset(preset_name)
        return Chosen(config, params.randomise(config, seed), f"preset {preset_name}, all weights random")
    chosen = cases.case(case or DEFAULT_CASE)
    return Chosen(chosen.config, chosen.weights(), f"case {chosen.name}, all weights random", chosen if case else None)


def check_alike(one: Path, other: Path) -> None:
    """Two folders with weights of their own can be compared if they hold models of one shape."""
    first, second = (formats.load(path).config.to_dict() for path in (one, other))
    wrong = [f"{name} {first[name]} and {second[name]}" for name in first if first[name] != second[name]]
    if wrong:
        raise UserError(f"{one.name} and {other.name} hold different models ({', '.join(wrong)}); they must be alike.")


def random_rows(chosen: Chosen, batch: int | None, length: int | None, seed: int) -> Subject:
    """Seeded random ids; the first row ignores its first labels. A registered case keeps its own, unless resized."""
    config = chosen.config
    if chosen.case is not None and batch is None and length is None:
        recipe = chosen.case
    else:
        length = min(LENGTH, config.context_length) if length is None else length
        recipe = Case(
            "diverge", "random ids", config, batch=BATCH if batch is None else batch, length=length, seed=seed
        )
    if recipe.batch < 1 or recipe.length < 1:
        raise UserError(f"A batch of {recipe.batch} rows of {recipe.length} ids is empty; both must be at least 1.")
    check_length(recipe.length, config)
    ids, targets = recipe.tokens()
    return Subject(
        config, chosen.weights, chosen.source, ids, targets, None, f"random ids {ids.shape[0]} × {ids.shape[1]}"
    )


def given_rows(chosen: Chosen, rows: Sequence[Sequence[int]]) -> Subject:
    """Rows of ids as given; unequal ones are padded on the left. Every id but a row's first is a target."""
    if not all(len(row) for row in rows):
        raise UserError("A row of token ids is empty; a model needs at least one token.")
    for row in rows:
        check_ids(np.asarray(row, dtype=None), chosen.config)
    ids, positions = padded(rows)
    check_length(ids.shape[1], chosen.config)
    targets = np.full_like(ids, IGNORED)
    targets[:, :-1] = np.where(positions[:, :-1] >= 0, ids[:, 1:], IGNORED)
    uneven = bool((positions < 0).any())
    text = f"ids {ids.shape[0]} × {ids.shape[1]}" + (", padded on the left" if uneven else "")
    return Subject(chosen.config, chosen.weights, chosen.source, ids, targets, positions if uneven else None, text)


def parse_ids(text: str) -> list[int]:
    """ "1,2,3" as a list."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"--ids {text!r} is no list of token ids; write whole numbers with commas, as in 1,2,3."
        ) from None
