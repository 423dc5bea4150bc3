"""GPT-2 in plain calls of JAX's and Optax's own functions: as little as JAX needs for the same work.

No modules, masks, taps or options: jitted functions of a dictionary of arrays, and JAX's own generator. float32.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from common import backend as door
from common.backend import SHOWN
from common.errors import UserError

PRECISION = "highest"  # no TF32, as in all float32 rows
RATE = 0.1  # of the task "dropout"
KEY = functools.partial(jax.random.key, 0)  # JAX's default: on a CPU an activation is dropped in 4 ms, by "rbg" in 11


class Timed:
    """The tasks that a contest asks for; see `common.backend.Model.prepare`."""

    def __init__(self, config, weights, execution):
        self.config, self.execution, self.device = config, execution, _device(execution.device)
        self.weights = {name: self.put(w) for name, w in weights.items()}
        self.forward = jax.jit(functools.partial(logits, config))
        self.differentiated = jax.jit(jax.value_and_grad(functools.partial(loss, config)))
        self.fill = jax.jit(functools.partial(fill, config), static_argnums=2)
        self.decoded = jax.jit(functools.partial(decoded, config), static_argnums=4, donate_argnums=1)
        self.following = jax.jit(functools.partial(following, config))

    @property
    def PLAN(self):
        return door.load("jax").PLAN

    def about(self, *shape):
        """What differs from the execution that was asked for, and the kernel of attention for calls of that shape."""
        kernel = attention_kernel(self.config, *shape)
        return {"attention": "dot_product_attention", "kernel": kernel, "optimizer": "optax"}

    def prepare(self, task, inputs, targets=None, **more):
        if task not in TASKS:
            raise UserError(f"Plain JAX has no task {task!r} here.")
        with jax.default_matmul_precision(PRECISION):
            call = TASKS[task](self, inputs, targets, **more)

        def run():
            with jax.default_matmul_precision(PRECISION):
                return jax.block_until_ready(call())

        return run

    def generate(self, prompts, sampling):
        """The likeliest continuation of prompts of one length."""
        ids, new = self.prompts(np.array(prompts, np.int32), sampling), sampling.max_new_tokens
        with jax.default_matmul_precision(PRECISION):
            found = self.new_tokens(ids, new) if sampling.cache else self.without_cache(ids, new)
            return np.asarray(found).tolist()

    def start_training(self, train):
        """Decay on matrices alone, as our parameter table has it."""
        decayed = {name: w.ndim >= 2 for name, w in self.weights.items()}
        optimizer = optax.chain(
            optax.clip_by_global_norm(train.clip_norm or float("inf")),
            optax.scale_by_adam(train.beta1, train.beta2, train.adam_eps),
            optax.add_decayed_weights(train.weight_decay, decayed),
        )

        def apply(weights, state, grads, rate):
            updates, state = optimizer.update(grads, state, weights)
            return jax.tree.map(lambda w, u: w - rate * u, weights, updates), state, optax.tree.norm(grads)

        def step(weights, state, ids, labels, rate):
            value, grads = jax.value_and_grad(functools.partial(loss, self.config))(weights, ids, labels)
            return *apply(weights, state, grads, rate), value

        self.weights = {name: w.copy() for name, w in self.weights.items()}
        self.apply, self.update = (jax.jit(function, donate_argnums=(0, 1)) for function in (apply, step))
        self.train, self.step, self.state = train, 0, optimizer.init(self.weights)

    def planned_bytes(self, what, batch, length):
        """See `common.backend.Model`; of a step of decoding the cache is there already."""
        ids = np.zeros((batch, length), np.int32)
        if what == "decode":
            caches = jax.eval_shape(lambda: empty(self.config, batch, length))
            call = self.decoded, self.weights, caches, ids[:, 0], np.int32(length - 1), 1
        elif what in ("train", "optimizer") and not hasattr(self, "train"):
            raise UserError("An optimizer's step has memory to plan once `start_training` has been called.")
        elif what == "train":
            call = self.update, self.weights, self.state, ids, ids, self.rate()
        elif what == "optimizer":
            call = self.apply, self.weights, self.state, jax.eval_shape(lambda: self.weights), self.rate()
        elif what == "prefill":
            call = self.fill, self.weights, ids, length
        elif what == "dropout":
            call = dropped, jax.ShapeDtypeStruct((*ids.shape, self.config.embed_dim), jnp.float32), KEY()
        elif what == "sample":
            call = drawn, jax.ShapeDtypeStruct((batch, self.config.vocab_size), jnp.float32), KEY()
        else:
            functions = {"forward": (self.forward, ids), "gradients": (self.differentiated, ids, ids)}
            function, *given = door.pick("task to plan", what, functions)
            call = function, self.weights, *given
        with jax.default_matmul_precision(PRECISION):
            return door.load("jax").planned_bytes(*call)

    def new_tokens(self, ids, new):
        """The `new` likeliest tokens [B, N] behind ids [B, T]."""
        found, caches = self.fill(self.weights, ids, ids.shape[1] + new)
        first = found.argmax(-1).astype(jnp.int32)
        if new == 1:
            return first[:, None]
        return jnp.concatenate([first[:, None], self.decoded(self.weights, caches, first, ids.shape[1], new - 1)[1]], 1)

    def without_cache(self, ids, new):
        """The same by a pass over everything for each; as many ids in all of them, so that one program serves."""
        length, found = ids.shape[1], []
        ids = jnp.pad(ids, ((0, 0), (0, new - 1)))
        for at in range(length, length + new):
            ids, token = self.following(self.weights, ids, at)
            found.append(token)
        return jnp.stack(found, 1)

    def rate(self):
        return np.float32(self.train.rate(self.step))

    def averages(self):
        found = next(one.mu for one in self.state if hasattr(one, "mu"))
        return {f"exp_avg/{name}": found[name] for name in SHOWN}

    def put(self, array):
        return jax.device_put(jnp.asarray(array), self.device)

    def prompts(self, ids, sampling):
        """Ids [B, T] behind which there is room for what is asked."""
        door.check_length(ids.shape[1] + sampling.max_new_tokens - 1, self.config)
        return self.put(door.check_ids(ids, self.config))

    def batch(self, ids, targets):
        return self.put(door.check_ids(ids, self.config)), self.put(door.check_targets(targets, self.config))


def forward(own, ids, targets):
    ids = own.put(door.check_ids(ids, own.config))
    return lambda: {"logits": own.forward(own.weights, ids)}


def prefill(own, ids, targets):
    ids = own.put(door.check_ids(ids, own.config))
    return lambda: {"logits": own.fill(own.weights, ids, ids.shape[1])[0]}


def go_on(own, ids, targets, sampling):
    """What the last call wrote behind the prompts is hidden: it stands later than any query."""
    length, new = ids.shape[1], sampling.max_new_tokens
    found, caches = own.fill(own.weights, own.prompts(ids, sampling), length + new)
    first = found.argmax(-1).astype(jnp.int32)

    def run():
        nonlocal caches
        if new == 1:
            return {"tokens": first[:, None]}
        caches, tokens = own.decoded(own.weights, caches, first, length, new - 1)
        return {"tokens": jnp.concatenate([first[:, None], tokens], 1)}

    return run


def gradients(own, ids, targets):
    batch = own.batch(ids, targets)

    def run():
        value, grads = own.differentiated(own.weights, *batch)
        return {"loss": value, **{f"grad/{name}": g for name, g in grads.items()}}

    return run


def train(own, ids, targets):
    batch = own.batch(ids, targets)

    def run():
        own.weights, own.state, norm, value = own.update(own.weights, own.state, *batch, own.rate())
        own.step += 1
        jax.block_until_ready(own.weights)
        return {"loss": value, "grad_norm": norm, **own.averages()}

    return run


def optimizer(own, ids, targets):
    """Clipping and an AdamW update with the gradients of a batch."""
    _, grads = own.differentiated(own.weights, *own.batch(ids, targets))

    def run():
        own.weights, own.state, norm = own.apply(own.weights, own.state, grads, own.rate())
        jax.block_until_ready(own.weights)
        return {"grad_norm": norm, **{f"param/{name}": own.weights[name] for name in SHOWN}, **own.averages()}

    return run


def drop(own, x, targets):
    x, key = own.put(x), own.put(KEY())
    return lambda: {"output": dropped(x, key)}


def choose(own, logits, targets):
    logits, key = own.put(logits), own.put(KEY())
    return lambda: {"tokens": drawn(logits, key)}


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


@jax.jit
def dropped(x, key):
    return jnp.where(jax.random.bernoulli(key, 1 - RATE, x.shape), x / (1 - RATE), 0)


@jax.jit
def drawn(logits, key):
    return jax.random.categorical(key, logits)


def logits(config, weights, ids):
    """[B, T, V] from ids [B, T]."""
    return hidden(config, weights, ids)[0] @ head(weights)


def loss(config, weights, ids, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits(config, weights, ids), labels).mean()


def fill(config, weights, ids, slots):
    """The last logits [B, V], and a cache of so many slots that holds ids [B, T]."""
    x, caches = hidden(config, weights, ids, empty(config, len(ids), slots))
    return x[:, -1] @ head(weights), caches


def decoded(config, weights, caches, token, start, new):
    """The cache, and `new` tokens [B, N] behind a token [B] at position `start`."""

    def step(state, at):
        caches, token = state
        x, caches = hidden(config, weights, token[:, None], caches, at)
        token = (x[:, -1] @ head(weights)).argmax(-1).astype(jnp.int32)
        return (caches, token), token

    (caches, _), found = jax.lax.scan(step, (caches, token), start + jnp.arange(new))
    return caches, found.T


def following(config, weights, ids, at):
    """(ids [B, S] with the likeliest one at position `at`, if there is such a place; that one [B])."""
    x = hidden(config, weights, ids)[0]
    last = jax.lax.dynamic_index_in_dim(x, at - 1, 1, keepdims=False)
    token = (last @ head(weights)).argmax(-1).astype(ids.dtype)
    return ids.at[:, at].set(token, mode="drop"), token


def empty(config, batch, slots):
    shape = batch, slots, config.num_heads, config.embed_dim // config.num_heads
    return [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(config.num_layers)]


def head(weights):
    return weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T


def hidden(config, weights, ids, caches=None, start=0):
    """[B, T, E] from ids [B, T] at positions from `start` on, and the caches, if there are any, with their keys and
    values. Several ids begin at 0."""

    def linear(x, name):
        y = x @ weights[f"{name}.weight"].T
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def norm(x, name):
        return jax.nn.standardize(x, epsilon=config.norm_eps) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    batch, length = ids.shape
    positions = jax.lax.dynamic_slice_in_dim(weights["model.embed_positions.weight"], start, length)
    x, filled = weights["model.embed_tokens.weight"][ids] + positions, []
    for number in range(config.num_layers):
        at = f"model.layers.{number}"
        normed = norm(x, f"{at}.input_layernorm")
        q, k, v = (
            linear(normed, f"{at}.self_attn.{part}_proj").reshape(batch, length, config.num_heads, -1) for part in "qkv"
        )
        seen = {"is_causal": True}
        if caches is not None:
            own = [
                jax.lax.dynamic_update_slice_in_dim(old, new, start, 1)
                for old, new in zip(caches[number], (k, v), strict=True)
            ]
            filled.append(tuple(own))
            if length == 1:
                (k, v), seen = own, {"key_value_seq_lengths": jnp.full(batch, start + 1, jnp.int32)}
        context = jax.nn.dot_product_attention(q, k, v, **seen)
        x = x + linear(context.reshape(batch, length, -1), f"{at}.self_attn.o_proj")
        inner = linear(norm(x, f"{at}.post_attention_layernorm"), f"{at}.mlp.up_proj")
        x = x + linear(jax.nn.gelu(inner, approximate=config.activation == "gelu_tanh"), f"{at}.mlp.down_proj")
    return norm(x, "model.norm"), filled


def attention_kernel(config, batch=1, length=None, gradients=True):
    """What `dot_product_attention` becomes by itself for a model's heads in a causal call of [batch, length], that of
    the prompt where tokens follow: read from the program that JAX hands to its compiler."""
    length = min(128, config.context_length) if length is None else length
    shape = batch, length, config.num_heads, config.embed_dim // config.num_heads

    def summed(q):
        return jax.nn.dot_product_attention(q, q, q, is_causal=True).sum()

    lowered = jax.jit(jax.grad(summed) if gradients else summed).lower(jax.ShapeDtypeStruct(shape, jnp.float32))
    return "cuDNN" if "cudnn" in lowered.as_text().lower() else "XLA"


class Contender:
    """See `common.backend.Backend`: what a contest needs of it."""

    name, title = "plain jax", "plain JAX"

    def versions(self):
        return door.load("jax").versions()

    def flags(self):
        return door.load("jax").flags()

    def threads(self):
        return door.load("jax").threads()

    def build(self, config, weights, execution):
        if execution.dtype != "float32":
            raise UserError("Plain JAX is timed in float32 alone.")
        return Timed(config, weights, execution)


def _device(name):
    kind, _, index = name.partition(":")
    return jax.devices("gpu" if kind == "cuda" else kind)[int(index or 0)]


backend = Contender()
