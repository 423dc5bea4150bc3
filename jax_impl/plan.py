"""XLA's plan of a spread training step, compiled for devices of which none has to hold anything."""

import jax
import numpy as np

from common import backend as door
from common import params as parameters

from .backend import _recipe
from .memory import planned_bytes
from .placing import Places, mesh_of
from .precision import dtype, multiplying
from .programs import programs


def plan(config, execution, train, length):
    """Bytes of one device by XLA's plan (see `planned_bytes`) of a step with these settings."""
    with jax.enable_x64(execution.dtype == "float64"), multiplying(execution.products):
        layout = execution.spread
        mesh = mesh_of(layout, execution.device.partition(":")[0])
        places, own = Places(config, layout, mesh), programs(config, execution, train)
        kind = dtype(execution.precision.param)
        params = _shapes(own, places, {name: one.shape for name, one in parameters.table(config).items()}, kind)
        slots = _shapes(own, places, parameters.slots(config, train), kind)
        ids = np.zeros((train.accumulate, train.batch_size, length), np.int32)
        batch = jax.ShapeDtypeStruct(ids.shape, ids.dtype, sharding=places.rows(ids.ndim, train.batch_size))
        _, _, positions, count = door.step_inputs(ids, ids, config)
        return planned_bytes(
            own.step,
            params,
            slots,
            batch,
            batch,
            door.places(positions, config, execution),
            np.asarray(count, dtype(execution.precision.reduce)),
            np.array(train.adam_scalars(0), kind),
            np.uint32(train.seed),
            np.uint32(0),
            _recipe(train),
        )


def _shapes(own, places, shapes, kind):
    """Arrays as the program takes them, of which only shapes and places exist: they are folded with nothing in them."""
    found = {}
    for name, empty in own.fold({name: np.empty((0, *shape), bool) for name, shape in shapes.items()}):
        folded = empty.ndim - 1 > len(shapes[name])
        shape = (empty.shape[0], *empty.shape[2:]) if folded else empty.shape[1:]
        found[name] = jax.ShapeDtypeStruct(shape, kind, sharding=places.of(name, shape))
    return found
