"""Continuing prompts: the plain loop that recomputes everything, and the one with a KV cache."""

from common.decoding import Progress, context_window, crop_prompts, padded

from .attention import empty_cache
from .sampling import sample


def generate(model, config, prompts, sampling):
    """Yield, step by step, one new token per row (None for a row that has ended)."""
    # [1] refuse or crop prompts that outgrow the context
    progress = Progress(crop_prompts(prompts, sampling, config), sampling, config)
    # [2] with the cache while everything fits, then without
    if sampling.cache:
        yield from generate_cached(model, config, progress, sampling)
    yield from generate_plain(model, config, progress, sampling)


def generate_plain(model, config, progress, sampling):
    """One full forward per token over the last `context_length` tokens of every row (the book's loop)."""
    while not progress.finished:
        # [1] the window, padded on the left
        ids_BT, positions_BT = context_window(progress.rows, config)
        # [2] logits of the last column
        hidden_BTE, _ = model.model(ids_BT, positions_BT)
        logits_BV = model.head(hidden_BTE[:, -1])
        # [3] choose
        yield progress.take(sample(logits_BV, progress.positions, sampling, sampling.seed))


def generate_cached(model, config, progress, sampling):
    """Prefill the cache with the prompts, then feed one token at a time, while the longest row fits the context."""
    ids_BT, positions_BT = padded(progress.rows)
    steps = progress.steps_in_context
    # [1] prefill, in chunks if asked for
    caches = empty_cache(config, ids_BT.shape[0], ids_BT.shape[1] + steps)
    chunk = sampling.prefill_chunk or ids_BT.shape[1]
    for start in range(0, ids_BT.shape[1], chunk):
        part = slice(start, start + chunk)
        hidden_BTE, caches = model.model(ids_BT[:, part], positions_BT[:, part], caches)
    # [2] choose, feed, repeat
    for step in range(steps):
        yield progress.take(sample(model.head(hidden_BTE[:, -1]), progress.positions, sampling, sampling.seed))
        if progress.finished or step == steps - 1:
            return
        hidden_BTE, caches = model.model(progress.last_tokens[:, None], progress.last_positions[:, None], caches)
