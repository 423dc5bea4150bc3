"""GPT-2 in plain calls of PyTorch's own functions: as little as PyTorch needs for the same work.

No modules, masks, taps or options: fused norms and attention, cross-entropy and AdamW as PyTorch ships them, and
its own generator. float32.
"""

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from common import backend as door
from common.backend import SHOWN
from common.errors import UserError

RATE = 0.1  # of the task "dropout"


class Timed:
    """The tasks that a contest asks for; see `common.backend.Model.prepare`."""

    def __init__(self, config, weights, execution):
        self.config, self.execution = config, execution
        self.weights = {name: torch.from_numpy(w.copy()).to(execution.device) for name, w in weights.items()}

    @property
    def PLAN(self):
        return door.load("torch").PLAN

    def about(self, *shape):
        """What differs from the execution that was asked for, and the kernel of attention for calls of that shape."""
        kernel = sdpa_kernel(self.config, self.execution, torch.float32, *shape)
        own = {"norm": "layer_norm", "optimizer": "AdamW, fused"}
        return {"attention": "scaled_dot_product_attention", "kernel": kernel, **own}

    def prepare(self, task, inputs, targets=None, **more):
        if task not in TASKS:
            raise UserError(f"Plain PyTorch has no task {task!r} here.")
        call = TASKS[task](self, inputs, targets, **more)

        def run():
            found = call()
            if self.execution.device != "cpu":
                torch.cuda.synchronize(self.execution.device)
            return found

        return run

    def generate(self, prompts, sampling):
        """The likeliest continuation of prompts of one length."""
        ids = self.prompts(np.array(prompts, np.int32), sampling)
        return self.new_tokens(ids, sampling.max_new_tokens, sampling.cache).tolist()

    def start_training(self, train):
        """Decay on matrices alone, as our parameter table has it."""
        for weight in self.weights.values():
            weight.requires_grad_()
        matrices = [w for w in self.weights.values() if w.ndim >= 2]
        others = [w for w in self.weights.values() if w.ndim < 2]
        groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
        options = {"lr": train.rate(0), "betas": (train.beta1, train.beta2), "eps": train.adam_eps}
        self.train, self.step, self.optimizer = train, 0, torch.optim.AdamW(groups, fused=True, **options)

    def planned_bytes(self, what, batch, length):
        """See `common.backend.Model`; of a step of decoding the cache is there already."""
        ids, held = np.zeros((batch, length), np.int32), self.held()
        if what == "decode":
            with torch.inference_mode():
                caches, token = self.filled(self.put(ids[:, :-1]), 1)
            held += (half for pair in caches for half in pair)
            run = torch.inference_mode()(lambda: self.decoded(caches, token, length - 1, 2))
        elif what == "optimizer":
            own = self.another()
            run = optimizer(own, ids, ids)
            run()
            held = own.held() + [w.grad for w in own.weights.values()]
        elif what in DRAWN:
            shapes = {"dropout": (batch, length, self.config.embed_dim), "sample": (batch, self.config.vocab_size)}
            held = [torch.zeros(shapes[what], device=self.execution.device)]
            run = DRAWN[what](*held)
        else:
            run = door.pick("task to plan", "gradients" if what == "train" else what, TASKS)(self, ids, ids)
        return door.load("torch").planned_bytes(run, held=held)

    def held(self):
        """Weights, and what the optimizer keeps, if there is one."""
        states = self.optimizer.state.values() if hasattr(self, "optimizer") else ()
        return [*self.weights.values(), *(tensor for state in states for tensor in state.values())]

    def another(self):
        """The same model at the beginning of the same run, for what changes it."""
        if not hasattr(self, "train"):
            raise UserError("An optimizer's step has memory to plan once `start_training` has been called.")
        own = Timed(self.config, {name: w.detach().cpu().numpy() for name, w in self.weights.items()}, self.execution)
        own.start_training(self.train)
        return own

    def logits(self, ids, caches=None, start=0, last=False):
        """[B, T, V] of ids [B, T], or of the last one alone [B, V]."""
        x = hidden(self.weights, self.config, ids, caches, start)
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return F.linear(x[:, -1] if last else x, head)

    def loss(self, ids, labels):
        return F.cross_entropy(self.logits(ids).flatten(0, 1), labels.flatten())

    def new_tokens(self, ids, new, cache=True):
        """The `new` likeliest tokens [B, N] behind ids [B, T], with a cache or a pass over everything for each."""
        with torch.inference_mode():
            if cache:
                return self.decoded(*self.filled(ids, new), ids.shape[1], new)
            for _ in range(new):
                ids = torch.cat([ids, self.logits(ids, last=True).argmax(-1, keepdim=True)], 1)
        return ids[:, -new:]

    def filled(self, ids, new):
        """A cache with room for `new` tokens more, and the first one [B]."""
        caches = self.empty(ids.shape[0], ids.shape[1] + new)
        return caches, self.logits(ids, caches, last=True).argmax(-1)

    def empty(self, batch, slots):
        heads = self.config.num_heads
        shape = batch, heads, slots, self.config.embed_dim // heads
        layers = range(self.config.num_layers)
        return [tuple(torch.empty(shape, device=self.execution.device) for _ in "kv") for _ in layers]

    def decoded(self, caches, token, start, new):
        """Tokens [B, new] of which the first is there, from position `start` on."""
        found = [token]
        for at in range(start, start + new - 1):
            found.append(self.logits(found[-1][:, None], caches, at, last=True).argmax(-1))
        return torch.stack(found, 1)

    def averages(self):
        return {f"exp_avg/{name}": self.optimizer.state[self.weights[name]]["exp_avg"] for name in SHOWN}

    def clipped(self):
        return torch.nn.utils.clip_grad_norm_(self.weights.values(), self.train.clip_norm or float("inf"))

    def put(self, array):
        return torch.from_numpy(np.asarray(array)).long().to(self.execution.device)

    def prompts(self, ids, sampling):
        """Ids [B, T] behind which there is room for what is asked."""
        door.check_length(ids.shape[1] + sampling.max_new_tokens - 1, self.config)
        return self.put(door.check_ids(ids, self.config))

    def batch(self, ids, targets):
        return self.put(door.check_ids(ids, self.config)), self.put(door.check_targets(targets, self.config))


def forward(own, ids, targets):
    ids = own.put(door.check_ids(ids, own.config))
    return torch.inference_mode()(lambda: {"logits": own.logits(ids)})


def prefill(own, ids, targets):
    ids = own.put(door.check_ids(ids, own.config))
    return torch.inference_mode()(lambda: {"logits": own.logits(ids, own.empty(*ids.shape), last=True)})


def go_on(own, ids, targets, sampling):
    ids, new = own.prompts(ids, sampling), sampling.max_new_tokens
    with torch.inference_mode():
        caches, first = own.filled(ids, new)
    return torch.inference_mode()(lambda: {"tokens": own.decoded(caches, first, ids.shape[1], new)})


def gradients(own, ids, targets):
    ids, labels = own.batch(ids, targets)
    for weight in own.weights.values():
        weight.requires_grad_()

    def run():
        loss = own.loss(ids, labels)
        grads = torch.autograd.grad(loss, own.weights.values())
        return {"loss": loss.detach()} | {f"grad/{name}": g for name, g in zip(own.weights, grads, strict=True)}

    return run


def train(own, ids, targets):
    ids, labels = own.batch(ids, targets)

    def run():
        for group in own.optimizer.param_groups:
            group["lr"] = own.train.rate(own.step)
        own.optimizer.zero_grad(set_to_none=True)
        loss = own.loss(ids, labels)
        loss.backward()
        norm = own.clipped()
        own.optimizer.step()
        own.step += 1
        return {"loss": loss.detach(), "grad_norm": norm, **own.averages()}

    return run


def optimizer(own, ids, targets):
    """Clipping and an AdamW update with the gradients of a batch."""
    own.optimizer.zero_grad(set_to_none=True)
    own.loss(*own.batch(ids, targets)).backward()

    def run():
        norm = own.clipped()
        own.optimizer.step()
        shown = {f"param/{name}": own.weights[name].detach() for name in SHOWN}
        return {"grad_norm": norm, **shown, **own.averages()}

    return run


def drop(own, x, targets):
    return dropped(torch.from_numpy(x).to(own.execution.device))


def choose(own, logits, targets):
    return drawn(torch.from_numpy(logits).to(own.execution.device))


def dropped(x):
    return torch.inference_mode()(lambda: {"output": F.dropout(x, RATE, training=True)})


def drawn(logits):
    return torch.inference_mode()(lambda: {"tokens": torch.multinomial(logits.softmax(-1), 1)[:, 0]})


TASKS = {
    "forward": forward,
    "prefill": prefill,
    "continue": go_on,
    "gradients": gradients,
    "train": train,
    "optimizer": optimizer,
    "dropout": drop,
    "sample": choose,
}
DRAWN = {"dropout": dropped, "sample": drawn}


def hidden(weights, config, ids, caches=None, start=0):
    """[B, T, E] from ids [B, T] at positions from `start` on; keys and values are written into `caches`, if there are
    any. Several ids begin at 0."""

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], config.norm_eps)

    batch, length = ids.shape
    end = start + length
    kind = "tanh" if config.activation == "gelu_tanh" else "none"
    x = F.embedding(ids, weights["model.embed_tokens.weight"]) + weights["model.embed_positions.weight"][start:end]
    for number in range(config.num_layers):
        at = f"model.layers.{number}"
        normed = norm(x, f"{at}.input_layernorm")
        q, k, v = (
            linear(normed, f"{at}.self_attn.{part}_proj").view(batch, length, config.num_heads, -1).transpose(1, 2)
            for part in "qkv"
        )
        if caches is not None:
            keys, values = caches[number]
            keys[:, :, start:end], values[:, :, start:end] = k, v
            k, v = keys[:, :, :end], values[:, :, :end]
        context = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        x = x + linear(context.transpose(1, 2).flatten(2), f"{at}.self_attn.o_proj")
        inner = F.gelu(linear(norm(x, f"{at}.post_attention_layernorm"), f"{at}.mlp.up_proj"), approximate=kind)
        x = x + linear(inner, f"{at}.mlp.down_proj")
    return norm(x, "model.norm")


def sdpa_kernel(config, execution, kind, batch=1, length=None, gradients=True):
    """The kernel that `scaled_dot_product_attention` takes by itself for a model's heads in a causal call of [batch,
    length] without a mask: where tokens follow, that of the prompt."""
    length = min(128, config.context_length) if length is None else length
    shape = batch, config.num_heads, length, config.embed_dim // config.num_heads
    q = torch.empty(shape, dtype=kind, device=execution.device, requires_grad=gradients)
    return SDPBackend(torch._fused_sdp_choice(q, q, q, is_causal=length > 1)).name.lower()


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
