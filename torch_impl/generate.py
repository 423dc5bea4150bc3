"""Continuing prompts: the plain loop that recomputes everything, and the one with a KV cache."""

import functools

import torch

from common.accounting import parts
from common.decoding import Progress, context_window, crop_prompts, padded
from common.parameter import is_matrix

from .attention import empty_cache
from .graphs import GRAPHS
from .layers import library_streams, streamed_product
from .models import MODELS
from .precision import dtype
from .rng import GENERATORS
from .sampling import sample
from .stack import compile_in_place

# a compiled step writes its own attention and norms, and fuses them with what surrounds them
WHILE_DECODING = {"plain": {}, "streamed": {"attention": "plain", "norm": "plain", "experts": "gathered"}}


def serve(model, config, execution):
    """The model that decodes: its matrices in the type of compute, once; compiled as a whole if its products stream."""
    # [1] matrices in the type in which they are multiplied; vectors are added in that of parameters
    kind = dtype(execution.precision.compute)
    with torch.device("meta"):
        forms = parts.decoding(config, execution)
        own = execution.with_(layers="loop", masks="plain", **WHILE_DECODING[execution.decode], **forms)
        served = MODELS[config.family](config, own)
    for name, p in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        matrix = p.detach().to(kind) if is_matrix(name, p.ndim) else p.detach()
        setattr(served.get_submodule(module), leaf, torch.nn.Parameter(matrix, requires_grad=False))
    for name, bits in model.named_buffers():
        module, _, leaf = name.rpartition(".")
        setattr(served.get_submodule(module), leaf, bits)
    # [2] compile: a step as a whole, with products that all threads read, or blocks where the model's are
    if execution.decode == "streamed" and not library_streams(kind, execution.device):
        for module in served.modules():
            if hasattr(module, "product"):
                module.product = functools.partial(streamed_product, several=module.product)
    if execution.decode == "streamed" and execution.compile is not False:
        compile_in_place(served.model, dynamic=False, fullgraph=True)
        served.head = torch.compile(served.head, dynamic=False, fullgraph=True)
    elif execution.compile:
        for block in served.model.layers:
            compile_in_place(block)
    # [3] launch kernels one by one, or all of a step at once
    return GRAPHS[execution.graphs].decoder(served, execution.device)


def generate(model, decoder, config, execution, prompts, sampling):
    """Yield, step by step, one new token per row (None for a row that has ended). `decoder()` is `serve(model, …)`."""
    # [1] refuse or crop prompts that outgrow the context
    progress = Progress(crop_prompts(prompts, sampling, config), sampling, config)
    # [2] with the cache while everything fits, then without
    if sampling.cache:
        yield from generate_cached(model, decoder, config, execution, progress, sampling)
    yield from generate_plain(model, config, execution, progress, sampling)


def generate_plain(model, config, execution, progress, sampling):
    """One full forward per token over the last `context_length` tokens of every row (the book's loop)."""
    while not progress.finished:
        # [1] the window, padded on the left
        ids_BT, positions_BT = _put(context_window(progress.rows, config), execution)
        # [2] logits of the last column
        with torch.inference_mode():
            hidden_BTE, _ = model.model(ids_BT, positions_BT)
            logits_BV = model.head(hidden_BTE[:, -1])
            # [3] choose
            tokens_B = sample(logits_BV, progress.positions, sampling, sampling.seed, GENERATORS[execution.rng])
        yield progress.take(tokens_B.tolist())


def generate_cached(model, decoder, config, execution, progress, sampling):
    """Prefill the cache with the prompts, then feed one token at a time, while the longest row fits the context."""
    # [1] prefill, in chunks if asked for
    hidden_BTE, caches = fill(model, config, execution, progress)
    # [2] choose, feed, repeat
    yield from go_on(model, decoder, execution, progress, hidden_BTE, caches)


def fill(model, config, execution, progress):
    """A cache with room for what is to come, that holds the rows so far. Returns (hidden states, caches)."""
    ids_BT, positions_BT = _put(padded(progress.rows), execution)
    steps = progress.steps_in_context
    chunk = progress.sampling.prefill_chunk or ids_BT.shape[1]
    with torch.inference_mode():
        caches = empty_cache(config, ids_BT.shape[0], rounded(ids_BT.shape[1] + steps), execution)
        for start in range(0, ids_BT.shape[1], chunk):
            part = slice(start, start + chunk)
            hidden_BTE, caches = model.model(ids_BT[:, part], positions_BT[:, part], caches)
    return hidden_BTE, caches


def go_on(model, decoder, execution, progress, hidden_BTE, caches):
    """Yield one new token per row, chosen from the last hidden state, then from those of `decoder()`."""
    sampling, steps, address = progress.sampling, progress.steps_in_context, GENERATORS[execution.rng]
    for step in range(steps):
        with torch.inference_mode():
            tokens_B = sample(model.head(hidden_BTE[:, -1]), progress.positions, sampling, sampling.seed, address)
        yield progress.take(tokens_B.tolist())
        if progress.finished or step == steps - 1:
            return
        ids_B1, positions_B1 = _put((progress.last_tokens[:, None], progress.last_positions[:, None]), execution)
        with torch.inference_mode():
            model = decoder()
            hidden_BTE, caches = model.model(ids_B1, positions_B1, caches)


def rounded(slots):
    """The next multiple of 64: few shapes, few compilations."""
    return -(-slots // 64) * 64


def _put(arrays, execution):
    return [torch.from_numpy(array).to(execution.device) for array in arrays]
