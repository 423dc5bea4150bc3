"""GPT-2 in plain calls of JAX's and Optax's own functions: as little as JAX needs for the same work.

No modules, masks, taps or options: two jitted functions of a dictionary of arrays. float32.
"""

import jax
import jax.numpy as jnp
import optax

from common import backend as door
from common.backend import SHOWN
from common.errors import UserError

PRECISION = "highest"  # no TF32, as in all float32 rows


class Timed:
    """The tasks that a contest asks for; see `common.backend.Model.prepare`."""

    def __init__(self, config, weights, execution):
        self.config, self.execution, self.device = config, execution, _device(execution.device)
        self.weights = {name: jax.device_put(jnp.asarray(w), self.device) for name, w in weights.items()}
        self.forward = jax.jit(lambda weights, ids: logits(weights, config, ids))

    def about(self, *shape):
        """What differs from the execution that was asked for."""
        return {"attention": "dot_product_attention", "optimizer": "optax"}

    def prepare(self, task, inputs, targets=None):
        ids = jax.device_put(door.check_ids(inputs, self.config), self.device)
        labels = None if targets is None else jax.device_put(door.check_targets(targets, self.config), self.device)
        tasks = {
            "forward": lambda: {"logits": self.forward(self.weights, ids)},
            "train": lambda: self._train(ids, labels),
        }
        if task not in tasks:
            raise UserError(f"Plain JAX has no task {task!r} here.")

        def run():
            with jax.default_matmul_precision(PRECISION):
                return jax.block_until_ready(tasks[task]())

        return run

    def start_training(self, train):
        """Decay on matrices alone, as our parameter table has it."""
        decayed = {name: w.ndim >= 2 for name, w in self.weights.items()}
        optimizer = optax.chain(
            optax.clip_by_global_norm(train.clip_norm or float("inf")),
            optax.scale_by_adam(train.beta1, train.beta2, train.adam_eps),
            optax.add_decayed_weights(train.weight_decay, decayed),
        )

        def step(weights, state, ids, labels, rate):
            def loss(weights):
                found = logits(weights, self.config, ids)
                return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()

            value, grads = jax.value_and_grad(loss)(weights)
            updates, state = optimizer.update(grads, state, weights)
            weights = jax.tree.map(lambda w, u: w - rate * u, weights, updates)
            return weights, state, value, optax.tree.norm(grads)

        self.weights = {name: w.copy() for name, w in self.weights.items()}
        self.update, self.state = jax.jit(step, donate_argnums=(0, 1)), optimizer.init(self.weights)
        self.train, self.step = train, 0

    def _train(self, ids, labels):
        rate = jnp.float32(self.train.rate(self.step))
        self.weights, self.state, loss, norm = self.update(self.weights, self.state, ids, labels, rate)
        self.step += 1
        jax.block_until_ready(self.weights)
        averages = next(one.mu for one in self.state if hasattr(one, "mu"))
        return {"loss": loss, "grad_norm": norm, **{f"exp_avg/{name}": averages[name] for name in SHOWN}}


def logits(weights, config, ids):
    """[B, T, V] from ids [B, T]."""

    def linear(x, name):
        y = x @ weights[f"{name}.weight"].T
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def norm(x, name):
        return jax.nn.standardize(x, epsilon=config.norm_eps) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    batch, length = ids.shape
    x = weights["model.embed_tokens.weight"][ids] + weights["model.embed_positions.weight"][:length]
    for at in (f"model.layers.{i}" for i in range(config.num_layers)):
        normed = norm(x, f"{at}.input_layernorm")
        q, k, v = (
            linear(normed, f"{at}.self_attn.{part}_proj").reshape(batch, length, config.num_heads, -1) for part in "qkv"
        )
        context = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(context.reshape(batch, length, -1), f"{at}.self_attn.o_proj")
        inner = linear(norm(x, f"{at}.post_attention_layernorm"), f"{at}.mlp.up_proj")
        x = x + linear(jax.nn.gelu(inner, approximate=config.activation == "gelu_tanh"), f"{at}.mlp.down_proj")
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return norm(x, "model.norm") @ head.T


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
