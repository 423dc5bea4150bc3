"""Contenders with a mistake each, for the harness to refuse; loaded in worker processes."""

import functools
import threading
import time

import numpy as np

from common import backend as door
from common.config import Execution


class Model:
    """The oracle's forward pass rounded as float32 arithmetic would, and `mistake` on top of it."""

    def __init__(self, inner, execution, mistake):
        self.inner, self.execution, self.mistake, self.calls = inner, execution, mistake, 0

    def about(self, *shape):
        """The calls that it is asked about."""
        return {"kernel": f"for {shape}"}

    def prepare(self, task, inputs, targets=None, sampling=None):
        logits = self.inner.forward(inputs).logits
        logits = logits[:, -1] if task == "prefill" else logits
        noise = np.random.default_rng(0).standard_normal(logits.shape)
        rounded = (logits * (1 + 4 * 2.0**-24 * noise)).astype(np.float32)
        return functools.partial(MISTAKES[self.mistake], self, logits, rounded)

    def generate(self, prompts, sampling):
        time.sleep(0.002)
        return self.inner.generate(prompts, sampling)


def honest(model, logits, rounded):
    time.sleep(0.004)
    return {"logits": rounded}


def slow(model, logits, rounded):
    time.sleep(0.008)
    return {"logits": rounded}


def wrong(model, logits, rounded):
    """One row of many is another one's."""
    return {"logits": np.roll(rounded, 1, 0)}


def silent(model, logits, rounded):
    """Nothing is returned."""
    return {}


def too_precise(model, logits, rounded):
    """Computed in float64 and rounded once."""
    return {"logits": logits.astype(np.float32)}


def half(model, logits, rounded):
    """Computed in 16 bits."""
    return {"logits": (logits * (1 + 2.0**-8 * np.random.default_rng(1).standard_normal(logits.shape)))}


def recompiling(model, logits, rounded):
    """Another shape at every call."""
    import jax

    model.calls += 1
    program = model.__dict__.setdefault("program", jax.jit(lambda x: x * 2))
    program(np.ones(model.calls)).block_until_ready()
    return {"logits": rounded}


def compiling_late(model, logits, rounded):
    """Another program of PyTorch's at every call, each compiled for the first time."""
    import torch

    model.calls += 1
    torch.compile(eval(f"lambda x: x * {model.calls}"), backend="eager")(torch.ones(2))
    return {"logits": rounded}


def specialised(model, logits, rounded):
    """A program of PyTorch's that is compiled again for every new shape, as it is when shapes are fixed."""
    import torch

    model.calls += 1
    program = model.__dict__.setdefault("program", torch.compile(lambda x: x * 2, backend="eager", dynamic=False))
    program(torch.ones(model.calls + 1))
    return {"logits": rounded}


def late(model, logits, rounded):
    """What is returned is a promise that nobody waits for."""
    import jax
    import jax.numpy as jnp

    if "program" not in model.__dict__:
        model.big, model.logits = jnp.ones((400, 400)), jnp.asarray(rounded)
        turn = jax.jit(lambda x: jax.lax.fori_loop(0, 9, lambda _, y: jnp.tanh(y @ x), x)[0, 0] * 0)
        model.program = jax.jit(lambda x, logits: logits + turn(x))
    return {"logits": model.program(model.big, model.logits)}


def lazy(model, logits, rounded):
    """Work is given to the device as soon as the last is done, and nobody waits for it."""
    import jax
    import jax.numpy as jnp

    if "program" not in model.__dict__:
        model.big = jnp.ones((400, 400))
        model.program = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda _, y: jnp.tanh(y @ x), x))
        model.result = model.program(model.big).block_until_ready()
    if model.result.is_ready():
        model.result = model.program(model.big)
    time.sleep(0.001)
    return {"logits": rounded}


class Promise:
    """Numbers that are made when somebody asks for them."""

    def __init__(self, value):
        self.value = value

    def __array__(self, dtype=None, copy=None):
        time.sleep(0.004)
        return self.value


def promise(model, logits, rounded):
    """What is returned makes its numbers when it is looked at."""
    return {"logits": Promise(rounded)}


def threaded(model, logits, rounded):
    """Work goes on in a thread of its own when the call has returned."""
    threading.Thread(target=time.sleep, args=(0.1,)).start()
    return {"logits": rounded}


def tiring(model, logits, rounded):
    """Right until nobody looks any more."""
    model.calls += 1
    time.sleep(0.004)
    return {"logits": rounded if model.calls < 4 else np.roll(rounded, 1, 0)}


def spending(model, logits, rounded):
    """Forty million bytes for a moment."""
    np.ones(5_000_000)
    return {"logits": rounded}


class Trainer:
    """PyTorch's training, which does nothing any more from the fifth step on if it `rests`."""

    def __init__(self, inner, execution, rests):
        self.inner, self.execution, self.rests, self.calls = inner, execution, rests, 0
        self.start_training = inner.start_training

    def prepare(self, task, inputs, targets=None, sampling=None):
        step = self.inner.prepare(task, inputs, targets)

        def run():
            self.calls += 1
            if not self.rests or self.calls <= 4:
                self.given = step()
            return self.given

        return run


MISTAKES = {
    f.__name__: f
    for f in (
        *(honest, slow, wrong, silent, too_precise, half, recompiling, compiling_late, specialised, late, lazy),
        *(promise, threaded, tiring, spending),
    )
}


TRAINERS = {"training": False, "resting": True}


class Planted:
    """A backend as the harness knows them."""

    def __init__(self, mistake):
        self.mistake = self.name = self.title = mistake

    def versions(self):
        return {"numpy": np.__version__}

    def flags(self):
        return {}

    def threads(self):
        return 1

    def build(self, config, weights, execution):
        if self.mistake in ("recompiling", "late", "lazy"):
            import jax  # noqa: F401  (a framework is there when the clock starts)
        if self.mistake in TRAINERS:
            return Trainer(door.load("torch").build(config, weights, execution), execution, TRAINERS[self.mistake])
        return Model(door.load("numpy").build(config, weights, Execution(dtype="float64")), execution, self.mistake)


for _name in (*MISTAKES, *TRAINERS):
    globals()[_name + "_backend"] = Planted(_name)
