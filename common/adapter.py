"""What an adapter is: settings that a model's config holds. See `common/adapters.py`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from common.errors import UserError
from common.record import Record, flag, number, positive_int, require

# methods and marks of PyTorch's modules, beside which a part cannot have the same name
TAKEN = """
    T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double
    dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu
    items keys load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters
    pop register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to to_empty
    train training type update values xpu zero_grad
"""


@dataclass(frozen=True)
class Adapter(Record):
    """One adapter: its name, the linear maps that it changes (patterns over their paths, as "*.q_proj"), rank R, alpha.

    Its scale is alpha / rank, or alpha / sqrt(rank) with `rslora`. `dropout` drops numbers of the input on its way into
    A. With `dora` the changed matrix gets the row norms of a magnitude vector that learns.
    """

    name: str = "default"
    targets: tuple[str, ...] = ("*.q_proj", "*.v_proj")
    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False

    def __post_init__(self):
        require(self.name not in TAKEN.split(), self, "name", "one that is no word of a framework's modules")
        named = isinstance(self.name, str) and self.name.replace("_", "").replace("-", "").isalnum()
        require(named and not self.name.isdigit(), self, "name", "letters, digits, - and _, not digits alone")
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets
        good = isinstance(targets, (tuple, list)) and targets and all(isinstance(one, str) and one for one in targets)
        require(good, self, "targets", "one or more patterns such as '*.q_proj'")
        object.__setattr__(self, "targets", tuple(targets))
        positive_int(self, "rank")
        number(self, "alpha", 1e-12, 1e12, "a number > 0")
        number(self, "dropout", 0.0, 0.999, "a rate in [0, 0.999]")
        flag(self, "rslora", "dora")

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def hits(self, path: str) -> bool:
        """Whether it targets the linear map at a path."""
        return any(fnmatchcase(path, pattern) for pattern in self.targets)


def read(value: object) -> tuple[Adapter, ...]:
    """Adapters of a config from what stands there: adapters, or dictionaries of their fields."""
    entries = (value,) if isinstance(value, (Adapter, Mapping)) else value
    if not isinstance(entries, (tuple, list)) or not all(isinstance(one, (Adapter, Mapping)) for one in entries):
        raise UserError("The adapters of a model are a list of records with name, targets, rank, …")
    found = tuple(one if isinstance(one, Adapter) else Adapter.from_dict(dict(one)) for one in entries)
    names = [one.name for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"Two adapters are called {twice!r}; give them different names.")
    return found
