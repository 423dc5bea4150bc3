"""GPT-2 (Radford et al. 2019): learned positions, pre-norm blocks, causal multi-head attention, GELU MLP."""

import jax.numpy as jnp
from flax import nnx

from common.taps import NO_TAPS

from ..attention import attention
from ..feed_forward import feed_forward
from ..layers import NORMS, PRODUCTS, Embedding, Linear, averaged, dropout, layer_key
from ..lora import adapt
from ..loss import LOSSES
from ..positions import POSITIONS
from ..precision import at_least, dtype
from ..stack import STACKS


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), dropout on either branch. x [B, T, E] -> ([B, T, E], cache)."""

    def __init__(self, config, layer, execution):
        self.rate, norm = config.dropout_shortcut, NORMS[config.norm][execution.norm]
        self.hands_on = config.attention_of(layer).hands_on(config)
        self.input_layernorm = norm(config.embed_dim, config.norm_eps, execution.precision)
        self.self_attn = attention(config, layer, execution)
        self.post_attention_layernorm = norm(config.embed_dim, config.norm_eps, execution.precision)
        self.mlp = feed_forward(config, layer, execution)

    def __call__(self, x_BTE, positions_BT, cache=None, dropout_key=None, taps=NO_TAPS, given=None):
        # [1] x + dropout(attention(norm(x)))
        normed_BTE = taps("input_layernorm", self.input_layernorm(x_BTE))
        shared, inner = {"given": given} if self.hands_on else {}, taps.under("self_attn")
        branch_BTE, cache = self.self_attn(normed_BTE, positions_BT, cache, dropout_key, inner, **shared)
        x_BTE = x_BTE + dropout(branch_BTE, self.rate, dropout_key, 1)
        # [2] x + dropout(mlp(norm(x)))
        normed_BTE = taps("post_attention_layernorm", self.post_attention_layernorm(x_BTE))
        branch_BTE = self.mlp(normed_BTE, taps.under("mlp"))
        x_BTE = x_BTE + dropout(branch_BTE, self.rate, dropout_key, 2)
        return taps("output", x_BTE), cache


class Decoder(nnx.Module):
    """Embeddings, blocks and the final norm. ids [B, T] -> (hidden [B, T, E], caches). Positions None are 0, 1, 2, …"""

    def __init__(self, config, execution):
        self.rate, self.run, self.pooling = config.dropout_embed, STACKS[execution.layers], config.pooling
        self.reduce = dtype(execution.precision.reduce)
        self.embed_tokens = Embedding(config.vocab_size, config.embed_dim, execution.precision)
        self.embed_positions = POSITIONS[config.positions](config, execution)
        self.layers = nnx.List([Block(config, layer, execution) for layer in range(config.num_layers)])
        self.norm = NORMS[config.norm][execution.norm](config.embed_dim, config.norm_eps, execution.precision)

    def __call__(self, ids_BT, positions_BT, caches=None, dropout_key=None, taps=NO_TAPS):
        # [1] token + position embedding; padding (-1) reads position 0, and nobody reads padding
        at = jnp.arange(ids_BT.shape[1]) if positions_BT is None else jnp.maximum(positions_BT, 0)
        x_BTE = self.embed_tokens(ids_BT)
        x_BTE = x_BTE if self.embed_positions is None else x_BTE + self.embed_positions(at)
        x_BTE = dropout(taps("embed", x_BTE), self.rate, layer_key(dropout_key, 0), 0)
        # [2] the blocks
        x_BTE, caches = self.run(self.layers, x_BTE, positions_BT, caches, dropout_key, taps)
        # [3] the final norm
        x_BTE = taps("norm", self.norm(x_BTE))
        # [4] the mean over the text, if the model pools
        return x_BTE if self.pooling == "none" else averaged(x_BTE, positions_BT, self.reduce), caches


class GPT(nnx.Module):
    """Decoder and head. ids [B, T], positions [B or 1, T] -> (logits [B, T, V], caches); of a classifier its
    labels stand in the place of V."""

    def __init__(self, config, execution):
        self.model, self.reduce = Decoder(config, execution), dtype(execution.precision.reduce)
        self.product, self.loss = PRODUCTS[execution.decode], LOSSES[execution.loss]
        own = config.num_labels is None and not config.tie_embeddings
        self.lm_head = Linear(config.embed_dim, config.vocab_size, False, execution) if own else None
        self.score = None if config.num_labels is None else Linear(config.embed_dim, config.num_labels, True, execution)
        adapt(self, config, execution)

    def __call__(self, ids_BT, positions_BT, caches=None, dropout_key=None, taps=NO_TAPS):
        # [1] hidden states
        hidden_BTE, caches = self.model(ids_BT, positions_BT, caches, dropout_key, taps.under("model"))
        # [2] logits
        return taps("logits", self.head(hidden_BTE)), caches

    @property
    def head_weight(self):
        """[V, E]; a tied head is the token embedding."""
        # [1] the head's own, or the embedding
        return (self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight)[...]

    def head(self, hidden_BTE):
        """Logits from hidden states."""
        # [1] hidden W^T, handed on in the precision of reductions
        linear = self.lm_head if self.score is None else self.score
        if linear is None or (self.score is None and linear.change is None):
            return self.product(hidden_BTE, self.head_weight, None, self.reduce)
        return at_least(linear(hidden_BTE), self.reduce)
