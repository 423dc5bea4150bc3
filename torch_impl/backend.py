"""The PyTorch wing behind the door (`common/backend.py`): arrays come in and go out as NumPy."""

import functools

import numpy as np
import torch

from common import allocator
from common import backend as door
from common import params as parameters
from common.errors import UserError
from common.taps import Taps

from . import graphs, pth, rng
from .accounts import Accounts
from .attention import empty_cache
from .generate import generate, serve
from .kv_cache import emptied
from .layers import ELEMENTWISE
from .models import MODELS
from .optim import OPTIMIZERS, empty_slots
from .precision import dtype
from .stack import compile_in_place
from .tasks import TASKS
from .train import clipped_gradients, loss_and_grads, train_step


class TorchModel(Accounts):
    """See `common.backend.Model`."""

    title = "PyTorch"

    def __init__(self, config, weights, execution):
        self.config, self.execution = config, execution
        with torch.device("meta"):
            self.net = MODELS[config.family](config, execution.with_(decode="plain"))
        self.served, self.address = None, rng.GENERATORS[execution.rng]
        call = functools.partial(graphs.GRAPHS[execution.graphs].call, device=execution.device)
        self.hidden, self.summed, self.differentiated = map(call, (hidden_states, loss_sum, loss_and_grads))
        self.clipped = call(clipped_gradients, lends=True)  # to the optimizer
        self._fill(parameters.checked(config, weights))
        if execution.compile:
            for block in self.net.model.layers:
                compile_in_place(block)

    def _fill(self, weights):
        """Put the weights into the network, one at a time."""
        for name, array in weights.items():
            module, _, leaf = name.rpartition(".")
            setattr(self.net.get_submodule(module), leaf, torch.nn.Parameter(self._own(array)))

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

    def loss(self, ids, targets):
        ids, targets, positions, count = door.loss_inputs(ids, targets, self.config)
        return self._loss_sum(ids, targets, positions).item() / count

    def _loss_sum(self, ids, targets, positions):
        with torch.inference_mode():
            return self.summed(self.net, self._put(ids), self._put(targets), self._places(positions))

    def gradients(self, ids, targets, dropout=None):
        inputs, targets, positions, count = door.step_inputs(ids, targets, self.config)
        key = door.step_key(self.config, dropout, self.address)
        loss, grads = self._gradients(inputs, targets, positions, count, key)
        return door.Gradients(loss.item(), {name: self._read(g) for name, g in grads.items()})

    def _gradients(self, inputs, targets, positions, count, key):
        arrays = self._put(inputs), self._put(targets), self._places(positions)
        return self.differentiated(self.net, *arrays, count, key)

    def component(self, path, inputs, cotangent):
        module = self.net.get_submodule(path)
        compute = dtype(self.execution.precision.compute)
        x = self._put(np.asarray(inputs)).to(compute).requires_grad_()
        positions = np.arange(x.shape[1], dtype=np.int32)[None]
        out = door.call(module.forward, x, self._places(positions))
        value = (out * self._put(np.asarray(cotangent)).to(out.dtype)).sum()
        own = dict(module.named_parameters(prefix=path))
        grads = torch.autograd.grad(value, [x, *own.values()], materialize_grads=True)
        named = dict(zip(["input", *own], map(_numpy, grads), strict=True))
        return _numpy(out), door.Gradients(value.item(), named)

    def new_cache(self, batch, capacity):
        door.check_size(batch, capacity)
        with torch.inference_mode():
            return door.Cache(empty_cache(self.config, batch, capacity, self.execution), self, batch, capacity)

    def reset(self, cache):
        door.check_cache(cache, self)
        with torch.inference_mode():
            cache.emptied(emptied(cache.layers))

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
        yield from generate(self.net, self._serving, self.config, self.execution, prompts, sampling)

    def _serving(self):
        """The model that decodes, made anew after every step of training."""
        self.served = self.served or serve(self.net, self.config, self.execution)
        return self.served

    def generate(self, prompts, sampling):
        return door.collect(self.stream(prompts, sampling), len(prompts))

    def start_training(self, train, slots=None, step=0):
        self.train, self.step = train, step
        self.decays = door.decays(self.config, train)
        params = dict(self.net.named_parameters())
        if slots is None:
            self.slots = empty_slots(params, parameters.turned(self.config, train.optimizer))
        else:
            self.slots = {name: self._own(slots[name]) for name in slots}

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
            self.train,
            self.decays,
            key,
            OPTIMIZERS[self.execution.optimizer],
            self.clipped,
        )
        self.step += 1
        self.served = None
        return loss, norm

    def weights(self):
        return {name: self._read(p).copy() for name, p in self.net.named_parameters()}

    def state_shapes(self):
        return {name: tuple(p.shape) for name, p in self.net.named_parameters()}

    def optimizer_slots(self):
        return {name: self._read(slot).copy() for name, slot in self.slots.items()}

    def prepare(self, task, inputs, targets=None, sampling=None):
        run = door.pick("task", task, TASKS)(self, inputs, targets, sampling)

        def prepared():
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
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.execution.device)

    def _places(self, positions):
        places = door.places(positions, self.execution)
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
    return net.loss(net, hidden, targets)[0]


class TorchBackend:
    """See `common.backend.Backend`. State dicts in PyTorch's own file format are read and written here too."""

    name, title = "torch", TorchModel.title

    def read_state_dict(self, path):
        return pth.read_state_dict(path)

    def write_state_dict(self, path, weights):
        pth.write_state_dict(path, weights)

    def book_run(self, config, execution, kept, held_out, **settings):
        """The run of the book's chapter 5 with PyTorch's own random numbers; see `torch_impl/book.py`."""
        from .book import run

        return run(config, execution, kept, held_out, **settings)

    def versions(self):
        return {"torch": torch.__version__}

    def flags(self):
        matmul = torch.backends.cuda.matmul.fp32_precision
        return {
            "tf32": matmul == "tf32",
            "fp32_precision": torch.backends.fp32_precision,
            "fp32_precision_cuda_matmul": matmul,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }

    def devices(self):
        found = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        return ["cpu", *found]

    def threads(self):
        return torch.get_num_threads()

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

    def plan(self, config, execution, train, length):
        return None  # nothing is compiled before there are processes

    def build(self, config, weights, execution):
        if execution.layers != "loop":
            raise UserError(f"PyTorch runs its layers in a loop; layers={execution.layers!r} is JAX's.")
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
