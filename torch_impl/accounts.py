"""What one call of a task costs by the framework's own account: the door's methods that count instead of compute.

Blocks are counted as they run eagerly, whatever `Execution.compile` says.
"""

import contextlib

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common import backend as door
from common import params
from common.accounting import parts
from common.accounting.tasks import PLANNED, check_counted, input_width
from common.config import COMPILED_KERNELS
from common.errors import UserError

from . import rng
from .attention.kernels import fused_attention
from .flops import matmul_flops
from .generate import serve
from .masks import causal_mask
from .memory import live_bytes, saved_bytes
from .precision import MATMULS, dtype, told
from .tasks import chosen, dropped, optimised
from .train import loss_and_grads, objective


def fused_kernel(config, execution, masked, batch=1, length=None, gradients=True):
    """The name of the kernel that runs over the model's heads in a call of that shape, without a mask or with one."""
    length = min(128, config.context_length) if length is None else length
    shape = batch, config.num_heads, length, config.embed_dim // config.num_heads
    q = torch.zeros(shape, dtype=dtype(execution.precision.compute), device=execution.device, requires_grad=gradients)
    positions = torch.arange(length, dtype=torch.int32, device=q.device)[None] if masked else None
    with _Seen() as seen:
        fused_attention(q, q, q, causal_mask(positions, positions), dtype(execution.precision.reduce))
    begin = "aten::_scaled_dot_product_"
    return next((name.removeprefix(begin) for name in seen.names if name.startswith(begin)), "plain operations")


class _Seen(TorchDispatchMode):
    """The names of the operations that are dispatched."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


class Accounts:
    """The accounts of a model; see `common.backend.Model`."""

    PLAN = "live tensors at the peak (MemTracker), run eagerly"

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

            return {"kernel": compiled_kernel(self.config, self.execution)}
        if self.execution.attention not in ("fused", "masked"):
            return {}
        return door.kernel_names(lambda masked: fused_kernel(self.config, self.execution, masked, *shape))

    def matmul_flops(self, what, batch, length, path="", slots=None):
        with self._eagerly():
            return matmul_flops(*self._counted(what, batch, length, path, slots))

    def reported_flops(self, what, batch, length, path="", slots=None):
        check_counted(what, length, path, slots, self.config)
        return None  # no compiler, so no estimate of one

    def saved_bytes(self, batch, length, path="", dropout=False):
        if path and dropout:
            raise UserError(f"The component {path!r} runs without dropout here; ask for the whole model.")
        if path:
            call = self._counted("forward", batch, length, path, None)
        elif self.execution.layers == "checkpointed":
            return None  # what a policy keeps no hook sees: see planned_bytes
        else:
            inputs, targets, positions, count = self._batch(batch, length)
            key = door.step_key(self.config, (0, 0) if dropout else None, rng.address)
            call = objective, self.net, inputs[0], targets[0], positions, count, key
        self.net.requires_grad_()  # a run may have frozen some
        with self._eagerly():
            return saved_bytes(self.net, *call)

    def planned_bytes(self, what, batch, length, path="", slots=None):
        if self.execution.attention in COMPILED_KERNELS:
            return None  # MemTracker knows no operators of higher order
        check_counted(what, length, path, slots, self.config, PLANNED)
        if what in WITHOUT_PRODUCTS:
            return live_bytes(*WITHOUT_PRODUCTS[what](self, batch, length))
        call = self._counted(what, batch, length, path, slots)
        with self._eagerly(), torch.set_grad_enabled(what in ("gradients", "train")):
            if path:
                _, module, x, positions = call
                cotangent = [_component(module, x.detach(), positions).detach()] if what == "gradients" else []
                return live_bytes([x, module, *cotangent], *call)
            held = call[1] if what == "decode" else self.net
            return live_bytes([held, *getattr(self, "slots", {}).values()], *call)

    def _eagerly(self):
        return torch.compiler.set_stance("force_eager") if self.execution.compile else contextlib.nullcontext()

    def _counted(self, what, batch, length, path, slots):
        """(function, its arguments) of one call."""
        slots = check_counted(what, length, path, slots, self.config)
        if path:
            width, compute = input_width(path, self.config), dtype(self.execution.precision.compute)
            x = torch.zeros((batch, length, width), dtype=compute, device=self.execution.device, requires_grad=True)
            function = _component_gradients if what == "gradients" else _component
            return (
                function,
                self.net.get_submodule(path).requires_grad_(),
                x,
                self._places(np.arange(length, dtype=np.int32)[None]),
            )
        inputs, targets, positions, count = self._batch(batch, length)
        if what == "forward":
            return self.net, inputs[0], positions
        if what in ("gradients", "train"):  # the optimizer multiplies no matrices
            begun = getattr(self, "trained", None) or params.trained(self.config, params.EVERYTHING)
            return loss_and_grads, self.net, inputs, targets, positions, count, None, begun if what == "train" else None
        fed, net = (1, self._decoder()) if what == "decode" else (length, self.net)
        caches = self.new_cache(batch, slots).layers
        counted = torch.arange(fed, dtype=torch.int32, device=inputs.device)[None]
        return _extend, net, inputs[0, :, :fed], counted, caches

    def _decoder(self):
        """What decodes, in its forms, but by matrix products, for those are counted, and not compiled."""
        forms = parts.decoding(self.config, self.execution)
        plain = self.execution.with_(decode="plain", compile=False, graphs="none", **forms)
        return serve(self.net, self.config, plain).requires_grad_()  # MemTracker knows no other parameters

    def _batch(self, batch, length):
        ids = np.zeros((batch, length), np.int32)
        inputs, targets, positions, count = door.step_inputs(ids, ids, self.config)
        return self._put(inputs), self._put(targets), self._places(positions), count


def _optimizer(model, batch, length):
    if not hasattr(model, "slots"):
        raise UserError("An optimizer's step has memory to plan once `start_training` has been called.")
    params = {name: p for name, p in model.net.named_parameters() if model.trained[name]}
    like = [{name: torch.zeros_like(t) for name, t in part.items()} for part in (params, params, model.slots)]
    return [tensor for part in like for tensor in part.values()], optimised(model, *like)


def _dropout(model, batch, length):
    x = torch.zeros((batch, length, model.config.embed_dim), device=model.execution.device)
    return [x], dropped(model, x)


def _sample(model, batch, length):
    logits = torch.zeros((batch, model.config.vocab_size), device=model.execution.device)
    return [logits], chosen(model, logits)


WITHOUT_PRODUCTS = {"optimizer": _optimizer, "dropout": _dropout, "sample": _sample}  # (what it takes, what to run)


def _component(module, x, positions):
    return door.call(module.forward, x, positions)


def _component_gradients(module, x, positions):
    _component(module, x, positions).sum().backward()  # the counter cannot follow autograd.grad down to leaves
    for parameter in module.parameters():
        parameter.grad = None


def _extend(net, ids, positions, caches):
    """As generation does it: the head looks at the last position only."""
    with torch.inference_mode():
        hidden_BTE, _ = net.model(ids, positions, caches)
        net.head(hidden_BTE[:, -1])
