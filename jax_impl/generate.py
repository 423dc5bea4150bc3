"""Continuing prompts: the plain loop that recomputes everything, and the one with a KV cache.

The cached loop runs on the device (`decode`), a block of tokens per call; a block of one is a stream.
"""

import jax
import jax.numpy as jnp
import numpy as np

from common.decoding import Progress, context_window, crop_prompts, padded
from common.parameter import is_matrix

from .attention import empty_cache
from .precision import dtype
from .sampling import sample

# a token multiplies the matrices of its own experts; the loop, whose shapes are static, would multiply those of all
WHILE_DECODING = {"plain": {}, "streamed": {"experts": "gathered"}}


def serve(params, execution):
    """The parameters that decode: matrices in the type of compute, once."""
    # [1] matrices in the type in which they are multiplied; vectors are added in that of parameters
    kind = dtype(execution.precision.compute)
    return {name: p.astype(kind) if is_matrix(name, p.ndim) else p for name, p in params.items()}


def generate(programs, params, decoder, config, execution, prompts, sampling, block):
    """Yield, step by step, one new token per row (None for a row that has ended). `decoder()` is `serve(params, …)`."""
    # [1] refuse or crop prompts that outgrow the context
    progress = Progress(crop_prompts(prompts, sampling, config), sampling, config)
    # [2] with the cache while everything fits, then without
    if sampling.cache:
        yield from generate_cached(programs, params, decoder, config, execution, progress, sampling, block)
    yield from generate_plain(programs, params, config, execution, progress, sampling)


def generate_plain(programs, params, config, execution, progress, sampling):
    """One full forward per token over the last `context_length` tokens of every row (the book's loop)."""
    seed, most = np.uint32(sampling.seed), int(progress.lengths.max()) + sampling.max_new_tokens - 1
    width = min(config.context_length, -(-most // 16) * 16)  # one shape, one compilation
    while not progress.finished:
        # [1] the window, padded on the left
        ids_BT, positions_BT = context_window(progress.rows, config, width)
        # [2] logits of the last column  [3] choose
        tokens_B = programs.next_token(params, ids_BT, positions_BT, progress.positions, seed, recipe(sampling))
        yield progress.take(np.asarray(tokens_B))


def generate_cached(programs, params, decoder, config, execution, progress, sampling, block):
    """Prefill the cache with the prompts, then feed one token at a time, while the longest row fits the context."""
    # [1] prefill, in chunks if asked for
    logits_BV, caches = fill(programs, params, config, execution, progress)
    # [2] choose, feed, repeat
    params, steps, seed = decoder(), progress.steps_in_context, np.uint32(sampling.seed)
    token_B = programs.choose(logits_BV, progress.positions, seed, recipe(sampling))
    yield progress.take(np.asarray(token_B))
    while not progress.finished and progress.steps < steps:
        count = min(block, steps - progress.steps)
        size = bucket(count, 64) if block > 1 else 1
        caches, token_B, tokens_BN = programs.decode(
            params,
            caches,
            token_B,
            progress.last_positions,
            progress.ended,
            seed,
            np.int32(count),
            size,
            recipe(sampling),
        )
        for tokens_B in np.asarray(tokens_BN).T[:count]:
            yield progress.take(tokens_B)
            if progress.finished:
                return


def fill(programs, params, config, execution, progress):
    """A cache with room for what is to come, that holds the rows so far. Returns (last logits, caches)."""
    longest, steps = int(progress.lengths.max()), progress.steps_in_context
    ids_BT, positions_BT = padded(progress.rows, bucket(longest))
    caches = empty_cache(config, ids_BT.shape[0], ids_BT.shape[1] + bucket(steps, 64), execution)
    chunk = progress.sampling.prefill_chunk or ids_BT.shape[1]
    for start in range(0, ids_BT.shape[1], chunk):
        part = slice(start, start + chunk)
        logits_BV, caches = programs.prefill(params, caches, ids_BT[:, part], positions_BT[:, part])
    return logits_BV, caches


def decode(model, caches, token_B, positions_B, ended_B, seed, count, size, sampling, address):
    """Feed `token_B` at `positions_B`, choose the next, and so on, `count` times or until every row has ended.

    Returns (caches, the newest token [B], the tokens [B, size]; columns from `count` on hold nothing). One program
    serves every count up to the static `size`.
    """

    def go_on(state):
        step, _, _, ended_B, _ = state
        return (step < count) & ~ended_B.all()

    def feed(state):
        step, caches, token_B, ended_B, tokens_BN = state
        at_B = positions_B + step
        hidden_BTE, caches = model.model(token_B[:, None], at_B[:, None], caches)
        token_B = sample(model.head(hidden_BTE[:, -1]), at_B + 1, sampling, seed, address)
        if sampling.end_token is not None:
            ended_B = ended_B | (token_B == sampling.end_token)
        return step + 1, caches, token_B, ended_B, tokens_BN.at[:, step].set(token_B)

    empty_BN = jnp.zeros((len(token_B), size), jnp.int32)
    state = (jnp.int32(0), caches, token_B, ended_B, empty_BN)
    _, caches, token_B, _, tokens_BN = jax.lax.while_loop(go_on, feed, state)
    return caches, token_B, tokens_BN


def recipe(sampling):
    """What of the sampling settings a compiled program depends on: everything but lengths and the seed."""
    return sampling.with_(max_new_tokens=1, seed=0, overflow="error", cache=True, prefill_chunk=None)


def bucket(length, least=16):
    """The next power of two: few lengths, so few compilations."""
    return max(least, 1 << (length - 1).bit_length())
