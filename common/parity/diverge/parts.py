"""What each named value is: its axes, what it is made from, and which piece of code makes it."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One kind of named value. `axes` are letters of the house's legend (b, t, s, h, d, e, f, v); `reads` the names it
    is made from, as a reader would look for them; `made_by` the code that makes it.
    """

    axes: str
    reads: str
    made_by: str


PARTS: dict[str, Part] = {  # by the end of the name
    "embed": Part("bte", "the token ids and positions", "embed_tokens, embed_positions or their sum"),
    "input_layernorm": Part("bte", "the residual stream", "input_layernorm"),
    "self_attn.q": Part("bhtd", "input_layernorm", "self_attn.q_proj or the split into heads"),
    "self_attn.k": Part("bhsd", "input_layernorm", "self_attn.k_proj or the split into heads"),
    "self_attn.v": Part("bhsd", "input_layernorm", "self_attn.v_proj or the split into heads"),
    "self_attn.scores": Part("bhts", "q and k", "the attention kernel: q kᵀ, its scale or the mask"),
    "self_attn.weights": Part("bhts", "the scores", "the attention kernel: the softmax over the keys"),
    "self_attn.output": Part(
        "bte", "the weights and v", "weights times v, the joining of the heads or self_attn.o_proj"
    ),
    "post_attention_layernorm": Part(
        "bte", "the residual stream and self_attn.output", "the first residual sum or post_attention_layernorm"
    ),
    "mlp.hidden": Part("btf", "post_attention_layernorm", "mlp.up_proj or the activation"),
    "mlp.output": Part("bte", "mlp.hidden", "mlp.down_proj"),
    "output": Part("bte", "the residual stream, self_attn.output and mlp.output", "the residual sums of the block"),
    "norm": Part("bte", "the last block's output", "the final norm"),
    "logits": Part("btv", "the final norm's output", "the head"),
}
_PARAMETERS = {
    "embed_tokens.weight": "ve",
    "embed_positions.weight": "te",
    "up_proj.weight": "fe",
    "up_proj.bias": "f",
    "down_proj.weight": "ef",
    "lm_head.weight": "ve",
}
_BY_RANK = ("", "e", "oi", "bte", "bhtd")


def key(name: str) -> str:
    """The key of a name in PARTS ("model.layers.3.mlp.hidden" gives "mlp.hidden"), or its last word."""
    fits = [end for end in PARTS if name == end or name.endswith(f".{end}")]
    return max(fits, key=len, default=name.rpartition(".")[2])


def layer(name: str) -> int | None:
    """The number of the layer that a name speaks of."""
    found = re.search(r"\blayers\.(\d+)\.", name)
    return int(found[1]) if found else None


def in_layer(name: str) -> str:
    """The name without the model and the layer: what repeats from layer to layer."""
    return re.sub(r"^model\.(layers\.\d+\.)?", "", name)


def axes(name: str, rank: int) -> str:
    """A letter for every axis of a named value or parameter (o and i are a linear map's outputs and inputs)."""
    known = PARTS[key(name)].axes if key(name) in PARTS else ""
    known = next((letters for end, letters in _PARAMETERS.items() if name.endswith(end)), known)
    if len(known) == rank:
        return known
    return _BY_RANK[rank] if rank < len(_BY_RANK) else "ijklmn"[:rank]


def index(letters: str, where: tuple[int, ...]) -> str:
    """(1, 0, 4) with "bte" as "b 1, t 0, e 4"."""
    return ", ".join(f"{letter} {at}" for letter, at in zip(letters, where, strict=True))
