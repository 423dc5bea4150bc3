"""The training run of the book's chapter 5 with the random numbers that PyTorch itself draws there, in that order.

Everywhere else random numbers have addresses, and are the same in both frameworks. Here they come one after the other
from PyTorch's global generator: initial weights in the order in which the book makes its modules, the order of windows
by its data loader, a mask for every dropout as it is met. Source: Raschka 2024, section 5.2.
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
    """What the book prints every few steps: mean losses in nats over the first batches, in evaluation."""

    epoch: int
    step: int
    loss: float
    held_out: float


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


def run(config, execution, kept, held_out, *, seed, epochs, batch_size, rate, decay, every, batches):
    """(the model, an iterator that trains it on ids `kept` and gives a `Line` every so many steps).

    Windows follow one after the other; `batches` of either part are evaluated. Nothing else may draw from PyTorch's
    generator meanwhile.
    """
    torch.manual_seed(seed)
    model = TorchModel(config, initial_weights(config), execution)
    return model, _trained(model, kept, held_out, epochs, batch_size, rate, decay, every, batches)


def _trained(model, kept, held_out, epochs, batch_size, rate, decay, every, batches):
    config = model.config
    optimizer = torch.optim.AdamW(model.net.parameters(), lr=rate, weight_decay=decay)
    train, rest = (
        _loader(ids, config.context_length, batch_size, first) for ids, first in ((kept, True), (held_out, False))
    )
    step = -1
    for epoch in range(1, epochs + 1):
        for inputs, targets in train:
            optimizer.zero_grad()
            _loss(model, inputs, targets, Stream() if config.has_dropout else None).backward()
            optimizer.step()
            step += 1
            if step % every == 0:
                yield Line(epoch, step, *(_mean(model, loader, batches) for loader in (train, rest)))


def _loader(ids, length, batch_size, first):
    """Both parts' windows; of the first part in another order every time, and full batches alone."""
    windows = Windows(ids, length)
    pairs = [torch.from_numpy(part).long() for part in windows.gather(torch.arange(len(windows)).numpy())]
    return DataLoader(TensorDataset(*pairs), batch_size, shuffle=first, drop_last=first)


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
