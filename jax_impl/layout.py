"""Training spread over devices and processes: arrays are cut, and XLA compiles one program for all of them."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from common import backend as door
from common import layout as layouts
from common import params as parameters
from common.errors import UserError
from common.preference import Pairs

from .backend import JaxModel, _numpy, _recipe
from .placing import Places, mesh_of
from .precision import dtype


class SpreadModel(JaxModel):
    """A model whose training is spread over devices; see `common.backend.Model`. All processes make the same calls.

    What is no training (generation, caches, components, accounts) is done by every process with the whole model.
    """

    def __init__(self, config, weights, execution):
        self.layout = execution.spread
        self.layout.check(config)
        _refuse(execution)
        join()
        _check_device(execution.device)
        kind = execution.device
        self.where = Places(config, self.layout, mesh_of(self.layout, kind))
        super().__init__(config, weights, execution, jax.local_devices(backend="cpu" if kind == "cpu" else "gpu")[0])

    @property
    def leads(self):
        """Whether this process writes for all."""
        return jax.process_index() == 0

    # --- where arrays lie ---

    def _folded(self, arrays):
        kind = dtype(self.execution.precision.param)
        return {name: self._placed(name, np.asarray(array, kind)) for name, array in self.programs.fold(arrays)}

    def _placed(self, name, array):
        return jax.make_array_from_callback(array.shape, self.where.of(name, array.shape), array.__getitem__)

    def _batch(self, array):
        """Every process has the whole batch, and hands on the rows of its devices; of pairs XLA finds those of both."""
        if isinstance(array, Pairs):
            reference = np.asarray(array.reference, dtype(self.execution.precision.reduce))
            return Pairs(self._batch(array.labels), self._batch(reference[..., None])[..., 0], array.preference)
        rows = self.where.rows(array.ndim, array.shape[-2])
        return jax.make_array_from_callback(array.shape, rows, array.__getitem__)

    def _named(self, arrays):
        return self.programs.unfold({name: _whole(value) for name, value in arrays.items()})

    def local_shapes(self):
        """What of every parameter lies on one device."""
        return {name: value.sharding.shard_shape(value.shape) for name, value in self.params.items()}

    # --- training ---

    def start_training(self, train, slots=None, step=0):
        self.layout.check(self.config, train)
        self.train, self.step, self.recipe = train, step, _recipe(train)
        with self.scope():
            self._fit(train)
            self.slots = self._nothing() if slots is None else self._folded(slots)

    def _nothing(self):
        """Zeros for what the optimizer remembers, made where they lie."""
        turned, found = parameters.turned(self.config, self.train.optimizer), {}
        trained = self.programs.trained(self.train)
        for name, p in self.params.items():
            if not trained[name]:
                continue
            for slot in ("momentum",) if name in turned else ("exp_avg", "exp_avg_sq"):
                where = self.where.of(name, p.shape)
                zeros = np.zeros(where.shard_shape(p.shape), p.dtype)
                found[f"{name}.{slot}"] = jax.make_array_from_callback(p.shape, where, lambda _, zeros=zeros: zeros)
        return found

    # --- the whole of it ---

    def whole(self):
        """The model in this process alone, with the weights of now."""
        return JaxModel(self.config, self.weights(), self.execution.with_(layout=""), self.device)

    def base(self):
        return self.whole().base()

    def _serving(self):
        """The whole model of now, put together once between steps of training."""
        self.served = self.served or self.whole()
        return self.served

    def log_probs(self, ids, targets):
        ids, targets, positions, _ = door.loss_inputs(ids, targets, self.config)
        with self.scope():
            batch = self._batch(ids), self._batch(targets), self._places(positions)
            sums, counts = map(_whole, self.programs.log_probs(self.params, *batch))
        return sums.astype(np.float64), counts

    def forward(self, ids, positions=None, taps=()):
        return self._serving().forward(ids, positions, taps)

    def component(self, path, inputs, cotangent):
        return self.whole().component(path, inputs, cotangent)

    def stream(self, prompts, sampling):
        yield from self._serving().stream(prompts, sampling)

    def generate(self, prompts, sampling):
        return self._serving().generate(prompts, sampling)

    def new_cache(self, batch, capacity):
        raise UserError("A model in a layout has no caches; take its weights into a model without one.")

    def prepare(self, task, inputs, targets=None, sampling=None):
        raise UserError("A model in a layout is not timed task by task; time its training.")

    def close(self):
        """Leave the other processes, once all have come here."""
        if jax.process_count() > 1:
            jax.distributed.shutdown()


def join():
    """Become one of the processes that the environment tells of; at most once, before JAX looks for devices."""
    rank, world = layouts.processes()
    if world == 1 or jax.distributed.is_initialized():
        return
    host, port = layouts.address()
    jax.distributed.initialize(f"{host}:{port + 1}", world, rank)  # the launcher itself may listen at its port


def _refuse(execution):
    """What cannot be spread is refused."""
    if execution.rng == "native":
        raise UserError("rng='native' is for one device in both frameworks; leave it out, or the layout.")
    if execution.compile is False:
        raise UserError("A layout needs compiled programs; leave out compile=False.")


def _check_device(device):
    """All devices of a kind are taken."""
    kinds = {found.platform for found in jax.local_devices()}
    if device not in ("cpu", "cuda") or (device == "cuda" and "gpu" not in kinds):
        raise UserError(f"A layout of JAX is on cpu, or on cuda with all GPUs; {device!r} is not, or there are none.")


def _whole(array):
    """An array with all its parts, as NumPy's."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return _numpy(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
