"""Transformers' own GPT-2 (`GPT2LMHeadModel`) as one more implementation to hold others against, under our names.

One-sided: the library computes in PyTorch only. Nothing of it is replaced: its modules are watched by forward hooks,
its calls of softmax by a function mode, because scores have no module of their own.
"""

import numpy as np
import torch
import transformers
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from common import backend as door
from common import params as parameters
from common.errors import UserError
from common.taps import Taps
from common.weights import gpt2_names, huggingface
from common.weights.stored import in_memory

from .precision import dtype

NO_POSITION = 0  # what a padded place reads; nobody reads padding


class SoftmaxInputs(TorchFunctionMode):
    """Keeps what goes into every softmax while it is active: of eager attention, the masked scores, layer by layer."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.softmax, torch.softmax):
            self.found.append(args[0])
        return function(*args, **(kwargs or {}))


class TransformersModel:
    """The parts of `common.backend.Model` that a comparison needs: forward with taps, loss, gradients, weights."""

    def __init__(self, net, config, execution):
        kind = dtype(execution.dtype)
        self.net, self.config, self.execution = net.to(execution.device, kind).eval(), config, execution

    def forward(self, ids, positions=None, taps=()):
        """Logits [B, T, V] and every named value that one of the patterns asks for."""
        ids = door.check_ids(ids, self.config)
        positions = door.positions_of(ids, positions, 0, self.config)
        found = Taps(taps)
        hooks = self._watch(found.under("model"))
        try:
            with torch.inference_mode(), SoftmaxInputs() as softmax:
                logits = found("logits", self._logits(ids, positions))
        finally:
            for hook in hooks:
                hook.remove()
        for index, scores_BHTS in enumerate(softmax.found):
            hidden = scores_BHTS <= torch.finfo(scores_BHTS.dtype).min / 2  # they add the least number, not -inf
            scores_BHTS = scores_BHTS.masked_fill(hidden, -torch.inf)
            found.under(f"model.layers.{index}.self_attn")("scores", scores_BHTS)
        return door.Forward(_numpy(logits), {name: _numpy(value) for name, value in found.found.items()})

    def loss(self, ids, targets):
        """Mean loss in nats over the targets that count."""
        with torch.inference_mode():
            return self._loss(ids, targets).item()

    def gradients(self, ids, targets, dropout=None):
        """The loss and its gradient under our names; dropout is off."""
        self.net.zero_grad()
        loss = self._loss(ids, targets)
        loss.backward()
        grads = {name: _numpy(p.grad) for name, p in self.net.named_parameters()}
        self.net.zero_grad()
        return door.Gradients(loss.item(), _ours(grads, self.config))

    def weights(self):
        """Their weights under our names: fused projections cut, linear maps turned to [out, in]."""
        return _ours({name: _numpy(p) for name, p in self.net.named_parameters()}, self.config)

    def _loss(self, ids, targets):
        """From their logits; their own loss function would round them to float32."""
        ids, targets, positions, count = door.loss_inputs(ids, targets, self.config)
        logits = self._logits(ids, positions).flatten(0, 1)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        labels = torch.from_numpy(targets).long().flatten().to(logits.device)
        return F.cross_entropy(wide, labels, ignore_index=door.IGNORED, reduction="sum") / count

    def _logits(self, ids, positions):
        positions = torch.from_numpy(np.broadcast_to(positions, ids.shape).copy()).long().to(self.execution.device)
        return self.net(
            torch.from_numpy(ids).long().to(self.execution.device),
            attention_mask=(positions >= 0).long(),
            position_ids=positions.clamp(min=NO_POSITION),
            use_cache=False,
        ).logits

    def _watch(self, taps):
        """Forward hooks that offer the output of their modules to `taps` under our names."""
        body, hooks = self.net.transformer, []

        def watch(module, offer):
            hooks.append(module.register_forward_hook(lambda _, inputs, output: offer(output)))

        def name(taps, leaf):
            def offer(output):
                taps(leaf, output[0] if isinstance(output, tuple) else output)

            return offer

        watch(body.drop, name(taps, "embed"))
        for index, block in enumerate(body.h):
            layer = taps.under(f"layers.{index}")
            attention, mlp = layer.under("self_attn"), layer.under("mlp")
            watch(block.ln_1, name(layer, "input_layernorm"))
            watch(block.attn.c_attn, lambda fused, taps=attention: self._heads(taps, fused))
            watch(block.attn, lambda output, taps=attention: _attention(taps, output))
            watch(block.ln_2, name(layer, "post_attention_layernorm"))
            watch(block.mlp.act, name(mlp, "hidden"))
            watch(block.mlp, name(mlp, "output"))
            watch(block, name(layer, "output"))
        watch(body.ln_f, name(taps, "norm"))
        return hooks

    def _heads(self, taps, fused):
        for name, part_BTE in zip("qkv", fused.chunk(3, -1), strict=True):
            taps(name, part_BTE.unflatten(-1, (self.config.num_heads, -1)).transpose(1, 2))


class TransformersReference:
    """See `common.backend.Backend`: builds their model from our weights, or opens their folders by their code."""

    name, title = "transformers", "Hugging Face transformers"

    def versions(self):
        """transformers and torch."""
        return {"transformers": transformers.__version__, "torch": torch.__version__}

    def build(self, config, weights, execution):
        """Their model with these weights. It always has query, key and value biases: where ours has none, zeros."""
        full = config.with_(qkv_bias=True)
        table = parameters.table(full)
        filled = {n: weights[n] if n in weights else np.zeros(p.shape, np.float32) for n, p in table.items()}
        theirs = transformers.GPT2Config.from_dict(huggingface.config_to_dict(full, "float32"))
        net = transformers.GPT2LMHeadModel._from_config(theirs, attn_implementation="eager").to(dtype(execution.dtype))
        own = dict(net.named_parameters())
        with torch.no_grad():
            for name, tensor in gpt2_names.from_canonical(gpt2_names.HF, full, filled).items():
                own[name].copy_(torch.tensor(np.ascontiguousarray(tensor.read(), np.float64)))
        return TransformersModel(net, config, execution)

    def open(self, folder, execution):
        """The model of a folder, read by `from_pretrained`."""
        config = huggingface.read_config(folder)
        try:
            net = transformers.GPT2LMHeadModel.from_pretrained(
                str(folder), attn_implementation="eager", local_files_only=True, dtype=dtype(execution.dtype)
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"transformers cannot load {folder}: {' '.join(str(error).split())[:300]}") from error
        return TransformersModel(net, config, execution)


def _attention(taps, output):
    taps("output", output[0])
    if output[1] is not None:
        taps("weights", output[1])


def _ours(arrays, config):
    """Arrays under their names as arrays under ours; biases that our model does not have are left out."""
    full = config.with_(qkv_bias=True)
    tensors = {name: in_memory(array) for name, array in arrays.items()}
    found = gpt2_names.to_canonical(gpt2_names.HF, full, tensors, "transformers' model")
    return {name: found[name] for name in parameters.table(config)}


def _numpy(tensor):
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()


reference = TransformersReference()
