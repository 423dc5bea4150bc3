"""What model a bare set of tensors belongs to: everything from names and shapes, except the number of heads."""

from collections.abc import Mapping
from dataclasses import fields

from common.config import PRESETS, GPTConfig
from common.errors import UserError
from common.weights import gpt2_names
from common.weights.stored import Stored

SHAPING = ("vocab_size", "context_length", "embed_dim", "num_layers", "ff_dim")


def scheme_of(tensors: Mapping[str, Stored], where: object) -> gpt2_names.Scheme:
    """The naming scheme of the tensors, or a UserError that says which ones are known."""
    scheme = gpt2_names.recognise(tensors)
    if scheme is None:
        known = ", ".join(scheme.embed for scheme in gpt2_names.SCHEMES.values())
        first = ", ".join(list(tensors)[:3]) or "none"
        raise UserError(f"{where} has no token embedding under a known name ({known}); its first tensors are {first}.")
    return scheme


def _matrix(scheme: gpt2_names.Scheme, tensors: Mapping[str, Stored], name: str, where: object) -> tuple[int, int]:
    if name not in tensors or len(tensors[name].shape) != 2:
        raise UserError(f"{where} does not fit a GPT in the names of {scheme.title}: {name} must be there, a matrix.")
    return tensors[name].shape


def sizes(scheme: gpt2_names.Scheme, tensors: Mapping[str, Stored], where: object) -> dict[str, int | bool]:
    """The fields of a GPTConfig that names and shapes settle; num_heads, norm_eps and rates are not among them."""
    vocab_size, embed_dim = _matrix(scheme, tensors, scheme.embed, where)
    context_length, _ = _matrix(scheme, tensors, scheme.positions, where)
    layers = [number for name in tensors if (number := scheme.layer_of(name)) is not None]
    if not layers:
        raise UserError(f"{where} holds no layers under names like {scheme.layer.format(i=0)}*.")
    first = scheme.layer.format(i=min(layers))
    up = first + next(module[0] for module in scheme.modules if gpt2_names.UP in module) + scheme.linear_leaves[0]
    query = first + next(module[0] for module in scheme.modules if gpt2_names.QUERY in module) + scheme.linear_leaves[1]
    if up not in tensors or len(tensors[up].shape) < 2:
        raise UserError(f"{where} does not fit a GPT in the names of {scheme.title}: {up} must be there, a matrix.")
    ff_dim = tensors[up].shape[0] if scheme.layout == "out, in" else tensors[up].shape[-1]
    return {
        "vocab_size": vocab_size,
        "context_length": context_length,
        "embed_dim": embed_dim,
        "num_layers": min(max(layers) + 1, len(tensors)),  # a name cannot make the table longer than the file
        "ff_dim": ff_dim,
        "qkv_bias": scheme.fused or query in tensors,
        "tie_embeddings": scheme.head not in tensors,
    }


def preset_of(known: Mapping[str, int | bool]) -> str | None:
    """The first preset with these shapes; biases and tying apart, because trained variants differ in them."""
    same = (name for name, p in PRESETS.items() if all(getattr(p, field) == known[field] for field in SHAPING))
    return next(same, None)


def nearest_preset(config: GPTConfig, ignore: tuple[str, ...] = ()) -> tuple[str, dict[str, tuple[object, object]]]:
    """The preset that shares most fields with the config, and what differs: field -> (the config's, the preset's).

    Dropout rates do not count, nor do the fields in `ignore`.
    """
    differences = {
        name: {
            field.name: (getattr(config, field.name), getattr(preset, field.name))
            for field in fields(GPTConfig)
            if not field.name.startswith("dropout")
            and field.name not in ignore
            and getattr(config, field.name) != getattr(preset, field.name)
        }
        for name, preset in PRESETS.items()
    }
    name = min(differences, key=lambda name: len(differences[name]))
    return name, differences[name]


def config_of(
    tensors: Mapping[str, Stored], where: object, heads: int | None = None, tie: bool | None = None
) -> tuple[gpt2_names.Scheme, GPTConfig]:
    """Scheme and config of a bare set of tensors.

    The number of heads leaves no trace in the shapes: it comes from `heads`, or from the preset of the same shapes,
    else a UserError asks for it. `tie` overrides whether the head is taken as tied.
    """
    scheme = scheme_of(tensors, where)
    known = sizes(scheme, tensors, where)
    if tie is not None:
        known["tie_embeddings"] = tie
    if heads is None:
        name = preset_of(known)
        if name is None:
            raise UserError(
                f"{where} does not tell its number of heads and no preset has its shapes (width {known['embed_dim']},"
                f" {known['num_layers']} layers, vocabulary {known['vocab_size']}, context {known['context_length']}):"
                " say how many (--heads, heads=), or give the folder with its config."
            )
        heads = PRESETS[name].num_heads
    return scheme, GPTConfig(num_heads=heads, **known)
