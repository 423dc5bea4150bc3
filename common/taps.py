"""Named intermediate values: a model offers each to `taps(name, value)`, and keeps those that were asked for."""

from fnmatch import fnmatchcase
from typing import Any


class Taps:
    """Collects values whose dotted name matches one of the patterns (`model.layers.*.self_attn.scores`, `*`)."""

    def __init__(self, wanted: tuple[str, ...] = (), *, prefix: str = "", found: dict[str, Any] | None = None):
        self.wanted, self.prefix = tuple(wanted), prefix
        self.found: dict[str, Any] = {} if found is None else found

    def under(self, name: str) -> "Taps":
        """The same collector, one level down."""
        if not self.wanted:
            return self
        return Taps(self.wanted, prefix=f"{self.prefix}{name}.", found=self.found)

    def wants(self, name: str) -> bool:
        """Whether a value of that name is asked for; one that nothing else needs is not made in vain."""
        return bool(self.wanted) and any(fnmatchcase(self.prefix + name, pattern) for pattern in self.wanted)

    def __call__(self, name: str, value: Any) -> Any:
        if self.wants(name):
            self.found[self.prefix + name] = value
        return value


NO_TAPS = Taps()
