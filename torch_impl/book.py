"""The book's training runs (chapter 5, appendix D) with the random numbers that PyTorch draws there, in that order.

Everywhere else random numbers have addresses, and are the same in both frameworks. Here they come one after the other
from PyTorch's global generator: initial weights in the order in which the book makes its modules, the order of windows
by its data loader, a mask for every dropout as it is met. Source: Raschka 2024, section 5.2,
exercise 5.4, appendix D.
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from common.data.windows import Windows

from . import rng
from .backend import TorchModel

ORDER = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


class Line(NamedTuple):
    """What the book prints every few steps: mean losses in nats over the first batches, in evaluation. Epochs and steps
    are counted anew where `more` epochs begin, `at` is the step of the whole run."""

    epoch: int
    step: int
    loss: float
    held_out: float
    at: int


class Stream(NamedTuple):
    """A key that has no address: masks are drawn from the global generator, when they are asked for."""


@rng.fold_in_of.register
def _(key: Stream, data):
    return key


@rng.bernoulli.register
@torch.compiler.disable
def _(key: Stream, probability, shape, device="cpu"):
    return torch.empty(shape, dtype=torch.float32, device=device).bernoulli_(probability) > 0


def initial_weights(config):
    """Weights by name as PyTorch's modules draw them from the global generator, made in the book's order."""
    found = {}

    def linear(name, out_dim, in_dim, bias):
        made = torch.nn.Linear(in_dim, out_dim, bias=bias)
        found.update({f"{name}.{leaf}": p for leaf, p in made.named_parameters()})

    embed, inner = config.embed_dim, config.ff_dim
    found["model.embed_tokens.weight"] = torch.nn.Embedding(config.vocab_size, embed).weight
    found["model.embed_positions.weight"] = torch.nn.Embedding(config.context_length, embed).weight
    for layer in range(config.num_layers):
        shapes = ((embed, embed, config.qkv_bias),) * 3 + (
            (embed, embed, True),
            (inner, embed, True),
            (embed, inner, True),
        )
        for name, shape in zip(ORDER, shapes, strict=True):
            linear(f"model.layers.{layer}.{name}", *shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            _norm(found, f"model.layers.{layer}.{norm}", embed)
    _norm(found, "model.norm", embed)
    linear("lm_head", config.vocab_size, embed, False)
    return {name: p.detach().numpy() for name, p in found.items()}


def _norm(found, name, width):
    found[f"{name}.weight"], found[f"{name}.bias"] = torch.ones(width), torch.zeros(width)


def run(config, execution, kept, held_out, train, *, epochs, more=0, every, batches, shuffle=True):
    """(the model, an iterator that trains it on ids `kept`: a `Line` every so many steps, None after an epoch).

    Windows follow one after the other; `batches` of either part are evaluated. `more` epochs begin as exercise 5.4
    does: the generator is seeded anew, steps count from 0, the optimizer goes on. A rate that falls has fallen when
    `epochs` are over. Nothing else may draw from PyTorch's generator meanwhile; greedy texts do not.
    """
    torch.manual_seed(train.seed)
    model = TorchModel(config, initial_weights(config), execution)
    parts = (kept, shuffle), (held_out, False)
    loaders = [_loader(ids, config.context_length, train.batch_size, mixed) for ids, mixed in parts]
    train = train.with_(steps=max(1, epochs * len(loaders[0])))
    return model, _trained(model, loaders, train, (epochs, more), every, batches)


def _trained(model, loaders, train, parts, every, batches):
    config, weights = model.config, list(model.net.parameters())
    optimizer = torch.optim.AdamW(weights, lr=train.learning_rate, weight_decay=train.weight_decay)
    before = 0  # steps of the part that is over
    for part, epochs in enumerate(parts):
        step = 0
        if part:
            torch.manual_seed(train.seed)
        for epoch in range(1, epochs + 1):
            for inputs, targets in loaders[0]:
                optimizer.zero_grad()
                _loss(model, inputs, targets, Stream() if config.has_dropout else None).backward()
                limit = train.at(step).clip_norm
                if limit is not None:
                    torch.nn.utils.clip_grad_norm_(weights, limit)
                optimizer.param_groups[0]["lr"] = train.rate(step)
                optimizer.step()
                model.served = None
                if step % every == 0:
                    yield Line(epoch, step, *(_mean(model, loader, batches) for loader in loaders), before + step)
                step += 1
            yield None
        before = step


def _loader(ids, length, batch_size, shuffle):
    """Windows of ids, batch by batch; shuffled they have another order every time, and make full batches alone."""
    windows = Windows(ids, length)
    pairs = [torch.from_numpy(part).long() for part in windows.gather(torch.arange(len(windows)).numpy())]
    return DataLoader(TensorDataset(*pairs), batch_size, shuffle=shuffle, drop_last=shuffle)


def _loss(model, inputs, targets, key):
    """The mean of a batch's losses."""
    positions = torch.arange(inputs.shape[1], dtype=torch.int32)[None]
    hidden, _ = model.net.model(inputs, positions, dropout_key=key)
    return F.cross_entropy(model.net.head(hidden).flatten(0, 1), targets.flatten())


def _mean(model, loader, count):
    """The mean of the losses of the first `count` batches, without dropout; NaN of none."""
    losses = []
    with torch.no_grad():
        for number, (inputs, targets) in enumerate(loader):
            if number == count:
                break
            losses.append(_loss(model, inputs, targets, None).item())
    return sum(losses) / len(losses) if losses else math.nan
