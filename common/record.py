"""Records of settings: frozen dataclasses with a dictionary form, whose fields refuse nonsense in one sentence."""

import math
import numbers
from dataclasses import fields, replace
from typing import Any, ClassVar, Self

from common.errors import UserError, unknown


def require(holds: bool, owner: object, field: str, allowed: str) -> None:
    """Raise one sentence with the field, its value and what is allowed, unless it holds."""
    if not holds:
        raise UserError(f"{type(owner).__name__}.{field} is {getattr(owner, field)!r}; allowed is {allowed}.")


def positive_int(owner: object, *names: str) -> None:
    """These fields are whole numbers > 0."""
    for name in names:
        whole(owner, name, 1, math.inf, "a whole number > 0")


def number(owner: object, name: str, low: float, high: float, allowed: str) -> None:
    """The field is a finite number in [low, high]. Those of other packages become Python's, as JSON wants them."""
    value = getattr(owner, name)
    good = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    require(good and low <= value <= high, owner, name, allowed)
    object.__setattr__(owner, name, int(value) if isinstance(value, numbers.Integral) else float(value))


def whole(owner: object, name: str, low: int, high: float, allowed: str) -> None:
    """The field is a whole number in [low, high); see `number`."""
    value = getattr(owner, name)
    good = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    require(good and low <= value < high, owner, name, allowed)
    object.__setattr__(owner, name, int(value))


def flag(owner: object, *names: str) -> None:
    """These fields are true or false."""
    for name in names:
        require(isinstance(getattr(owner, name), bool), owner, name, "true or false")


class Record:
    """Dictionary form shared by all configs; unknown keys are refused with their near matches.

    Fields named in `LATER` are left out while they have their default, so that what was written before there were such
    fields is still what would be written now.
    """

    LATER: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data: records inside it as dictionaries, tuples as lists."""
        kept = [one for one in fields(self) if one.name not in self.LATER or getattr(self, one.name) != one.default]
        return {field.name: plain(getattr(self, field.name)) for field in kept}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        names = [f.name for f in fields(cls)]
        for key in values:
            if not names:
                raise UserError(f"{cls.__name__} has no settings of its own, but {str(key)!r} is given.")
            if key not in names:
                raise unknown(f"field of {cls.__name__}", str(key), names)
        try:
            return cls(**values)
        except TypeError as error:
            missing = str(error).split("argument")[-1].lstrip("s:").strip()
            raise UserError(f"{cls.__name__} lacks a value for {missing}.") from error

    def with_(self, **changes: Any) -> Self:
        """A copy with some fields changed (validated again)."""
        return replace(self, **changes)


def plain(value: Any) -> Any:
    """A value as JSON holds it: records as dictionaries, tuples as lists."""
    if isinstance(value, Record):
        return value.to_dict()
    return [plain(part) for part in value] if isinstance(value, (tuple, list)) else value
