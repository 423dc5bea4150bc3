"""Where arrays lie on several devices: a mesh of them by the axes of a layout, and how each array is cut."""

import functools

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from common import layout as layouts
from common import nf4
from common import params as parameters
from common.errors import UserError

from .quantise import QuantisedLinear
from .stack import scan

BLOCKS, GATHERED = "model.layers.", "gathered"
NOT_GATHERED = jax.checkpoint_policies.save_anything_except_these_names(GATHERED)
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

    def __init__(self, config, layout, mesh, loops=True, base="plain"):
        self.layout, self.mesh, self.loops = layout, mesh, loops
        self.shapes = {name: one.shape for name, one in parameters.table(config).items()}
        self.shapes |= {name: shape for name, (shape, _) in nf4.parts(config, base).items()}
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

    # --- while tracing ---

    def pin(self, arrays):
        """The same arrays, which lie as they should."""
        own = {name: self.of(name, value.shape) for name, value in arrays.items()}
        return jax.lax.with_sharding_constraint(arrays, own)

    def gathered(self, params):
        """Parameters whose shards are put together: of a scan those outside of its blocks, for it gathers its own."""
        own = {name: value for name, value in params.items() if self.loops or not name.startswith(BLOCKS)}
        return params | {name: self._whole(name, value) for name, value in own.items()}

    def _whole(self, name, value, folded=True):
        """Without shards, named so that nobody keeps it for the way back."""
        whole = self._without_shards(self.of(name, value.shape) if folded else self.of_one(name))
        return checkpoint_name(jax.lax.with_sharding_constraint(value, whole), GATHERED)

    def _without_shards(self, sharding):
        """What only tensor parallelism cuts."""
        return NamedSharding(self.mesh, PartitionSpec(*(a if a == "tensor" else None for a in sharding.spec)))

    def around(self, model):
        """The model, whose scan puts every block's shards together when it comes to it, and deals out its rows; what
        it dequantises lies as a matrix does."""
        for path, module in nnx.iter_modules(model):
            if isinstance(module, QuantisedLinear):
                name = ".".join(map(str, (*path, "weight")))
                module.place = self._without_shards(self.of_one(name))
        if not self.loops:
            run = model.model.run
            wrap = {"wrap": functools.partial(jax.checkpoint, policy=NOT_GATHERED, prevent_cse=False)}
            model.model.run = functools.partial(run, around=self._around, **(wrap if run is scan else {}))
        return model

    def _around(self, blocks, layers):
        """Blocks of a scan, like these layers, whose parameters are gathered, and whose rows lie apart."""

        def run(x_BTE, every):
            states, *rest = every
            x_BTE = self._dealt(x_BTE)
            whole = [self._block(*own) for own in zip(layers, states, strict=True)]
            x_BTE, filled = blocks(x_BTE, (whole, *rest))
            return self._dealt(x_BTE), filled

        return run

    def _dealt(self, x_BTE):
        cut = ("data", "shard") if x_BTE.shape[0] % self.layout.rows == 0 else None
        return jax.lax.with_sharding_constraint(x_BTE, NamedSharding(self.mesh, PartitionSpec(cut, None, None)))

    def _block(self, layer, state):
        """The values of one block, which are cut as those of that layer."""

        def whole(path, value):
            names = (str(getattr(key, "key", getattr(key, "name", key))) for key in path)
            name = ".".join((f"{BLOCKS}{layer}", *(part for part in names if part != "value")))
            return self._whole(name, value, folded=False)

        return jax.tree_util.tree_map_with_path(whole, state)

    def of_one(self, name):
        """Of a parameter of one layer."""
        return NamedSharding(
            self.mesh, PartitionSpec(*layouts.parts(self.layout, self.splits.get(name), self.shapes[name]))
        )


def spread_of(config, execution):
    """What spreads the programs of an execution; None on one device."""
    if not execution.layout:
        return None
    layout = execution.spread
    mesh = mesh_of(layout, execution.device.partition(":")[0])
    return Places(config, layout, mesh, execution.layers == "loop", execution.base)
