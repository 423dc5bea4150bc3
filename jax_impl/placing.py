"""Where arrays lie on several devices: a mesh of them by the axes of a layout, and how each array is cut."""

import functools

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from common import layout as layouts
from common import params as parameters
from common.errors import UserError

SLOTS = (".exp_avg_sq", ".exp_avg", ".momentum")


@functools.lru_cache(maxsize=8)
def mesh_of(layout, kind):
    """The devices of a layout. All processes name them alike."""
    devices = jax.devices("cpu" if kind == "cpu" else "gpu")
    alone = jax.process_count() == 1
    if len(devices) < layout.devices or not (alone or len(devices) == layout.devices):
        raise UserError(f"The layout {layout} needs {layout.devices} devices, and JAX sees {len(devices)}.")
    kinds = (AxisType.Auto,) * len(layouts.AXES)
    return jax.make_mesh(layout.sizes, layouts.AXES, kinds, devices=devices[: layout.devices])


class Places:
    """How every array of a model is cut, by its folded name."""

    def __init__(self, config, layout, mesh):
        self.layout, self.mesh = layout, mesh
        self.shapes = {name: one.shape for name, one in parameters.table(config).items()}
        self.splits = layouts.splits(config)

    def of(self, name, shape):
        """Of a parameter or of what an optimizer remembers of it; those of several layers lie along a first axis."""
        for slot in SLOTS:
            name = name.removesuffix(slot)
        folded = len(shape) - len(self.shapes[name])
        cut = layouts.parts(self.layout, self.splits.get(name), shape[folded:])
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * folded, *cut))

    def rows(self, dims, count):
        """Of ids [..., B, T]: rows lie apart where they can be dealt out equally."""
        cut = ("data", "shard") if count % self.layout.rows == 0 else None
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * (dims - 2), cut, None))

    def pin(self, arrays):
        """The same arrays, while tracing, which lie as they should."""
        own = {name: self.of(name, value.shape) for name, value in arrays.items()}
        return jax.lax.with_sharding_constraint(arrays, own)


def pin_of(config, execution):
    """What makes the results of a program lie where its next call wants them; nothing on one device."""
    if not execution.layout:
        return lambda arrays: arrays
    layout = execution.spread
    return Places(config, layout, mesh_of(layout, execution.device.partition(":")[0])).pin
