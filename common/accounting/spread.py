"""What one of several devices holds and computes in a training step, in closed form: nothing is built.

Sources: Rajbhandari et al. 2020 (states in parts), Shoeybi et al. 2019 (products in parts).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common import adapters, nf4, params
from common.accounting import activations, flops, memory
from common.accounting.memory import ITEM_BYTES
from common.config import PRECISIONS, ModelConfig, TrainConfig
from common.errors import UserError
from common.layout import AXES, Layout, parts, splits

AHEAD = 2  # blocks that are whole at a time: the one that computes, and the next one, which is being gathered


@dataclass(frozen=True)
class Share:
    """Of one device: bytes of its parts of parameters, gradients and optimizer, of what it gathers of other devices'
    parts while it computes, and of activations of a micro-batch (None: no closed form); FLOPs of a step, kernels that
    compute all scores."""

    layout: Layout
    rows: int
    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int | None
    flops: int

    @property
    def total(self) -> int:
        """Bytes at the end of a forward pass, or more; without activations where they have no closed form."""
        return self.parameters + self.gradients + self.optimizer + self.gathered + (self.activations or 0)


def share(
    config: ModelConfig,
    layout: Layout,
    train: TrainConfig,
    length: int,
    dtype: str,
    attention: str = "plain",
    base: str = "plain",
) -> Share:
    """What a device of this layout has to hold and to do in a step. Of a base in 4 bits `shard` cuts the bits; one
    matrix at a time is put together and dequantised, of which the largest counts as gathered. Raises UserError if it
    cannot be laid out so, or if the base is to be trained."""
    layout.check(config, train)
    whole, cut, small = params.table(config), splits(config), nf4.kept(config, base)
    table = {name: one for name, one in whole.items() if name not in small}
    item = ITEM_BYTES[PRECISIONS[dtype].param]

    def held(name: str, shape: tuple[int, ...], *axes: str) -> int:
        """Numbers of a tensor on one device, if only these axes of the layout cut it."""
        own = parts(layout, cut.get(name), shape)
        return math.prod(shape) // math.prod(getattr(layout, axis) for axis in own if axis in axes)

    chosen = params.trained(config, train)
    nf4.check_trained(config, base, chosen)
    bits = [(held(name, shape, *AXES), kind) for name, (shape, kind) in nf4.parts(config, base).items()]
    kept = sum(held(name, one.shape, *AXES) for name, one in table.items())
    slots = sum(held(name.rpartition(".")[0], shape, *AXES) for name, shape in params.slots(config, train).items())
    rows = train.batch_size // layout.rows
    return Share(
        layout,
        rows,
        kept * item + sum(count * np.dtype(kind).itemsize for count, kind in bits),
        sum(held(name, one.shape, *AXES) for name, one in table.items() if chosen[name]) * item,
        slots * item,
        _gathered(config, layout, {name: held(name, one.shape, "tensor") for name, one in table.items()}) * item
        + max((_dequantised(whole[name].size, layout, base, item) for name in small), default=0),
        _activations(config, layout, rows, length, dtype, attention),
        _flops(config, layout, train, length, attention),
    )


def _gathered(config: ModelConfig, layout: Layout, whole: dict[str, int]) -> int:
    """Numbers that FSDP puts together: embeddings, head and last norm, which stay, and their gradients; blocks one
    after the other, and the gradients of one."""
    if layout.shard == 1:
        return 0
    blocks = [0] * config.num_layers
    root = 0
    for name, count in whole.items():
        if name.startswith("model.layers."):
            blocks[int(name.split(".")[2])] += count
        else:
            root += count
    return 2 * root + (AHEAD + 1) * max(blocks)


def _dequantised(size: int, layout: Layout, base: str, item: int) -> int:
    """Bytes of what a matrix in 4 bits becomes for a product: its bits together, its codes' numbers, these times their
    blocks' largest ones, both float32 and whole in every process, and that in the precision of parameters."""
    bits = memory.matrix(size, base) if layout.shard > 1 else 0
    return bits + size * (2 * ITEM_BYTES["float32"] + (item if item != ITEM_BYTES["float32"] else 0))


def _activations(config: ModelConfig, layout: Layout, rows: int, length: int, dtype: str, attention: str) -> int | None:
    try:
        found = activations.saved(config, rows, length, dtype, attention, dropout=True, tensor=layout.tensor)
    except UserError:
        return None
    return sum(found.values())


def _flops(config: ModelConfig, layout: Layout, train: TrainConfig, length: int, attention: str) -> int:
    """Of a step's rows: of layers that are cut a part, but for whole matrices of adapters; of all others everything."""
    batch = train.batch_size * train.accumulate
    part = {"attention": attention, "trained": params.trained(config, train)}
    total = sum(flops.training(config, batch, length, **part).values())
    dealt = 0
    for path in _cut_layers(config) if layout.tensor > 1 else ():
        dealt += sum(flops.training(config, batch, length, path=path, **part).values())
        for matrix in _whole_matrices(config, path):
            dealt -= sum(flops.training(config, batch, length, path=matrix, **part).values())
    return (total - dealt + dealt // layout.tensor) // layout.rows


def _cut_layers(config: ModelConfig) -> Iterator[str]:
    for layer in range(config.num_layers):
        for name, part in (("self_attn", config.attention_of(layer)), ("mlp", config.feed_forward_of(layer))):
            if part.cut(config):
                yield f"model.layers.{layer}.{name}"


def _whole_matrices(config: ModelConfig, layer: str) -> Iterator[str]:
    """The A and B of adapters in a layer that every device multiplies by: what comes before or behind a cut."""
    cut = splits(config)
    for name in adapters.names(config) if config.adapters else ():
        if name.startswith(f"{layer}.") and name not in cut and name.split(".")[-3] != adapters.PARTS[2]:
            yield name.removesuffix(".weight")


def layouts_of(config: ModelConfig, devices: int, train: TrainConfig) -> list[Layout]:
    """All layouts of so many devices that this model and these batches can have."""
    found = []
    for tensor in _divisors(devices):
        for shard in _divisors(devices // tensor):
            layout = Layout(devices // tensor // shard, shard, tensor)
            try:
                layout.check(config, train)
            except UserError:
                continue
            found.append(layout)
    return found


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]
