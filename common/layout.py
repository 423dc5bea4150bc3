"""How training is spread over devices: which part of a batch, and of every tensor, each of them holds.

Nothing here changes what is computed. `data` and `shard` each cut a batch by its rows; `shard` cuts parameters,
gradients and the optimizer's state as well, and whoever needs a layer gathers it (Rajbhandari et al. 2020, stage 3);
`tensor` cuts heads and hidden units, so that devices compute parts of one product (Shoeybi et al. 2019).
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.errors import UserError, unknown
from common.record import Record, positive_int

if TYPE_CHECKING:
    from common.config import ModelConfig
    from common.training import TrainConfig

AXES = ("data", "shard", "tensor")
RANK, WORLD, HOST, PORT = "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"  # what torchrun tells every process
LOCAL, HERE, RESTARTS = "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"
FLAGS, CPUS = "XLA_FLAGS", "--xla_force_host_platform_device_count"


@dataclass(frozen=True)
class Layout(Record):
    """data x shard x tensor devices."""

    data: int = 1
    shard: int = 1
    tensor: int = 1

    def __post_init__(self):
        positive_int(self, *AXES)

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """The layout that "data=2,tensor=4" means; "" is one device. Raises UserError."""
        found: dict[str, int] = {}
        for part in text.split(",") if text.strip() else ():
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if name not in AXES:
                raise unknown("axis of a layout", name, AXES)
            if not equals or not re.fullmatch("[1-9][0-9]{0,8}", value):
                raise UserError(f"The layout {text!r} gives {name} no number; write as in data=2,tensor=4.")
            if name in found:
                raise UserError(f"The layout {text!r} names {name} twice.")
            found[name] = int(value)
        return cls(**found)

    def __str__(self) -> str:
        return ",".join(f"{name}={getattr(self, name)}" for name in AXES if getattr(self, name) > 1)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.data, self.shard, self.tensor

    @property
    def devices(self) -> int:
        return math.prod(self.sizes)

    @property
    def rows(self) -> int:
        """In how many parts the rows of a batch are cut."""
        return self.data * self.shard

    def check(self, config: "ModelConfig", train: "TrainConfig | None" = None) -> None:
        """Raise UserError if a model, or the batches of a run, cannot be cut so."""
        if train is not None and train.batch_size % self.rows:
            raise UserError(
                f"{train.batch_size} windows of a batch cannot be dealt out equally to data x shard = {self.rows};"
                " choose another --batch-size or --layout."
            )
        if self.tensor > 1:
            for layer in range(config.num_layers):
                for part in (config.attention_of(layer), config.feed_forward_of(layer)):
                    for what, count in part.cut(config).items():
                        if count % self.tensor:
                            told = f"{count} {what} of layer {layer} cannot be dealt out equally to"
                            raise UserError(f"{told} tensor = {self.tensor}; choose another --layout.")


ONE = Layout()


def splits(config: "ModelConfig") -> dict[str, int]:
    """The axis along which tensor parallelism cuts a parameter, by name; those that are not here are whole everywhere:
    rows of maps that make heads or hidden units (0), columns of maps that put them together (1). Of their adapters it
    cuts what has these rows, B and the magnitudes, or these columns, A."""
    from common import adapters  # commands that only help import no NumPy

    found = {}
    for layer in range(config.num_layers):
        for name, part in (("self_attn", config.attention_of(layer)), ("mlp", config.feed_forward_of(layer))):
            path = f"model.layers.{layer}.{name}"
            for one in part.parameters(config, path) if part.cut(config) else ():
                axis = part.splits.get(one.name.split(".")[-2])
                if axis is not None and not (axis == 1 and len(one.shape) == 1):  # a bias behind the sum is whole
                    found[one.name] = axis
    for name in adapters.names(config) if config.adapters else ():
        axis = found.get(f"{adapters.base_of(name)}.weight")
        if axis is not None and (axis == 1) == (name.split(".")[-3] == adapters.PARTS[0]):
            found[name] = axis
    return found


def parts(layout: Layout, axis: int | None, shape: tuple[int, ...]) -> tuple[str | None, ...]:
    """Which axis of the layout cuts each axis of a parameter, or of what an optimizer remembers of it; `axis` is the
    one that tensor parallelism cuts (`splits`). `shard` cuts the first axis that it divides and that `tensor` leaves:
    JAX's rule, and that of the closed forms. FSDP always cuts the first axis, and fills up what does not divide.
    """
    cut: list[str | None] = [None] * len(shape)
    if axis is not None and layout.tensor > 1:
        cut[axis] = "tensor"
    if layout.shard > 1:
        free = (at for at, size in enumerate(shape) if cut[at] is None and size % layout.shard == 0)
        at = next(free, None)
        if at is not None:
            cut[at] = "shard"
    return tuple(cut)


def processes(env: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(number of this process, of how many), as torchrun and its like tell it in the environment. Raises UserError."""
    try:
        rank, world = int(env.get(RANK, "0")), int(env.get(WORLD, "1"))
    except ValueError as error:
        raise UserError(f"{RANK} and {WORLD} of the environment are no numbers: {error}.") from error
    if not 0 <= rank < world:
        raise UserError(f"This is process {rank} of {world}, says the environment ({RANK}, {WORLD}); start it anew.")
    return rank, world


def neighbours(env: Mapping[str, str] = os.environ) -> int:
    """How many of the processes are on this machine, as torchrun tells it; all, if nobody does."""
    world, told = processes(env)[1], env.get(HERE, "")
    return int(told) if re.fullmatch("[1-9][0-9]{0,8}", told) and int(told) <= world else world


def environment(own: Mapping[str, str], backend: str, device: str, layout: Layout) -> dict[str, str]:
    """What to add to the environment `own` of a process: on a CPU, JAX gets as many devices as the layout wants of it.
    What is said there stays."""
    said = own.get(FLAGS, "")
    if backend != "jax" or device != "cpu" or layout.devices == 1 or CPUS in said:
        return {}
    here = -(-layout.devices // processes(own)[1])
    return {FLAGS: f"{said} {CPUS}={here}".strip()}


def device_of(device: str, backend: str, env: Mapping[str, str] = os.environ) -> str:
    """The device of this process: of the GPUs of a machine, PyTorch's processes take one each; JAX's takes all."""
    return f"cuda:{env[LOCAL]}" if device == "cuda" and backend == "torch" and LOCAL in env else device


def address(env: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Where the first process is found: torchrun says so; without it, on this machine. Raises UserError."""
    port = env.get(PORT, "29500")
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65_535:
        raise UserError(f"{PORT} of the environment is {port!r}; it is a number from 1 to 65534.")
    return env.get(HOST, "127.0.0.1"), int(port)


def check_processes(layout: Layout) -> None:
    """Refuse several processes that have no layout: each would train a model of its own, in one folder."""
    _, world = processes()
    if world > 1 and layout.devices == 1:
        raise UserError(f"{world} processes run, says the environment ({WORLD}), and none of them is told a --layout.")


def by_leader(leads: bool, share: Callable[[bytes], bytes], make: Callable[[], Any]) -> Any:
    """What the process that leads makes, as JSON has it, in all processes, which wait for it; `share` hands its bytes
    on. Where it fails, all of them do; if it is killed, whoever launched them has to end the others."""
    text, failure = b"", None
    if leads:
        try:
            text = json.dumps({"made": make()}).encode()
        except Exception as error:
            text, failure = json.dumps({"failed": str(error) or repr(error)}).encode(), error
    told = json.loads(share(text))
    if failure is not None:
        raise failure
    if "failed" in told:
        raise UserError(told["failed"])
    return told["made"]


def leads(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that writes."""
    return processes(env)[0] == 0


def restarted(env: Mapping[str, str] = os.environ) -> bool:
    """Whether an engine has started these processes again after one was lost."""
    return env.get(RESTARTS, "0") not in ("", "0")
