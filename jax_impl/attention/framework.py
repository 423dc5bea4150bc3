"""Multi-head attention by the framework's own module, on the parameters of ours."""

import jax.numpy as jnp
from flax import nnx

from common.backend import without_cache, without_dropout
from common.errors import UserError
from common.taps import NO_TAPS

from ..masks import causal_mask
from .multi_head import MultiHeadAttention


class FrameworkAttention(MultiHeadAttention):
    """The same by `nnx.MultiHeadAttention`, which makes q, k and v itself; its cache is one of its own, so it has none.

    Its boolean mask says who is seen. x [B, T, E], positions [B or 1, T]. Returns ([B, T, E], None).
    """

    weights = False

    def __call__(self, x_BTE, positions_BT, cache=None, dropout_key=None, taps=NO_TAPS):
        # [1] what it cannot do is refused
        without_cache("The framework's own", cache)
        without_dropout("The framework's own", self.rate, dropout_key)
        if x_BTE.dtype == jnp.float64 and not self.weights:
            raise UserError("JAX's own module reduces in float32: use attention='plain' for float64.")
        # [2] a query that sees no key sees all of them, so that nothing becomes NaN
        mask_B1TS = causal_mask(positions_BT, positions_BT)
        sees_B1T1 = mask_B1TS.any(-1, keepdims=True)
        # [3] project, attend, join, project
        output_BTE, weights_BHTS = self._module(x_BTE, mask_B1TS | ~sees_B1T1)
        if weights_BHTS is not None:
            taps("weights", weights_BHTS)
        # [4] where nothing was visible only the last bias is left
        return taps("output", jnp.where(sees_B1T1[:, 0], output_BTE, self.o_proj.bias[...].astype(x_BTE.dtype))), None

    def _module(self, x_BTE, mask_B1TS):
        embed, heads, kind = x_BTE.shape[-1], self.num_heads, x_BTE.dtype
        made = nnx.eval_shape(
            lambda: nnx.MultiHeadAttention(heads, embed, dtype=kind, param_dtype=kind, decode=False, rngs=nnx.Rngs(0))
        )
        graph, state = nnx.split(made)
        flat = {}
        for path, linear in {"query": self.q_proj, "key": self.k_proj, "value": self.v_proj}.items():
            bias_O = jnp.zeros(embed, kind) if linear.bias is None else linear.bias[...].astype(kind)
            flat[path, "kernel"] = linear.weight[...].astype(kind).T.reshape(embed, heads, -1)
            flat[path, "bias"] = bias_O.reshape(heads, -1)
        flat["out", "kernel"] = self.o_proj.weight[...].astype(kind).T.reshape(heads, -1, embed)
        flat["out", "bias"] = self.o_proj.bias[...].astype(kind)
        module = nnx.merge(
            graph, nnx.from_flat_state({at: value.replace(flat[at]) for at, value in nnx.to_flat_state(state)})
        )
        if not self.weights:
            return module(x_BTE, mask=mask_B1TS), None
        output_BTE, found = nnx.capture(module, nnx.Intermediate)(x_BTE, mask=mask_B1TS, sow_weights=True)
        return output_BTE, found["attention_weights"][0]


class FrameworkAttentionWithWeights(FrameworkAttention):
    """The same that also returns its weights, for which the module computes all of them at once."""

    weights = True
