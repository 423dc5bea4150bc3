"""XLA's plan of a spread training step, compiled for devices of which none has to hold anything."""

import jax
import numpy as np

from common import backend as door
from common import nf4
from common import params as parameters

from .backend import _recipe
from .hlo import compiled_flops
from .memory import plan_of
from .placing import Places, mesh_of
from .precision import dtype, multiplying
from .programs import programs


def plan(config, execution, train, length):
    """Bytes of one device by XLA's plan (see `planned_bytes`) of a step with these settings, and "flops": those of its
    matrix products, with what is computed again (None where the compiled program does not tell); None without a plan.
    """
    with jax.enable_x64(execution.dtype == "float64"), multiplying(execution.products):
        layout = execution.spread
        mesh = mesh_of(layout, execution.device.partition(":")[0])
        places, own = Places(config, layout, mesh, base=execution.base), programs(config, execution, train)
        kind, small = dtype(execution.precision.param), nf4.kept(config, execution.base)
        nf4.check_trained(config, execution.base, parameters.trained(config, train))
        shapes = {name: (one.shape, kind) for name, one in parameters.table(config).items() if name not in small}
        params = _shapes(own, places, shapes | nf4.parts(config, execution.base))
        slots = {name: (shape, kind) for name, shape in parameters.slots(config, train).items()}
        slots = _shapes(own, places, slots)
        ids = np.zeros((train.accumulate, train.batch_size, length), np.int32)
        batch = jax.ShapeDtypeStruct(ids.shape, ids.dtype, sharding=places.rows(ids.ndim, train.batch_size))
        _, _, positions, count = door.step_inputs(ids, ids, config)
        lowered = own.step.lower(
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
        compiled = lowered.compile()
    found = plan_of(compiled)
    return None if found is None else {**found, "flops": _flops(compiled)}


def _flops(compiled):
    try:
        return compiled_flops(compiled.as_text())
    except ValueError:  # a loop whose rounds XLA does not know, a product by a library's call
        return None


def _shapes(own, places, kinds):
    """Arrays as the program takes them, of which only shapes and places exist: they are folded with nothing in them."""
    found = {}
    for name, empty in own.fold({name: np.empty((0, *shape), bool) for name, (shape, _) in kinds.items()}):
        shape, kind = kinds[name]
        folded = empty.ndim - 1 > len(shape)
        shape = (empty.shape[0], *empty.shape[2:]) if folded else empty.shape[1:]
        found[name] = jax.ShapeDtypeStruct(shape, kind, sharding=places.of(name, shape))
    return found
