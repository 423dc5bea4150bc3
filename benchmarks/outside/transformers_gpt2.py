"""Hugging Face transformers' GPT-2 as people use it, on our weights: the contender from outside at the same work.

Attention is their SDPA path; training is the plain loop of their documentation with PyTorch's AdamW. In bfloat16 all of
it is bfloat16, parameters included; with `autocast` parameters are float32, as the wings', and products in bfloat16.
"""

import functools

import numpy as np
import torch

from common import backend as door
from common.backend import SHOWN
from common.config import Execution
from common.errors import UserError
from common.points import entry_points

from .plain_torch import sdpa_kernel

ATTENTION = "sdpa"
REFERENCES = "parallax.references"


class Timed:
    """The tasks that a contest asks for; see `common.backend.Model.prepare`. `narrow` is the format of products under
    autocast, if there is one."""

    narrow = None

    @property
    def PLAN(self):
        return door.load("torch").PLAN

    def __init__(self, net, config, execution, narrow=None):
        self.net, self.config, self.execution = net, config, execution
        self.net.set_attn_implementation(ATTENTION)
        self.narrow = narrow

    def about(self, *shape):
        """What differs from the execution that was asked for, and the kernel of attention for calls of that shape."""
        kept = "float32" if self.narrow else self.execution.dtype
        compute = {"param": kept, "compute": self.execution.dtype, "reduce": "float32 (softmax, loss)"}
        kernel = sdpa_kernel(self.config, self.execution, getattr(torch, self.execution.dtype), *shape)
        return {**compute, "attention": ATTENTION, "kernel": kernel}

    def cast(self):
        """Under which its model is called: autocast, or nothing."""
        kind = torch.device(self.execution.device).type
        return torch.autocast(kind, dtype=self.narrow, enabled=self.narrow is not None)

    def prepare(self, task, inputs, targets=None, sampling=None):
        ids = self._put(door.check_ids(inputs, self.config))
        if task == "continue":
            return self._waited(self._continued(ids, sampling))
        labels = None if targets is None else self._put(door.check_targets(targets, self.config))
        return self._waited(self._task(task, ids, labels))

    def _task(self, task, ids, labels):
        tasks = {"forward": lambda: self._forward(ids), "prefill": lambda: self._prefill(ids)}
        tasks |= {"train": lambda: self._train(ids, labels)}
        if task not in tasks:
            raise UserError(f"transformers has no task {task!r} of its own.")
        return tasks[task]

    def planned_bytes(self, what, batch, length):
        """See `common.backend.Model`; of a step of decoding the cache is there already."""
        ids = self._put(np.zeros((batch, length), np.int32))
        if what == "decode":
            with torch.inference_mode(), self.cast():
                cache = self.net(ids[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
            return door.load("torch").planned_bytes(self._step, ids[:, -1:], cache, held=self._held(cache))
        run = functools.partial(self._gradients, ids) if what == "train" else self._task(what, ids, ids)
        return door.load("torch").planned_bytes(run, held=self._held())

    def _held(self, cache=None):
        """The model, averages and the halves of a cache, one after the other: a step drops old halves."""
        yield self.net
        for state in self.optimizer.state.values() if hasattr(self, "optimizer") else ():
            yield from state.values()
        for layer in cache.layers if cache else ():
            yield layer.keys
            yield layer.values

    def _step(self, ids, cache):
        with torch.inference_mode(), self.cast():
            return self.net(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

    def _gradients(self, ids):
        self.net.zero_grad(set_to_none=True)
        self._loss(ids, ids).backward()
        self.net.zero_grad(set_to_none=True)

    def _loss(self, ids, labels):
        with self.cast():
            return self.net(ids, use_cache=False, labels=labels, shift_labels=labels).loss

    def start_training(self, train):
        """PyTorch's AdamW with decay on matrices alone, as our parameter table has it."""
        matrices = [p for p in self.net.parameters() if p.ndim >= 2]
        others = [p for p in self.net.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.train, self.step, self.own = train, 0, list(self.net.parameters())
        self.net.config.use_cache = False
        self.optimizer = torch.optim.AdamW(
            groups, lr=train.rate(0), betas=(train.beta1, train.beta2), eps=train.adam_eps
        )

    def generate(self, prompts, sampling):
        """Greedy continuation of prompts of one length."""
        ids = self._put(np.array(prompts))
        return self._generated(ids, sampling.max_new_tokens, use_cache=sampling.cache)[:, ids.shape[1] :].tolist()

    def _generated(self, ids, new, **more):
        """Texts [B, T] and `new` more tokens behind each, the likeliest ones."""
        with torch.inference_mode():
            return self.net.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
                **more,
            )

    def _continued(self, ids, sampling):
        """`generate` after prompts [B, T] whose cache was filled, and first new token chosen, beforehand: what
        it adds to the cache is cut off again."""
        length, new = ids.shape[1], sampling.max_new_tokens
        with torch.inference_mode():
            filled = self.net(ids, use_cache=True, logits_to_keep=1)
        cache, begun = filled.past_key_values, torch.cat([ids, filled.logits[:, -1].argmax(-1, keepdim=True)], 1)

        def run():
            if added := cache.get_seq_length() - length:
                cache.crop(-added)
            out = begun if new == 1 else self._generated(begun, new - 1, use_cache=True, past_key_values=cache)
            return {"tokens": out[:, length:]}

        return run

    def _forward(self, ids):
        with torch.inference_mode(), self.cast():
            return {"logits": self.net(ids, use_cache=False).logits}

    def _prefill(self, ids):
        with torch.inference_mode(), self.cast():
            return {"logits": self.net(ids, use_cache=True, logits_to_keep=1).logits[:, -1]}

    def _train(self, ids, labels):
        for group in self.optimizer.param_groups:
            group["lr"] = self.train.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(ids, labels)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.own, self.train.clip_norm or float("inf"))
        self.optimizer.step()
        self.step += 1
        return {"loss": loss.detach(), "grad_norm": norm, **self._averages()}

    def _averages(self):
        inner = self.net.transformer
        theirs = zip(SHOWN, (inner.ln_f.weight, inner.wte.weight), strict=True)
        return {f"exp_avg/{name}": self.optimizer.state[own]["exp_avg"] for name, own in theirs}

    def _waited(self, task):
        def run():
            found = task()
            if self.execution.device != "cpu":
                torch.cuda.synchronize(self.execution.device)
            return found

        return run

    def _put(self, array):
        return torch.from_numpy(np.asarray(array)).long().to(self.execution.device)


class Contender:
    """See `common.backend.Backend`: what a contest needs of it."""

    name, title = "transformers", "transformers"

    def __init__(self, autocast=False):
        self.autocast = autocast

    def versions(self):
        return _reference().versions()

    def flags(self):
        return door.load("torch").flags()

    def threads(self):
        return door.load("torch").threads()

    def build(self, config, weights, execution):
        if execution.dtype == "float64":
            raise UserError("transformers' GPT-2 keeps its loss in float32, so it is not timed in float64.")
        torch.backends.fp32_precision = "ieee"  # as the wing does
        kept, narrow = ("float32", getattr(torch, execution.dtype)) if self.autocast else (execution.dtype, None)
        built = _reference().build(config, weights, Execution(dtype=kept, device=execution.device))
        return Timed(built.net, config, execution, narrow)


def _reference():
    """Their model as other comparisons hold it against ours, weights under our names."""
    (point,) = (point for point in entry_points(group=REFERENCES) if point.name == "transformers")
    return point.load()


backend, autocast = Contender(), Contender(autocast=True)
