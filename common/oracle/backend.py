"""The oracle behind the door: everything in float64, gradients by complex steps (so: small models only)."""

import numpy as np

from common import adapters, rng
from common import backend as door
from common import params as parameters
from common.config import STRATEGIES, Execution
from common.errors import UserError
from common.taps import Taps

from .attention import empty_cache
from .generate import generate
from .gradient import gradient
from .kv_cache import emptied
from .layers import ELEMENTWISE
from .loss import batch_loss
from .models import MODELS
from .optim import empty_slots
from .preference import row_log_probs
from .quantise import dequantise, quantise
from .train import loss_and_grads, mean_loss, train_step

DIFFERENTIABLE = 50_000  # numbers: each costs one forward pass


class OracleModel:
    """See `common.backend.Model`."""

    title = "NumPy oracle"

    def __init__(self, config, weights, execution):
        door.check_form(config, execution)
        self.config, self.execution = config, execution
        self.params = {
            name: np.asarray(array, np.float64) for name, array in parameters.checked(config, weights).items()
        }
        self.net = self.rebuild(self.params)

    def rebuild(self, params):
        return MODELS[self.config.family](self.config).load(params)

    def forward(self, ids, positions=None, taps=()):
        ids = door.check_ids(ids, self.config)
        found = Taps(taps)
        logits, _ = self.net(ids, door.positions_of(ids, positions, 0, self.config), taps=found)
        return door.Forward(logits, found.found)

    def loss(self, ids, targets):
        ids, targets, positions, count = door.loss_inputs(ids, targets, self.config)
        return float(batch_loss(self.net, self.net.model(ids, positions)[0], targets)[0] / count)

    def log_probs(self, ids, targets):
        ids, targets, positions, _ = door.loss_inputs(ids, targets, self.config)
        return row_log_probs(self.net(ids, positions)[0], targets)

    def loss_of(self, params, ids, targets, dropout=None):
        """The mean loss of a step's arrays ([A, B, T] or [B, T]) as a function of the parameters (complex ones too)."""
        inputs, targets, positions, count = door.step_inputs(ids, targets, self.config)
        key = door.step_key(self.config, dropout, rng.address)
        return mean_loss(self.rebuild(params), inputs, targets, positions, count, key)

    def gradients(self, ids, targets, dropout=None):
        self._check_size()
        inputs, targets, positions, count = door.step_inputs(ids, targets, self.config)
        key = door.step_key(self.config, dropout, rng.address)
        loss, grads = loss_and_grads(self.rebuild, self.params, inputs, targets, positions, count, key)
        return door.Gradients(float(loss), grads)

    def component(self, path, inputs, cotangent):
        positions = np.arange(inputs.shape[1], dtype=np.int32)[None]
        inputs, cotangent = np.asarray(inputs, np.float64), np.asarray(cotangent, np.float64)
        own = {name: value for name, value in self.params.items() if name.startswith(f"{path}.")}

        def run(params):
            module = self.rebuild({**self.params, **params}).at(path)
            return door.call(module.__call__, params["input"], positions)

        def scalar(params):
            return (run(params) * cotangent).sum()

        variables = {**own, "input": inputs}
        return run(variables), door.Gradients(float(scalar(variables)), gradient(scalar, variables))

    def new_cache(self, batch, capacity):
        door.check_size(batch, capacity, self.config)
        return door.Cache(empty_cache(self.config, batch, capacity), self, batch, capacity)

    def reset(self, cache):
        door.check_cache(cache, self)
        cache.emptied(emptied(cache.layers))

    def extend(self, cache, ids, positions=None):
        door.check_cache(cache, self)
        ids = door.check_ids(ids, self.config)
        positions = door.positions_of(ids, positions, cache.used, self.config)
        door.check_room(cache, ids, positions, self)
        logits, layers = self.net(ids, positions, cache.layers)
        cache.extended(layers, positions)
        return logits

    def cache_contents(self, cache):
        return {
            f"layers.{i}.{field.partition('_')[0]}": value
            for i, layer in enumerate(cache.layers)
            for field, value in layer._asdict().items()
            if field != "used"
        }

    def stream(self, prompts, sampling):
        yield from generate(self.net, self.config, prompts, sampling)

    def generate(self, prompts, sampling):
        return door.collect(self.stream(prompts, sampling), len(prompts))

    def start_training(self, train, slots=None, step=0):
        self._check_size()
        self.train, self.step = train, step
        self.decays, self.trained = door.decays(self.config, train), parameters.trained(self.config, train)
        turned, own = (
            parameters.turned(self.config, train.optimizer),
            {n: p for n, p in self.params.items() if self.trained[n]},
        )
        self.slots = empty_slots(own, turned) if slots is None else {k: np.asarray(slots[k]) for k in slots}

    def train_step(self, inputs, targets):
        inputs, targets, positions, count = door.step_inputs(inputs, targets, self.config)
        key = door.step_key(self.config, (self.train.seed, self.step), rng.address)
        scalars = self.train.adam_scalars(self.step)
        self.params, self.slots, loss, norm = train_step(
            self.rebuild,
            self.params,
            self.slots,
            inputs,
            targets,
            positions,
            count,
            scalars,
            self.train.at(self.step),
            self.decays,
            self.trained,
            key,
        )
        self.net, self.step = self.rebuild(self.params), self.step + 1
        return door.StepResult(float(loss), float(norm))

    def _check_size(self):
        size = parameters.count(self.config)
        if size > DIFFERENTIABLE:
            limit = f"at most {DIFFERENTIABLE:,} parameters, not {size:,}"
            raise UserError(f"The oracle differentiates one number at a time: it takes models of {limit}.")

    def base(self):
        return OracleModel(*adapters.without(self.config, self.params), self.execution)

    def weights(self):
        return dict(self.params)

    def state_shapes(self):
        return {name: value.shape for name, value in self.params.items()}

    def optimizer_slots(self):
        return dict(self.slots)


class OracleBackend:
    """See `common.backend.Backend`."""

    name, title = "numpy", OracleModel.title

    def versions(self):
        return {"numpy": np.__version__}

    def flags(self):
        return {}

    def devices(self):
        return ["cpu"]

    def threads(self):
        return 1

    def draw(self, kind, address, shape, probability=0.5):
        key = rng.address(*address)
        draws = {
            "split": lambda: rng.split(key, *shape),
            "bits": lambda: rng.bits(key, shape),
            "uniform": lambda: rng.uniform(key, shape),
            "bernoulli": lambda: rng.bernoulli(key, probability, shape),
        }
        return door.pick("kind of draw", kind, draws)()

    def elementwise(self, name, x, dtype_name):
        if dtype_name != "float64":
            raise UserError(f"The oracle computes in float64 only, not in {dtype_name}.")
        return door.pick("elementwise function", name, ELEMENTWISE)(np.asarray(x, np.float64))

    def four_bits(self, weight, base):
        bits = quantise(weight, base)
        kept = {name: part for name, part in bits._asdict().items() if part is not None}
        return {**kept, "weight": dequantise(bits, weight.shape)}

    def build(self, config, weights, execution):
        if execution.dtype != "float64":
            raise UserError(f"The oracle computes in float64 only, not in {execution.dtype}.")
        if execution.compile or execution.layers != "loop":
            raise UserError("The oracle neither compiles nor scans: it is plain NumPy.")
        if execution.layout:
            raise UserError(f"The oracle computes in one process: leave layout {execution.layout} out.")
        for name in ("attention", *STRATEGIES):
            if getattr(execution, name) != getattr(Execution(), name):
                raise UserError(f"The oracle has no fast paths: leave {name}={getattr(execution, name)!r} out.")
        if execution.device != "cpu":
            raise UserError(f"The oracle runs on the cpu only, not on {execution.device!r}.")
        return OracleModel(config, weights, execution)


backend = OracleBackend()
