"""GPT-2 in plain calls of PyTorch's own functions: as little as PyTorch needs for the same work.

No modules, masks, taps or options: fused norms and attention, cross-entropy and AdamW as PyTorch ships them. float32.
"""

import torch
from torch.nn import functional as F

from common import backend as door
from common.backend import SHOWN
from common.errors import UserError


class Timed:
    """The tasks that a contest asks for; see `common.backend.Model.prepare`."""

    def __init__(self, config, weights, execution):
        self.config, self.execution = config, execution
        self.weights = {name: torch.from_numpy(w.copy()).to(execution.device) for name, w in weights.items()}

    def about(self, *shape):
        """What differs from the execution that was asked for."""
        return {"attention": "scaled_dot_product_attention", "norm": "layer_norm", "optimizer": "AdamW, fused"}

    def prepare(self, task, inputs, targets=None):
        ids = self._put(door.check_ids(inputs, self.config))
        labels = None if targets is None else self._put(door.check_targets(targets, self.config))
        tasks = {"forward": lambda: self._forward(ids), "train": lambda: self._train(ids, labels)}
        if task not in tasks:
            raise UserError(f"Plain PyTorch has no task {task!r} here.")

        def run():
            found = tasks[task]()
            if self.execution.device != "cpu":
                torch.cuda.synchronize(self.execution.device)
            return found

        return run

    def start_training(self, train):
        """Decay on matrices alone, as our parameter table has it."""
        for weight in self.weights.values():
            weight.requires_grad_()
        matrices = [w for w in self.weights.values() if w.ndim >= 2]
        others = [w for w in self.weights.values() if w.ndim < 2]
        groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
        options = {"lr": train.rate(0), "betas": (train.beta1, train.beta2), "eps": train.adam_eps}
        self.train, self.step, self.optimizer = train, 0, torch.optim.AdamW(groups, fused=True, **options)

    def _forward(self, ids):
        with torch.inference_mode():
            return {"logits": logits(self.weights, self.config, ids)}

    def _train(self, ids, labels):
        for group in self.optimizer.param_groups:
            group["lr"] = self.train.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(logits(self.weights, self.config, ids).flatten(0, 1), labels.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.train.clip_norm or float("inf"))
        self.optimizer.step()
        self.step += 1
        averages = {f"exp_avg/{n}": self.optimizer.state[self.weights[n]]["exp_avg"] for n in SHOWN}
        return {"loss": loss.detach(), "grad_norm": norm, **averages}

    def _put(self, array):
        return torch.from_numpy(array).long().to(self.execution.device)


def logits(weights, config, ids):
    """[B, T, V] from ids [B, T]."""

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], config.norm_eps)

    batch, length = ids.shape
    kind = "tanh" if config.activation == "gelu_tanh" else "none"
    x = F.embedding(ids, weights["model.embed_tokens.weight"]) + weights["model.embed_positions.weight"][:length]
    for at in (f"model.layers.{i}" for i in range(config.num_layers)):
        normed = norm(x, f"{at}.input_layernorm")
        q, k, v = (
            linear(normed, f"{at}.self_attn.{part}_proj").view(batch, length, config.num_heads, -1).transpose(1, 2)
            for part in "qkv"
        )
        context = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(context.transpose(1, 2).flatten(2), f"{at}.self_attn.o_proj")
        inner = F.gelu(linear(norm(x, f"{at}.post_attention_layernorm"), f"{at}.mlp.up_proj"), approximate=kind)
        x = x + linear(inner, f"{at}.mlp.down_proj")
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return F.linear(norm(x, "model.norm"), head)


class Contender:
    """See `common.backend.Backend`: what a contest needs of it."""

    name, title = "plain torch", "plain PyTorch"

    def versions(self):
        return door.load("torch").versions()

    def flags(self):
        return door.load("torch").flags()

    def threads(self):
        return door.load("torch").threads()

    def build(self, config, weights, execution):
        if execution.dtype != "float32":
            raise UserError("Plain PyTorch is timed in float32 alone.")
        torch.backends.fp32_precision = "ieee"  # as the wing does
        return Timed(config, weights, execution)


backend = Contender()
