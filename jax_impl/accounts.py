"""What one call of a task costs by the framework's own account: the door's methods that count instead of compute."""

import jax
import numpy as np

from common import backend as door
from common import params as parameters
from common.accounting.tasks import PLANNED, check_counted, input_width
from common.config import COMPILED_KERNELS, SamplingConfig, TrainConfig
from common.errors import UserError

from .attention import empty_cache
from .attention.kernels import fused_attention
from .flops import matmul_flops, xla_flops
from .generate import recipe
from .memory import planned_bytes
from .optim import empty_slots
from .precision import MATMULS, dtype, told
from .tasks import RATE


def fused_kernel(config, execution, masked, batch=1, length=None, gradients=True):
    """What `dot_product_attention` becomes over the model's heads in a call of that shape, without a mask or with one:
    cuDNN, or XLA's own."""
    length = min(128, config.context_length) if length is None else length
    shape = batch, config.num_heads, length, config.embed_dim // config.num_heads
    q = jax.ShapeDtypeStruct(shape, dtype(execution.precision.compute))
    mask = jax.ShapeDtypeStruct((1, 1, length, length), bool) if masked else None

    def summed(q, mask):
        return fused_attention(q, q, q, mask, dtype(execution.precision.reduce)).sum()

    lowered = jax.jit(jax.grad(summed) if gradients else summed).lower(q, mask)
    return "cuDNN" if "cudnn" in lowered.as_text().lower() else "XLA"


class Accounts:
    """The accounts of a model; see `common.backend.Model`."""

    PLAN = "XLA: arguments + outputs + temporaries - aliases"

    def about(self, batch=1, length=None, gradients=True):
        """What the framework chooses by itself, as it chooses for [batch, length] (a few tokens unless it is said) with
        gradients or without: the kernel of fused attention; and how matrices are multiplied where its flags say
        otherwise."""
        products = self.execution.products
        switched = told(products) if products in MATMULS and products != "plain" else {}
        return self._kernels(batch, length, gradients) | switched

    def _kernels(self, *shape):
        if self.execution.attention in COMPILED_KERNELS:
            from .attention.compiled import compiled_kernel

            with self.scope():
                return {"kernel": compiled_kernel(self.config, self.execution)}
        if self.execution.attention not in ("fused", "masked"):
            return {}
        with self.scope():
            return door.kernel_names(lambda masked: fused_kernel(self.config, self.execution, masked, *shape))

    def matmul_flops(self, what, batch, length, path="", slots=None):
        with self.scope():
            rounds = 1 if what == "decode" else None  # one token is one round of the loop on the device
            return matmul_flops(*self._counted(what, batch, length, path, slots), rounds=rounds)

    def reported_flops(self, what, batch, length, path="", slots=None):
        with self.scope():
            return xla_flops(*self._counted(what, batch, length, path, slots))

    def saved_bytes(self, batch, length, path="", dropout=False):
        check_counted("gradients", length, path, None, self.config)
        return None  # XLA decides by itself what to keep: see planned_bytes

    def planned_bytes(self, what, batch, length, path="", slots=None):
        if self.execution.compile is False:
            return None  # nothing is planned for operations that run one by one
        check_counted(what, length, path, slots, self.config, PLANNED)
        with self.scope():
            call = WITHOUT_PRODUCTS[what](self, batch, length) if what in WITHOUT_PRODUCTS else None
            return planned_bytes(*(call or self._counted(what, batch, length, path, slots)))

    def _counted(self, what, batch, length, path, slots):
        """(compiled program, its arguments) of one call; arrays that a program only needs the shape of are shapes."""
        slots = check_counted(what, length, path, slots, self.config)
        programs = self.programs
        if path:
            width, precision = input_width(path, self.config), self.execution.precision
            x = jax.ShapeDtypeStruct((batch, length, width), dtype(precision.compute))
            args = path, self.params, x, self._places(np.arange(length, dtype=np.int32)[None])
            if what == "forward":
                return programs.part, *args
            out = jax.eval_shape(lambda params, x, positions: programs.part(path, params, x, positions), *args[1:])
            return programs.component, *args, jax.ShapeDtypeStruct(out.shape, dtype(precision.reduce))
        ids = np.zeros((batch, length), np.int32)
        inputs, targets, positions, count = door.step_inputs(ids, ids, self.config)
        zero, scalar, places = np.uint32(0), self._scalar(count), self._places(positions)
        if what == "forward":
            return programs.forward, self.params, inputs[0], places, ()
        if what == "gradients":
            return programs.gradients, self.params, inputs, targets, places, scalar, zero, zero, False
        if what == "train":
            run = getattr(self, "recipe", TrainConfig())
            moved, trained = parameters.turned(self.config, run.optimizer), programs.trained(run)
            own = {name: p for name, p in self.params.items() if trained.get(name)}  # bits are never trained
            averages = jax.eval_shape(lambda own: empty_slots(own, moved), own)
            rates = np.zeros(len(run.adam_scalars(0)), dtype(self.execution.precision.param))
            return programs.step, self.params, averages, inputs, targets, places, scalar, rates, zero, zero, run
        caches = jax.eval_shape(lambda: empty_cache(self.config, batch, slots, self.execution))
        if what == "prefill":
            return programs.prefill, self.params, caches, inputs[0], positions
        row, greedy = np.zeros(batch, np.int32), recipe(SamplingConfig())
        served = jax.eval_shape(programs.serve, self.params)
        return programs.decode, served, caches, row, row, row.astype(bool), zero, np.int32(1), 1, greedy


def _optimizer(model, batch, length):
    if not hasattr(model, "slots"):
        raise UserError("An optimizer's step has memory to plan once `start_training` has been called.")
    rates = np.zeros(len(model.recipe.adam_scalars(0)), dtype(model.execution.precision.param))
    grads = jax.eval_shape(lambda: model.params)
    return model.programs.optimize, model.params, grads, model.slots, rates, model.recipe


def _dropout(model, batch, length):
    x = jax.ShapeDtypeStruct((batch, length, model.config.embed_dim), np.float32)
    return model.programs.dropout, x, RATE, np.uint32(0)


def _sample(model, batch, length):
    logits = jax.ShapeDtypeStruct((batch, model.config.vocab_size), np.float32)
    positions, drawn = np.zeros(batch, np.int32), recipe(SamplingConfig(temperature=1.0))
    return model.programs.choose, logits, positions, np.uint32(0), drawn


WITHOUT_PRODUCTS = {"optimizer": _optimizer, "dropout": _dropout, "sample": _sample}  # (program, its arguments)
