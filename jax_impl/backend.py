"""The JAX wing behind the door (`common/backend.py`): arrays come in and go out as NumPy."""

import contextlib
import functools
import os

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from common import adapters, allocator, nf4
from common import backend as door
from common import params as parameters
from common.config import TrainConfig
from common.cores import usable_cores
from common.errors import UserError

from . import rng
from .accounts import Accounts
from .attention import empty_cache
from .generate import generate
from .layers import ELEMENTWISE
from .memory import planned_bytes
from .optim import empty_slots
from .precision import MATMULS, dtype, multiplying, told
from .programs import programs, programs_of
from .quantise import Quantised, dequantise, quantise
from .tasks import TASKS, both_ways


def _scoped(method):
    """Run a method on the model's device, with 64-bit types if its precision is float64."""

    @functools.wraps(method)
    def run(self, *args, **kwargs):
        with self.scope():
            return method(self, *args, **kwargs)

    return run


class JaxModel(Accounts):
    """See `common.backend.Model`."""

    title = "JAX"

    def __init__(self, config, weights, execution, device):
        door.check_form(config, execution)
        self.config, self.execution, self.device = config, execution, device
        with self.scope():
            self.served = None
            if isinstance(weights, Shared):
                self.programs, self.params = programs_of(config, execution, weights.count), dict(weights)
            else:
                self.programs = programs(config, execution)
                self.params = self._folded(self._small(parameters.checked(config, weights)))

    def scope(self):
        """The context of everything this model does: its device, its width of numbers, its kind of products."""
        stack = contextlib.ExitStack()
        stack.enter_context(jax.default_device(self.device))
        stack.enter_context(jax.enable_x64(self.execution.dtype == "float64"))
        stack.enter_context(multiplying(self.execution.products))
        if self.execution.compile is False:
            stack.enter_context(jax.disable_jit())
        return stack

    @_scoped
    def forward(self, ids, positions=None, taps=()):
        ids = door.check_ids(ids, self.config)
        positions = door.positions_of(ids, positions, 0, self.config)
        logits, found = self.programs.forward(self.params, ids, self._places(positions), tuple(taps))
        return door.Forward(_numpy(logits), {name: _numpy(value) for name, value in found.items()})

    @_scoped
    def loss(self, ids, targets):
        ids, targets, positions, count = door.loss_inputs(ids, targets, self.config)
        batch = self._batch(ids), self._batch(targets), self._places(positions)
        return float(self.programs.loss_sum(self.params, *batch)) / count

    @_scoped
    def log_probs(self, ids, targets):
        ids, targets, positions, _ = door.loss_inputs(ids, targets, self.config)
        batch = self._batch(ids), self._batch(targets), self._places(positions)
        sums, counts = self.programs.log_probs(self.params, *batch)
        return _numpy(sums).astype(np.float64), _numpy(counts)

    @_scoped
    def gradients(self, ids, targets, dropout=None):
        inputs, targets, positions, count = door.step_inputs(ids, targets, self.config)
        seed, step = (np.uint32(part) for part in dropout or (0, 0))
        batch = self._batch(inputs), self._batch(targets), self._places(positions)
        loss, grads = self.programs.gradients(self.params, *batch, self._scalar(count), seed, step, dropout is not None)
        return door.Gradients(float(loss), self._named(grads))

    @_scoped
    def component(self, path, inputs, cotangent):
        out, value, grads = both_ways(self, path, inputs, cotangent)()
        return _numpy(out), door.Gradients(float(value), {name: _numpy(g) for name, g in grads.items()})

    @_scoped
    def new_cache(self, batch, capacity):
        door.check_size(batch, capacity, self.config)
        return door.Cache(empty_cache(self.config, batch, capacity, self.execution), self, batch, capacity)

    @_scoped
    def reset(self, cache):
        door.check_cache(cache, self)
        cache.emptied(self.programs.reset(cache.layers))

    @_scoped
    def extend(self, cache, ids, positions=None):
        door.check_cache(cache, self)
        ids = door.check_ids(ids, self.config)
        positions = door.positions_of(ids, positions, cache.used, self.config)
        door.check_room(cache, ids, positions, self)
        logits, layers = self.programs.extend(self.params, cache.layers, ids, positions)
        cache.extended(layers, positions)
        return _numpy(logits)

    @_scoped
    def cache_contents(self, cache):
        return {
            f"layers.{i}.{field.partition('_')[0]}": _numpy(value)
            for i, layer in enumerate(cache.layers)
            for field, value in layer._asdict().items()
            if field != "used"
        }

    def stream(self, prompts, sampling):
        yield from self._generate(prompts, sampling, block=1)

    def generate(self, prompts, sampling):
        return door.collect(self._generate(prompts, sampling, block=sampling.max_new_tokens), len(prompts))

    def _generate(self, prompts, sampling, block):
        own = self.programs, self.params, self._serving, self.config, self.execution
        steps = generate(*own, prompts, sampling, block)
        while True:
            with self.scope():  # not across the yield: the caller's own work is none of ours
                step = next(steps, None)
            if step is None:
                return
            yield step

    def _serving(self):
        """The parameters that decode, made anew after every step of training."""
        self.served = self.served or self.programs.serve(self.params)
        return self.served

    @_scoped
    def start_training(self, train, slots=None, step=0):
        self.train, self.step = train, step
        self.recipe = _recipe(train)
        nf4.check_trained(self.config, self.execution.base, parameters.trained(self.config, train))
        self._fit(train)
        turned, trained = parameters.turned(self.config, train.optimizer), self.programs.trained(train)
        own = {name: p for name, p in self.params.items() if trained.get(name)}  # bits are never trained
        self.slots = empty_slots(own, turned) if slots is None else self._folded(slots)

    def _fit(self, train):
        """Have programs whose scan ends before layers that a run trains otherwise; the numbers stay what they are."""
        fitting = programs(self.config, self.execution, train)
        if fitting is not self.programs:
            own, self.params = self._named(self.params), None
            self.programs, self.served = fitting, None
            self.params = self._folded(own)

    def train_step(self, inputs, targets):
        return door.StepResult(*(float(x) for x in self._train_step(inputs, targets)))

    @_scoped
    def _train_step(self, inputs, targets):
        inputs, targets, positions, count = door.step_inputs(inputs, targets, self.config)
        kind = dtype(self.execution.precision.param)
        self.params, self.slots, loss, norm = self.programs.step(
            self.params,
            self.slots,
            self._batch(inputs),
            self._batch(targets),
            self._places(positions),
            self._scalar(count),
            np.array(self.train.adam_scalars(self.step), kind),
            np.uint32(self.train.seed),
            np.uint32(self.step),
            self.recipe.at(self.step),
        )
        self.step += 1
        self.served = None
        return loss, norm

    def base(self):
        config, _ = adapters.without(self.config, {})
        own = {name: p for name, p in self.params.items() if adapters.belongs(name) is None}
        return JaxModel(config, Shared(self.programs.count, own), self.execution, self.device)

    @_scoped
    def refill(self, weights):
        door.check_refill(self.execution)
        kind, self.served = dtype(self.execution.precision.param), None
        for name, array in self.programs.fold(parameters.checked(self.config, weights)):
            self.params[name] = jnp.array(array, kind)

    def weights(self):
        return self._dequantised(self._named(self.params))

    def _dequantised(self, found):
        """Weights by name, where bits have stood for some."""
        kind, table = dtype(self.execution.precision.param), parameters.table(self.config)
        for name in nf4.kept(self.config, self.execution.base):
            path = name.removesuffix(".weight")
            bits = (jnp.asarray(found.pop(f"{path}.{part}")) for part in nf4.PARTS if f"{path}.{part}" in found)
            with self.scope():
                found[name] = _numpy(dequantise(Quantised(*bits), table[name].shape).astype(kind))
        return found

    def state_shapes(self):
        small, table = nf4.kept(self.config, self.execution.base), parameters.table(self.config)
        own = {name: shape for name, shape in self.programs.shapes.items() if not nf4.is_part(name)}
        return own | {name: table[name].shape for name in small}

    def _small(self, weights):
        """The weights with bits in the place of those that are kept in 4 bits; all others are read when asked for."""
        small, base = nf4.kept(self.config, self.execution.base), self.execution.base
        makers = {name: functools.partial(weights.__getitem__, name) for name in weights if name not in small}
        for name in small:
            for part, array in quantise(weights[name], base, name)._asdict().items():
                if array is not None:
                    makers[f"{name.removesuffix('.weight')}.{part}"] = functools.partial(_numpy, array)
        return parameters.LazyWeights(makers)

    def optimizer_slots(self):
        return self._named(self.slots)

    def _folded(self, arrays):
        """Arrays by their own names, as the programs take them: no second copy of all exists while they are made."""
        return {name: jnp.array(array, self._kind(name)) for name, array in self.programs.fold(arrays)}

    def _kind(self, name):
        """The number format of a parameter; None: bits keep theirs."""
        return None if nf4.is_part(name) else dtype(self.execution.precision.param)

    def _batch(self, array):
        """Rows of ids [..., B, T] as the programs take them."""
        return array

    def _named(self, arrays):
        """Arrays of all layers by their own names, as NumPy's."""
        return self.programs.unfold({name: _numpy(value) for name, value in arrays.items()})

    def prepare(self, task, inputs, targets=None, **more):
        with self.scope():
            run = door.pick("task", task, TASKS)(self, inputs, targets, **more)

        def prepared():
            with self.scope():
                return jax.block_until_ready(run())

        return prepared

    def _places(self, positions):
        return door.places(positions, self.config, self.execution)

    def _scalar(self, number):
        return np.asarray(number, dtype(self.execution.precision.reduce))


class Shared(dict):
    """Parameters of a model, as its programs take them, that another one is made of: they are the same arrays. `count`
    is that of the programs."""

    def __init__(self, count, arrays):
        super().__init__(arrays)
        self.count = count


class JaxBackend:
    """See `common.backend.Backend`."""

    name, title, PLAN = "jax", JaxModel.title, JaxModel.PLAN

    def versions(self):
        return {"jax": jax.__version__, "flax": flax.__version__, "optax": optax.__version__}

    def flags(self):
        return {
            **told("plain"),
            "x64": "in float64 only",
            "threefry_partitionable": jax.config.jax_threefry_partitionable,
        }

    def devices(self):
        found = [f"cuda:{device.id}" for device in jax.devices() if device.platform == "gpu"]
        return ["cpu", *found]

    def threads(self):
        asked = os.environ.get("NPROC", "")
        return int(asked) if asked.isdigit() else len(usable_cores())

    def planned_bytes(self, function, *args, held=()):
        return planned_bytes(function, *args)  # of a compiled function, which takes all that it needs

    def draw(self, kind, address, shape, probability=0.5):
        key = rng.address(*address)
        draws = {
            "split": lambda: jax.random.key_data(rng.split(key, *shape)),
            "bits": lambda: rng.bits(key, shape),
            "uniform": lambda: rng.uniform(key, shape),
            "bernoulli": lambda: rng.bernoulli(key, probability, shape),
        }
        return _numpy(jax.jit(door.pick("kind of draw", kind, draws))())

    def elementwise(self, name, x, dtype_name):
        with jax.enable_x64(dtype_name == "float64"):
            return _numpy(
                jax.jit(door.pick("elementwise function", name, ELEMENTWISE))(jnp.array(x, dtype(dtype_name)))
            )

    def four_bits(self, weight, base):
        bits = quantise(weight, base)  # compiled where models multiply, so there alone here too
        kept = {name: _numpy(part) for name, part in bits._asdict().items() if part is not None}
        return {**kept, "weight": _numpy(jax.jit(dequantise, static_argnums=1)(bits, weight.shape))}

    def plan(self, config, execution, train, length):
        from .plan import plan  # it wants as many devices as the layout has

        return plan(config, execution, train, length)

    def build(self, config, weights, execution):
        if execution.threads is not None and execution.threads != self.threads():
            advice = f"set NPROC={execution.threads} in the environment"
            raise UserError(f"JAX takes its {self.threads()} threads when it starts: {advice}.")
        allocator.check(execution)
        if execution.products not in MATMULS:
            raise UserError(f"XLA widens by itself; products={execution.products!r} is PyTorch's.")
        if execution.gelu == "formula":
            raise UserError("JAX's GELU is the formula already; gelu='formula' is PyTorch's.")
        if execution.gelu == "own" and execution.dtype == "float64" and execution.device != "cpu":
            raise UserError("XLA has cuBLAS compute JAX's own GELU, 1e-10 off in float64: use gelu='plain' there.")
        if execution.graphs != "none":
            raise UserError(f"JAX compiles whole programs; graphs={execution.graphs!r} is PyTorch's.")
        if execution.layout:
            from .layout import SpreadModel  # it may have to join other processes first

            return SpreadModel(config, weights, execution)
        return JaxModel(config, weights, execution, _device(execution.device, self.devices()))


def _device(name, known):
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (name not in known and f"{kind}:0" not in known and name != "cpu"):
        raise UserError(f"JAX sees no device {name!r}; it sees {', '.join(known)}.")
    return jax.local_devices(backend="gpu" if kind == "cuda" else "cpu")[int(index or 0)]


def _recipe(train):
    """What of a run's settings the compiled step depends on; rates, lengths and the seed are arguments. A run that
    clips from a later step on has two programs."""
    clip, what = ("clip_norm", "clip_from"), ("decay", "trained")
    kept = ("optimizer", "momentum", "beta1", "beta2", "adam_eps", "weight_decay", *clip, *what)
    return TrainConfig(**{name: getattr(train, name) for name in kept})


def _numpy(array):
    return np.array(array.astype(jnp.float32) if array.dtype == jnp.bfloat16 else array)


backend = JaxBackend()
