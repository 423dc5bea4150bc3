"""Known mistakes of ports. From the values that a side had before a step, each computes what would come out with it.

If one of them gives exactly what the side has, the mistake is not guessed but shown. Sources: the lists of
planted bugs in `common/parity/mutants/`, and the bugs that ports of GPT-2 have had. All arrays are float64.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from common.oracle.attention.kernels import softmax
from common.oracle.attention.multi_head import join_heads, split_heads
from common.oracle.layers import ACTIVATIONS
from common.parity.diverge import parts
from common.parity.diverge.inputs import Subject

Guess = tuple[str, np.ndarray]


@dataclass(frozen=True)
class Step:
    """One named value of one side: what it is (`got`), and what the side had before it (`at`)."""

    name: str
    got: np.ndarray
    values: Mapping[str, np.ndarray]
    subject: Subject

    @property
    def layer(self) -> str:
        """ "model.layers.3." or "model."."""
        number = parts.layer(self.name)
        return "model." if number is None else f"model.layers.{number}."

    @property
    def stream(self) -> np.ndarray:
        """The residual stream that enters this layer, or leaves the last one."""
        number = parts.layer(self.name)
        before = self.subject.config.num_layers if number is None else number
        return self.at(f"model.layers.{before - 1}.output" if before else "model.embed")

    def at(self, name: str) -> np.ndarray:
        """A value of this side by its full name, or by its name within the layer."""
        return np.asarray(self.values[name if name in self.values else self.layer + name], np.float64)

    def weight(self, name: str) -> np.ndarray | None:
        """A parameter by its full name, or by its name within the layer; None if the model has none."""
        weights = self.subject.weights
        name = name if name in weights else self.layer + name
        return np.asarray(weights[name], np.float64) if name in weights else None

    def linear(self, name: str, x: np.ndarray, bias: bool = True) -> np.ndarray:
        """x W^T + b."""
        b = self.weight(f"{name}.bias") if bias else None
        y = x @ self.weight(f"{name}.weight").T
        return y if b is None else y + b


def guesses(step: Step) -> Iterator[Guess]:
    """(the mistake, what it would give) for a named value; nothing for names that this file does not know."""
    known = _MISTAKES.get(parts.key(step.name))
    if known is not None:
        try:
            with np.errstate(all="ignore"):
                yield from known(step)
        except (KeyError, TypeError, ValueError):  # a model that has the name but not the parts around it
            return


def _embed(step: Step) -> Iterator[Guess]:
    tokens, places = step.weight("model.embed_tokens.weight"), step.weight("model.embed_positions.weight")
    ids, given = step.subject.ids, step.subject.positions
    slots = np.arange(ids.shape[1])[None]
    at = slots if given is None else np.maximum(given, 0)
    picked, scale = tokens[ids], math.sqrt(tokens.shape[-1])
    yield "the position embedding is not added", picked
    yield "the token embedding is missing", 0 * picked + places[at]
    yield "positions start at 1, not at 0", picked + places[np.minimum(at + 1, len(places) - 1)]
    yield "positions are one too low", picked + places[np.maximum(at - 1, 0)]
    yield "positions count the padding", picked + places[slots]
    yield "every token is at position 0", picked + places[0]
    yield "positions run backwards", picked + places[at.max() - at]
    yield "the token embedding is scaled by sqrt(d_model)", picked * scale + places[at]
    yield "the sum is scaled by sqrt(d_model)", (picked + places[at]) * scale


def _norm_of(name: str, inputs: Callable[[Step], Iterator[Guess]]) -> Callable[[Step], Iterator[Guess]]:
    """Mistakes of a layer norm; the first of `inputs` is the right one."""

    def mistakes(step: Step) -> Iterator[Guess]:
        (_, x), *others = inputs(step)
        config, eps, size = step.subject.config, step.subject.config.norm_eps, x.shape[-1]
        w, b = step.weight(f"{name}.weight"), step.weight(f"{name}.bias")
        centred = x - x.mean(-1, keepdims=True)
        variance = np.square(centred).mean(-1, keepdims=True)
        plain = centred / np.sqrt(variance + eps)
        yield "its bias is missing", plain * w
        yield "its weight is missing", plain + b
        yield "its weight and bias are missing", plain
        yield "its weight is added to 1", plain * (1 + w) + b
        yield "the norm is skipped", x
        yield (
            f"the variance divides by {size - 1} (ddof 1), not by {size}",
            _scaled(centred, np.sqrt(variance * size / max(size - 1, 1) + eps), w, b),
        )
        yield (
            "eps is added to the standard deviation, outside the root",
            _scaled(centred, np.sqrt(variance) + eps, w, b),
        )
        yield "it divides by the variance, not by its root", _scaled(centred, variance + eps, w, b)
        yield (
            "it does not centre (as an RMS norm)",
            _scaled(x, np.sqrt(np.square(x).mean(-1, keepdims=True) + eps), w, b),
        )
        yield "it divides by the standard deviation without centring", _scaled(x, np.sqrt(variance + eps), w, b)
        for other in _norms(config.num_layers):
            wrong = step.weight(f"{other}.weight"), step.weight(f"{other}.bias")
            if other != step.layer + name:
                yield f"it has the weights of {other}", plain * wrong[0] + wrong[1]
        if step.got.shape == x.shape:  # which eps would give it?
            direction = centred * w
            factor = np.sum((step.got - b) * direction, -1, keepdims=True) / np.sum(direction**2, -1, keepdims=True)
            found = max(float(np.median(1 / factor**2 - variance)), 0.0)
            yield f"eps is about {found:.1e}, not {eps:.1e}", _scaled(centred, np.sqrt(variance + found), w, b)
        for what, wrong in others:
            middle = wrong - wrong.mean(-1, keepdims=True)
            yield what, _scaled(middle, np.sqrt(np.square(middle).mean(-1, keepdims=True) + eps), w, b)

    return mistakes


def _scaled(x: np.ndarray, by: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    return x / by * w + b


def _norms(layers: int) -> list[str]:
    inner = [
        f"model.layers.{i}.{name}" for i in range(layers) for name in ("input_layernorm", "post_attention_layernorm")
    ]
    return [*inner, "model.norm"]


def _before_attention(step: Step) -> Iterator[Guess]:
    yield "", step.stream


def _before_mlp(step: Step) -> Iterator[Guess]:
    attended, normed = step.at("self_attn.output"), step.at("input_layernorm")
    yield "", step.stream + attended
    yield "the attention branch is not added to the residual stream", step.stream
    yield "the residual stream is not added to the attention branch", attended
    yield "the residual is taken after the norm", normed + attended
    yield "the attention branch is subtracted", step.stream - attended
    yield "the attention branch is added twice", step.stream + 2 * attended


def _projection(which: str) -> Callable[[Step], Iterator[Guess]]:
    """Mistakes of the q, k or v projection and of the split into heads."""

    def mistakes(step: Step) -> Iterator[Guess]:
        heads, name = step.subject.config.num_heads, f"self_attn.{which}_proj"
        x = step.at("input_layernorm")
        y = step.linear(name, x)
        batch, length, embed = y.shape
        size = embed // heads
        yield "its bias is missing", split_heads(step.linear(name, x, bias=False), heads)
        for other in "qkv".replace(which, ""):
            yield (
                f"it is {other}: the projections are swapped",
                split_heads(step.linear(f"self_attn.{other}_proj", x), heads),
            )
        yield "the split into heads lacks its transpose", y.reshape(batch, heads, length, size)
        yield "heads and features are exchanged in the split", np.moveaxis(y.reshape(batch, length, size, heads), 3, 1)
        bias = step.weight(f"{name}.bias")
        turned = x @ step.weight(f"{name}.weight") + (0 if bias is None else bias)
        yield "its weight is transposed", split_heads(turned, heads)
        yield "it reads the residual stream before the norm", split_heads(step.linear(name, step.stream), heads)
        yield "it is divided by sqrt(D), which belongs to the scores", split_heads(y, heads) / math.sqrt(size)
        rows = [step.linear(f"self_attn.{p}_proj", x) for p in "qkv"]
        fused = np.concatenate(rows, -1).reshape(batch, length, heads, 3, size)
        yield (
            "the fused projection is cut by heads first, not in thirds",
            np.swapaxes(fused[:, :, :, "qkv".index(which)], 1, 2),
        )

    return mistakes


def _scores(step: Step) -> Iterator[Guess]:
    q, k, config = step.at("self_attn.q"), step.at("self_attn.k"), step.subject.config
    products, size = q @ np.swapaxes(k, 2, 3), q.shape[-1]
    length, given = q.shape[2], step.subject.positions
    at = np.arange(length)[None] if given is None else given
    query, key = at[:, None, :, None], at[:, None, None, :]
    there, causal = key >= 0, (key <= query) & (key >= 0)
    scales = {
        "they are not divided by sqrt(D)": 1.0,
        "they are divided by sqrt(d_model), not by sqrt(D)": 1 / math.sqrt(config.embed_dim),
        "they are divided by D, not by sqrt(D)": 1 / size,
        "they are divided by sqrt(H), not by sqrt(D)": 1 / math.sqrt(config.num_heads),
        "they are multiplied by sqrt(D)": math.sqrt(size),
    }
    for what, scale in scales.items():
        yield what, _masked(products * scale, causal)
    right = products / math.sqrt(size)
    yield "nothing is masked", right
    yield "the mask is not causal", _masked(right, there)
    yield "a query does not see its own position", _masked(right, (key < query) & there)
    yield "a query sees one position too many", _masked(right, (key <= query + 1) & there)
    yield "the mask is upside down: queries see later keys", _masked(right, (key >= query) & there)
    yield "padding is not masked", _masked(right, key <= query)
    yield "hidden keys get 0, not -inf", np.where(causal, right, 0.0)
    yield "q and k are exchanged", _masked(np.swapaxes(right, 2, 3), causal)


def _masked(scores: np.ndarray, sees: np.ndarray) -> np.ndarray:
    """-inf where a query does not see a key; zeros in rows that see none."""
    return np.where(sees, scores, np.where(sees.any(-1, keepdims=True), -np.inf, 0.0))


def _weights(step: Step) -> Iterator[Guess]:
    scores = step.at("self_attn.scores")
    right = softmax(scores)
    yield "the softmax runs over the queries, not over the keys", np.swapaxes(softmax(np.swapaxes(scores, 2, 3)), 2, 3)
    yield "the softmax runs over the heads", np.moveaxis(softmax(np.moveaxis(scores, 1, -1)), -1, 1)
    yield "they are not normalised", np.exp(scores)
    yield "they are the scores: there is no softmax", scores
    yield "sigmoid stands for softmax", 1 / (1 + np.exp(-scores))
    yield "the scale is applied once more", softmax(scores / math.sqrt(step.at("self_attn.q").shape[-1]))
    yield "they are transposed", np.swapaxes(right, 2, 3)


def _attended(step: Step) -> Iterator[Guess]:
    weights, v = step.at("self_attn.weights"), step.at("self_attn.v")
    context, name = weights @ v, "self_attn.o_proj"
    joined = join_heads(context)
    yield "the bias of o_proj is missing", step.linear(name, joined, bias=False)
    yield "o_proj is skipped", joined
    yield "the heads are joined without their transpose", step.linear(name, context.reshape(joined.shape))
    yield (
        "heads and features are exchanged when joined",
        step.linear(name, np.moveaxis(context, 1, 3).reshape(joined.shape)),
    )
    for other in "qk":
        yield (
            f"the weights act on {other}, not on v",
            step.linear(name, join_heads(weights @ step.at(f"self_attn.{other}"))),
        )
    yield (
        "the weights are transposed before they act on v",
        step.linear(name, join_heads(np.swapaxes(weights, 2, 3) @ v)),
    )
    yield "the weight of o_proj is transposed", joined @ step.weight(f"{name}.weight") + step.weight(f"{name}.bias")
    yield "the residual stream is already added", step.linear(name, joined) + step.stream


def _hidden(step: Step) -> Iterator[Guess]:
    name, config = "mlp.up_proj", step.subject.config
    x = step.at("post_attention_layernorm")
    act, wide = ACTIVATIONS[config.activation], step.linear(name, x)
    for other, function in {**ACTIVATIONS, **_OTHER_ACTIVATIONS}.items():
        if other != config.activation:
            yield f"the activation is {other}, not {config.activation}", function(wide)
    yield "the bias of up_proj is missing", act(step.linear(name, x, bias=False))
    yield (
        "it reads the residual stream before the norm",
        act(step.linear(name, step.stream + step.at("self_attn.output"))),
    )
    yield "the activation is applied twice", act(act(wide))


_OTHER_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tanh with 0.044 for 0.044715": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044 * x**3))),
    "the identity": lambda x: x,
    "tanh": np.tanh,
}


def _mlp(step: Step) -> Iterator[Guess]:
    x, name = step.at("mlp.hidden"), "mlp.down_proj"
    yield "the bias of down_proj is missing", step.linear(name, x, bias=False)
    yield "the activation is applied to its output", ACTIVATIONS[step.subject.config.activation](step.linear(name, x))
    yield "the residual stream is already added", step.linear(name, x) + step.stream + step.at("self_attn.output")


def _block(step: Step) -> Iterator[Guess]:
    x, attended, mlp = step.stream, step.at("self_attn.output"), step.at("mlp.output")
    yield "the feed-forward branch is not added", x + attended
    yield "the attention branch is lost: the second sum starts from the block's input", x + mlp
    yield "the residual stream is not added", mlp
    yield "the second residual is taken after the norm", step.at("post_attention_layernorm") + mlp
    yield "only the first residual is missing", attended + mlp
    yield "the first residual is taken after the norm", step.at("input_layernorm") + attended + mlp
    yield "the feed-forward branch is added twice", x + attended + 2 * mlp
    yield "the block's input is added twice", 2 * x + attended + mlp


def _logits(step: Step) -> Iterator[Guess]:
    config, x = step.subject.config, step.at("model.norm")
    tied, own = step.weight("model.embed_tokens.weight"), step.weight("lm_head.weight")
    right = x @ (tied if own is None else own).T
    yield "the final norm is skipped", step.stream @ (tied if own is None else own).T
    if own is not None:
        yield "the head is tied to the token embedding, but the model has a head of its own", x @ tied.T
    yield "they are divided by sqrt(d_model)", right / math.sqrt(config.embed_dim)
    yield (
        "they are log-probabilities",
        right
        - np.log(np.exp(right - right.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - right.max(-1, keepdims=True),
    )
    yield "they are probabilities", softmax(right)


_MISTAKES: dict[str, Callable[[Step], Iterator[Guess]]] = {
    "embed": _embed,
    "input_layernorm": _norm_of("input_layernorm", _before_attention),
    "self_attn.q": _projection("q"),
    "self_attn.k": _projection("k"),
    "self_attn.v": _projection("v"),
    "self_attn.scores": _scores,
    "self_attn.weights": _weights,
    "self_attn.output": _attended,
    "post_attention_layernorm": _norm_of("post_attention_layernorm", _before_mlp),
    "mlp.hidden": _hidden,
    "mlp.output": _mlp,
    "output": _block,
    "norm": _norm_of("norm", _before_attention),
    "logits": _logits,
}
