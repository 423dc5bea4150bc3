"""From one neuron to a network that learns: a guess, how wrong it is, its slopes, layers, a step down the slopes.

The language models do the same with more in every place (`layers.py`, `loss.py`, `train.py`, `optim.py`).
Source: Raschka, *Build a Large Language Model (From Scratch)*, appendix A.
"""

from itertools import pairwise

import torch

from common import params as parameters

from .loss import token_loss

HIDDEN = (30, 20)  # widths of the book's two layers between inputs and outputs


def neuron(x, weight, bias):
    """The probability that a logistic neuron gives to the label 1. Numbers, or arrays of one shape."""
    # [1] z = x w + b
    z = x * weight + bias
    # [2] a = 1 / (1 + exp(-z))
    return torch.sigmoid(z)


def neuron_loss(params, x, label):
    """-log of the probability of the label (0 or 1), in nats. params: {"weight", "bias"}."""
    # [1] the guess
    a = neuron(x, **params)
    # [2] binary cross-entropy
    return -(label * torch.log(a) + (1 - label) * torch.log(1 - a))


def gradients(loss, params, *data):
    """(loss(params, *data), its derivative by every parameter)."""
    # [1] the loss
    own = {name: p.detach().requires_grad_() for name, p in params.items()}
    value = loss(own, *data)
    # [2] differentiate
    return value.detach(), dict(zip(own, torch.autograd.grad(value, list(own.values())), strict=True))


def new_network(inputs, outputs, seed=0):
    """Parameters by name: weights [out, in] drawn by name, 1 / sqrt(in) wide, and biases of zero."""
    widths, found = (inputs, *HIDDEN, outputs), {}
    for layer, (before, after) in enumerate(pairwise(widths)):
        # [1] a weight for every input of every neuron
        name = f"layers.{layer}.weight"
        found[name] = torch.tensor((parameters.draw(seed, name, (after, before)) / before**0.5).tolist())
        # [2] and a bias for the neuron
        found[f"layers.{layer}.bias"] = torch.zeros(after)
    return found


def network(params, x_BI):
    """The logits of a network of linear layers. x [B, I] -> [B, O]."""
    last = len(params) // 2 - 1
    for layer in range(last + 1):
        # [1] x W^T + b
        x_BI = x_BI @ params[f"layers.{layer}.weight"].T + params[f"layers.{layer}.bias"]
        # [2] between layers only what is positive goes on
        if layer < last:
            x_BI = torch.relu(x_BI)
    return x_BI


def network_loss(params, x_BI, labels_B):
    """The mean cross-entropy of labels [B], in nats."""
    # [1] logits
    logits_BO = network(params, x_BI)
    # [2] sum of losses / count
    total, count = token_loss(logits_BO, labels_B)
    return total / count


def learn(params, x_BI, labels_B, rate):
    """One step of gradient descent. Returns (params, loss before)."""
    # [1] gradients
    loss, grads = gradients(network_loss, params, x_BI, labels_B)
    # [2] every parameter moves against its own
    return {name: p - rate * grads[name] for name, p in params.items()}, loss


def accuracy(params, x_BI, labels_B):
    """The share of labels [B] whose logit is the largest of their row."""
    # [1] the likeliest label
    guesses_B = network(params, x_BI).argmax(-1)
    # [2] how many are right
    return float((guesses_B == labels_B).float().mean())
