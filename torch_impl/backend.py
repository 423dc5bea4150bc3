"""The PyTorch wing behind the door (`common/backend.py`): arrays come in and go out as NumPy."""

import functools

import numpy as np
import torch

from common import adapters, allocator, nf4
from common import backend as door
from common import params as parameters
from common.errors import UserError
from common.preference import Pairs
from common.taps import Taps

from . import graphs, pth, rng
from .accounts import Accounts
from .attention import empty_cache
from .generate import generate, serve
from .kv_cache import emptied
from .layers import ELEMENTWISE
from .loss import batch_loss
from .memory import live_bytes
from .models import MODELS
from .optim import OPTIMIZERS, empty_slots
from .precision import dtype, multiplying, told
from .preference import row_log_probs
from .quantise import Quantised, QuantisedLinear, dequantise, quantise
from .stack import compile_in_place
from .tasks import TASKS, both_ways
from .train import clipped_gradients, loss_and_grads, train_step


def _scoped(method):
    """Run a method with the model's kind of matrix products."""

    @functools.wraps(method)
    def run(self, *args, **kwargs):
        with self.scope():
            return method(self, *args, **kwargs)

    return run


class TorchModel(Accounts):
    """See `common.backend.Model`."""

    title = "PyTorch"

    def __init__(self, config, weights, execution):
        door.check_form(config, execution)
        self.config, self.execution = config, execution
        with torch.device("meta"):
            self.net = MODELS[config.family](config, execution.with_(decode="plain"))
        self.served, self.address = None, rng.GENERATORS[execution.rng]
        call = functools.partial(graphs.GRAPHS[execution.graphs].call, device=execution.device)
        self.hidden, self.summed, self.differentiated = map(call, (hidden_states, loss_sum, loss_and_grads))
        self.clipped = call(clipped_gradients, lends=True)  # to the optimizer
        self._fill(weights if isinstance(weights, Shared) else parameters.checked(config, weights))
        if execution.compile:
            for block in self.net.model.layers:
                compile_in_place(block)

    def scope(self):
        """The context of everything that this model multiplies."""
        return multiplying(self.execution.products)

    def _fill(self, weights):
        """Put the weights into the network, one at a time."""
        small = nf4.kept(self.config, self.execution.base)
        for name, array in weights.items():
            module, _, leaf = name.rpartition(".")
            if name in small:
                self.net.get_submodule(module).fill(self._bits(name, array))
                continue
            own = array if isinstance(array, torch.nn.Parameter) else torch.nn.Parameter(self._own(array))
            setattr(self.net.get_submodule(module), leaf, own)

    def _bits(self, name, array):
        """What stands for a matrix, unless it is that already."""
        return array if isinstance(array, Quantised) else quantise(self._own(array), self.execution.base, name)

    def _small(self):
        """The linear maps whose matrices are kept in 4 bits, by the names of these."""
        return {f"{path}.weight": m for path, m in self.net.named_modules() if isinstance(m, QuantisedLinear)}

    def _everything(self):
        """All parameters by name; those that are kept in 4 bits are dequantised."""
        return dict(self.net.named_parameters()) | {name: one.weight for name, one in self._small().items()}

    @_scoped
    def forward(self, ids, positions=None, taps=()):
        ids = door.check_ids(ids, self.config)
        positions = door.positions_of(ids, positions, 0, self.config)
        found = Taps(taps)
        with torch.inference_mode():
            if taps:
                logits, _ = self.net(self._put(ids), self._places(positions), taps=found)
            else:
                logits = self._logits(self._put(ids), self._places(positions))
        return door.Forward(_numpy(logits), {name: _numpy(value) for name, value in found.found.items()})

    def _logits(self, ids, positions):
        return self.net.head(self.hidden(self.net, ids, positions))

    @_scoped
    def loss(self, ids, targets):
        ids, targets, positions, count = door.loss_inputs(ids, targets, self.config)
        return self._loss_sum(ids, targets, positions).item() / count

    def _loss_sum(self, ids, targets, positions):
        with torch.inference_mode():
            return self.summed(self.net, self._put(ids), self._put(targets), self._places(positions))

    @_scoped
    def log_probs(self, ids, targets):
        ids, targets, positions, _ = door.loss_inputs(ids, targets, self.config)
        with torch.inference_mode():
            sums, counts = log_probs(self.net, self._put(ids), self._put(targets), self._places(positions))
        return _numpy(sums).astype(np.float64), _numpy(counts)

    @_scoped
    def gradients(self, ids, targets, dropout=None):
        inputs, targets, positions, count = door.step_inputs(ids, targets, self.config)
        key = door.step_key(self.config, dropout, self.address)
        loss, grads = self._gradients(inputs, targets, positions, count, key)
        return door.Gradients(loss.item(), {name: self._read(g) for name, g in grads.items()})

    def _gradients(self, inputs, targets, positions, count, key):
        arrays = self._put(inputs), self._put(targets), self._places(positions)
        return self.differentiated(self.net, *arrays, count, key)

    @_scoped
    def component(self, path, inputs, cotangent):
        out, value, grads = both_ways(self, path, inputs, cotangent)()
        return _numpy(out), door.Gradients(value.item(), {name: _numpy(g) for name, g in grads.items()})

    def new_cache(self, batch, capacity):
        door.check_size(batch, capacity, self.config)
        with torch.inference_mode():
            return door.Cache(empty_cache(self.config, batch, capacity, self.execution), self, batch, capacity)

    def reset(self, cache):
        door.check_cache(cache, self)
        with torch.inference_mode():
            cache.emptied(emptied(cache.layers))

    @_scoped
    def extend(self, cache, ids, positions=None):
        door.check_cache(cache, self)
        ids = door.check_ids(ids, self.config)
        positions = door.positions_of(ids, positions, cache.used, self.config)
        door.check_room(cache, ids, positions, self)
        with torch.inference_mode():
            logits, layers = self.net(self._put(ids), self._put(positions), cache.layers)
        cache.extended(layers, positions)
        return _numpy(logits)

    def cache_contents(self, cache):
        return {
            f"layers.{i}.{field.partition('_')[0]}": _numpy(value)
            for i, layer in enumerate(cache.layers)
            for field, value in layer._asdict().items()
            if field != "used"
        }

    def stream(self, prompts, sampling):
        steps = generate(self.net, self._serving, self.config, self.execution, prompts, sampling)
        while True:
            with self.scope():  # not across the yield: the caller's own work is none of ours
                step = next(steps, None)
            if step is None:
                return
            yield step

    def _serving(self):
        """The model that decodes, made anew after every step of training."""
        self.served = self.served or serve(self.net, self.config, self.execution)
        return self.served

    def generate(self, prompts, sampling):
        return door.collect(self.stream(prompts, sampling), len(prompts))

    def start_training(self, train, slots=None, step=0):
        self.train, self.step = train, step
        self.decays, self.trained = door.decays(self.config, train), parameters.trained(self.config, train)
        nf4.check_trained(self.config, self.execution.base, self.trained)
        params = {name: p for name, p in self.net.named_parameters() if self.trained[name]}
        if slots is None:
            self.slots = empty_slots(params, parameters.turned(self.config, train.optimizer))
        else:
            self.slots = {name: self._own(slots[name]) for name in slots}

    @_scoped
    def train_step(self, inputs, targets):
        return door.StepResult(*(x.item() for x in self._train_step(inputs, targets)))

    def _train_step(self, inputs, targets):
        inputs, targets, positions, count = door.step_inputs(inputs, targets, self.config)
        key = door.step_key(self.config, (self.train.seed, self.step), self.address)
        self.slots, loss, norm = train_step(
            self.net,
            self.slots,
            self._put(inputs),
            self._put(targets),
            self._places(positions),
            count,
            self.train.adam_scalars(self.step),
            self.train.at(self.step),
            self.decays,
            self.trained,
            key,
            OPTIMIZERS[self.execution.optimizer],
            self.clipped,
        )
        self.step += 1
        self.served = None
        return loss, norm

    def base(self):
        bits = {name: one.bits for name, one in self._small().items()}
        config, names = adapters.without(self.config, dict(self.net.named_parameters()) | bits)
        return TorchModel(config, Shared(names), self.execution)

    def refill(self, weights):
        door.check_refill(self.execution)
        own, self.served = dict(self.net.named_parameters()), None
        with torch.no_grad():
            for name, array in parameters.checked(self.config, weights).items():
                own[name].copy_(self._own(array))

    def weights(self):
        return {name: self._read(p).copy() for name, p in self._everything().items()}

    def state_shapes(self):
        return {name: tuple(p.shape) for name, p in (dict(self.net.named_parameters()) | self._small()).items()}

    def optimizer_slots(self):
        return {name: self._read(slot).copy() for name, slot in self.slots.items()}

    def prepare(self, task, inputs, targets=None, **more):
        with self.scope():
            run = door.pick("task", task, TASKS)(self, inputs, targets, **more)

        def prepared():
            with self.scope():
                found = run()
                self._wait()
                return found

        return prepared

    def _own(self, array):
        """A tensor in the precision of parameters that shares memory with nobody else."""
        kind = dtype(self.execution.precision.param)
        return torch.tensor(np.ascontiguousarray(_plain(array)), dtype=kind, device=self.execution.device)

    def _read(self, tensor):
        """A parameter, or what has its shape, as NumPy's."""
        return _numpy(tensor)

    def _put(self, array):
        if isinstance(array, Pairs):
            return array.put(self._put)
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.execution.device)

    def _places(self, positions):
        places = door.places(positions, self.config, self.execution)
        return None if places is None else self._put(places)

    def _wait(self):
        if self.execution.device.startswith("cuda"):
            torch.cuda.synchronize(self.execution.device)


def hidden_states(net, ids, positions):
    """What the head makes logits of."""
    return net.model(ids, positions)[0]


def loss_sum(net, ids, targets, positions):
    """The sum of a batch's losses in nats, without dropout."""
    hidden, _ = net.model(ids, positions)
    return batch_loss(net, hidden, targets)[0]


def log_probs(net, ids, targets, positions):
    """(sums, counts) by row of log p of targets, without dropout."""
    return row_log_probs(net(ids, positions)[0], targets)


class Shared(dict):
    """Parameters of a network that another one is made of: they are the same numbers in both."""


class TorchBackend:
    """See `common.backend.Backend`. State dicts in PyTorch's own file format are read and written here too."""

    name, title, PLAN = "torch", TorchModel.title, TorchModel.PLAN

    def read_state_dict(self, path):
        return pth.read_state_dict(path)

    def write_state_dict(self, path, weights):
        pth.write_state_dict(path, weights)

    def keep(self, array, execution):
        """A parameter that is the memory of this array, which must lie as parameters do."""
        if execution.device != "cpu" or array.dtype.name != execution.precision.param:
            told = f"{execution.precision.param} on {execution.device}"
            raise UserError(f"Parameters in {told} cannot be the memory of an array of {array.dtype}: copy it.")
        return torch.nn.Parameter(torch.from_numpy(array))

    def book_run(self, config, execution, kept, held_out, train, **settings):
        """A training run of the book's with PyTorch's own random numbers; see `torch_impl/book.py`."""
        from .book import run

        return run(config, execution, kept, held_out, train, **settings)

    def versions(self):
        return {"torch": torch.__version__}

    def flags(self):
        return {**told("plain"), "deterministic": torch.are_deterministic_algorithms_enabled()}

    def devices(self):
        found = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        return ["cpu", *found]

    def threads(self):
        return torch.get_num_threads()

    def planned_bytes(self, function, *args, held=()):
        return live_bytes(held, function, *args)

    def draw(self, kind, address, shape, probability=0.5):
        key = rng.address(*address)
        if kind == "split":
            return rng.split(key, *shape)
        if kind == "bits":
            return _numpy(rng.bits(key, shape)).view(np.uint32)
        draws = {
            "uniform": lambda: rng.uniform(key, shape),
            "bernoulli": lambda: rng.bernoulli(key, probability, shape),
        }
        return _numpy(door.pick("kind of draw", kind, draws)())

    def elementwise(self, name, x, dtype_name):
        tensor = torch.from_numpy(np.ascontiguousarray(x)).to(dtype(dtype_name))
        return _numpy(door.pick("elementwise function", name, ELEMENTWISE)(tensor))

    def four_bits(self, weight, base):
        bits = quantise(torch.from_numpy(np.ascontiguousarray(weight)), base)
        kept = {name: _numpy(part) for name, part in bits._asdict().items() if part is not None}
        return {**kept, "weight": _numpy(dequantise(bits, weight.shape))}

    def plan(self, config, execution, train, length):
        return None  # nothing is compiled before there are processes

    def build(self, config, weights, execution):
        if execution.layers == "scan":
            raise UserError(f"PyTorch runs its layers in a loop; layers={execution.layers!r} is JAX's.")
        if execution.layers == "checkpointed" and execution.compile:
            raise UserError("A compiled block chooses by itself what it keeps: leave out compile, or 'checkpointed'.")
        if execution.buffers != "donated":
            raise UserError(f"PyTorch writes in place what moves; buffers={execution.buffers!r} is JAX's.")
        if execution.gelu == "own":
            raise UserError("PyTorch's GELU is an operation of its own already; gelu='own' is JAX's.")
        if execution.device not in [*self.devices(), *(["cuda"] if torch.cuda.is_available() else [])]:
            raise UserError(f"PyTorch sees no device {execution.device!r}; it sees {', '.join(self.devices())}.")
        graphs.check(execution)
        allocator.check(execution)
        if execution.threads is not None:
            torch.set_num_threads(execution.threads)
        torch.backends.fp32_precision = "ieee"  # no TF32 behind the caller's back
        if execution.layout:
            from .layout import SpreadModel  # PyTorch's engines are imported by those who use them

            return SpreadModel(config, weights, execution)
        return TorchModel(config, weights, execution)


def _plain(array):
    """bfloat16 arrays as float32: NumPy's bfloat16 is a guest that torch does not know."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _numpy(tensor):
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()


backend = TorchBackend()
