"""The compiled programs of one model: `jax.jit` over plain dictionaries of arrays.

NNX describes the model. Its description is split from its values once; every program takes the values as a flat
dictionary (name -> array) and puts the module together again while it is traced. One-sided: PyTorch has no such step.
"""

import functools
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from common import backend as door
from common import nf4
from common import params as parameters
from common.accounting import parts
from common.errors import UserError
from common.rng import DROPOUT
from common.taps import Taps

from . import generate, rng
from .kv_cache import emptied
from .layers import dropout
from .loss import batch_loss
from .models import MODELS
from .optim import OPTIMIZERS, clip_by_global_norm, update
from .placing import spread_of
from .preference import row_log_probs
from .sampling import sample
from .stack import FOLDS, place, repeats
from .train import loss_and_grads, train_step

# Linux gives a process 65,530 mappings of memory; a compiled program takes about six, and for lack of one XLA aborts.
MAPPINGS = 25_000


def donated(function, which, **how):
    """A program whose results take over the memory of these arguments."""
    return jax.jit(function, donate_argnums=which, **how)


def kept(function, which, **how):
    """A program whose results lie beside all that it was given."""
    return jax.jit(function, **how)


BUFFERS = {"donated": donated, "kept": kept}


class Programs:
    """What is compiled for one (config, execution), whose scan, if it is one, goes over `count` periods of layers; take
    it from `programs`, which all models of that kind share."""

    def __init__(self, config, execution, count):
        self.config, self.execution, self.address = config, execution, rng.GENERATORS[execution.rng]
        # every layer by itself: for components, and for decoding, which would copy what it takes out of a fold
        self.apart, state = graph_of(config, execution.with_(layers="loop"))
        forms = generate.WHILE_DECODING[execution.decode] | parts.decoding(config, execution)
        self.serving, _ = graph_of(config, execution.with_(layers="loop", **forms))
        self.graph = self.apart if execution.layers == "loop" else folded_graph(config, execution, count)
        self.count, self.folds = count, {"period": config.period, "count": count}
        self.fold, self.unfold = (functools.partial(way, **self.folds) for way in FOLDS[execution.layers])
        self.spread, self.adam = spread_of(config, execution), OPTIMIZERS[execution.optimizer]
        self.shapes = {".".join(map(str, path)): value.get_value().shape for path, value in nnx.to_flat_state(state)}
        donating = BUFFERS[execution.buffers]
        self.forward = jax.jit(self._forward, static_argnums=3)
        self.loss_sum = jax.jit(self._loss_sum)
        self.log_probs = jax.jit(self._log_probs)
        self.gradients = jax.jit(self._gradients, static_argnums=7)
        self.step = donating(self._step, (0, 1), static_argnums=9)
        self.part = jax.jit(self._part, static_argnums=0)
        self.component = jax.jit(self._component, static_argnums=0)
        self.extend = donating(self._extend, 1)
        self.reset = donating(emptied, 0, keep_unused=True)  # whose memory the result takes over
        self.prefill = donating(self._prefill, 1)
        self.choose = jax.jit(self._choose, static_argnums=3)
        self.serve = jax.jit(self._serve)
        self.optimize = donating(self._optimize, (0, 2), static_argnums=4)
        self.dropout = jax.jit(self._dropout, static_argnums=1)
        self.next_token = jax.jit(self._next_token, static_argnums=5)
        self.decode = donating(self._decode, 1, static_argnums=(7, 8))

    def rebuild(self, params):
        """The module with these values (folded as the execution wants), while tracing."""
        if self.spread is None:
            return nnx.merge(self.graph, nest(params))
        return self.spread.around(nnx.merge(self.graph, nest(self.spread.gathered(params))))

    def place(self, name):
        """(folded name, repeat) of a parameter; see `stack.place`."""
        return (name, None) if self.execution.layers == "loop" else place(name, **self.folds)

    def trained(self, train):
        """Which parameters a run trains, by their folded names; these programs must be made for it."""
        own, found = parameters.trained(self.config, train), {}
        for name, marks in self.fold({name: np.array(mark) for name, mark in own.items()}):
            if marks.any() != marks.all():
                raise UserError(f"Of what a scan holds together in {name}, a part is trained: use layers='loop'.")
            found[name] = bool(marks.all())
        return found

    def _forward(self, params, ids, positions, wanted):
        taps = Taps(wanted)
        logits, _ = self.rebuild(params)(ids, positions, taps=taps)
        return logits, taps.found

    def _loss_sum(self, params, ids, targets, positions):
        model = self.rebuild(params)
        return batch_loss(model, model.model(ids, positions)[0], targets)[0]

    def _log_probs(self, params, ids, targets, positions):
        return row_log_probs(self.rebuild(params)(ids, positions)[0], targets)

    def _gradients(self, params, inputs, targets, positions, count, seed, step, dropout):
        key = door.step_key(self.config, (seed, step) if dropout else None, self.address)
        loss, grads = loss_and_grads(self.rebuild, params, inputs, targets, positions, count, key)
        return loss, self._pinned(grads)

    def _pinned(self, arrays):
        """Results that lie where the next call wants them."""
        return arrays if self.spread is None else self.spread.pin(arrays)

    def _step(self, params, slots, inputs, targets, positions, count, scalars, seed, step, train):
        key = door.step_key(self.config, (seed, step), self.address)
        decays = door.decays(self.config, train)
        batch = inputs, targets, positions, count
        which = decays, self.trained(train), key, self.adam
        params, slots, *told = train_step(self.rebuild, params, slots, *batch, scalars, train, *which)
        return self._pinned(params), self._pinned(slots), *told

    def _part(self, path, params, x, positions):
        return self._call(path, self.unfold(params), x, positions)

    def _call(self, path, params, x, positions):
        module = nnx.merge(self.apart, nest(params))
        for name in path.split("."):
            module = module[int(name)] if name.isdigit() else getattr(module, name)
        return door.call(module.__call__, x, positions)

    def _component(self, path, params, x, positions, cotangent):
        params = self.unfold(params)
        own = {n: value for n, value in params.items() if n.startswith(f"{path}.") and not nf4.is_part(n)}

        def value(own, x):
            out = self._call(path, {**params, **own}, x, positions)
            return (out * cotangent.astype(out.dtype)).sum(), out

        (total, out), (grads, grad_x) = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(own, x)
        return out, total, {"input": grad_x, **grads}

    def _extend(self, params, caches, ids, positions):
        return self.rebuild(params)(ids, positions, caches)

    def _prefill(self, params, caches, ids, positions):
        model = self.rebuild(params)
        hidden, caches = model.model(ids, positions, caches)
        return model.head(hidden[:, -1]), caches

    def _next_token(self, params, ids, positions, next_positions, seed, sampling):
        model = self.rebuild(params)
        hidden, _ = model.model(ids, positions)
        return sample(model.head(hidden[:, -1]), next_positions, sampling, seed, self.address)

    def _choose(self, logits, positions, seed, sampling):
        return sample(logits, positions, sampling, seed, self.address)

    def _serve(self, params):
        return generate.serve(self.unfold(params), self.execution)

    def _optimize(self, params, grads, slots, scalars, train):
        grads, norm = clip_by_global_norm(grads, train.clip_norm)
        decays = door.decays(self.config, train)
        return *update(params, grads, slots, scalars, train, decays, self.adam), norm

    def _dropout(self, x, rate, seed):
        return dropout(x, rate, self.address(seed, DROPOUT), 0)

    def _decode(self, params, caches, token, positions, ended, seed, count, size, sampling):
        model = nnx.merge(self.serving, nest(params))
        return generate.decode(model, caches, token, positions, ended, seed, count, size, sampling, self.address)


def graph_of(config, execution):
    """(description, shapes) of a model, without making it."""
    return nnx.split(nnx.eval_shape(lambda: MODELS[config.family](config, execution)))


def folded_graph(config, execution, count):
    """The description of a model of one period of blocks, which stands for `count` of them, and of the blocks behind
    the last of these. Blocks that differ otherwise are refused."""
    period = config.period
    blocks = nnx.eval_shape(lambda: MODELS[config.family](config, execution)).model.layers
    graphs = [nnx.graphdef(block) for block in blocks]
    if any(graph != graphs[index % period] for index, graph in enumerate(graphs)):
        raise UserError("The blocks of this model differ from each other: use layers='loop'.")
    return graph_of(config.with_(num_layers=config.num_layers - (count - 1) * period), execution)[0]


def programs(config, execution, train=parameters.EVERYTHING):
    """The programs of a kind of model that is trained so, made once; without settings all layers are alike."""
    loops = execution.layers == "loop"
    return programs_of(config, execution, 1 if loops else repeats(config, parameters.trained(config, train)))


@functools.lru_cache(maxsize=64)
def programs_of(config, execution, count):
    """The same by how many periods of layers a scan goes over; a loop has none to count."""
    make_room()
    return Programs(config, execution, count)


def make_room():
    """Forget all that this process compiled if it has too many mappings; what is called again compiles anew."""
    try:
        count = Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:  # another system, which has other limits
        return
    if count > MAPPINGS:
        jax.clear_caches()


def nest(flat):
    """{"layers.0.weight": x} -> {"layers": {0: {"weight": x}}}, the form that NNX merges."""
    tree = {}
    for name, value in flat.items():
        *path, leaf = (int(part) if part.isdigit() else part for part in name.split("."))
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        at[leaf] = value
    return tree
