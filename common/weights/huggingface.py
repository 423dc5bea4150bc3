"""GPT-2 in the form of Hugging Face transformers: a folder with config.json and safetensors, both ways.

Source of the fields and their defaults: transformers, models/gpt2/configuration_gpt2.py.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.config import GPTConfig
from common.errors import UserError
from common.files import replacing_folder
from common.weights import gpt2_names, safetensors_io
from common.weights.damage import damaged, one_line, read_json
from common.weights.folders import require_replaceable
from common.weights.infer import scheme_of
from common.weights.stored import StoredWeights

END_OF_TEXT = 50256

# ours: (theirs, the other names it has gone by, the value that a missing key means)
_FIELDS: dict[str, tuple[str, tuple[str, ...], Any]] = {
    "vocab_size": ("vocab_size", (), 50257),
    "context_length": ("n_positions", ("max_position_embeddings", "n_ctx"), 1024),
    "embed_dim": ("n_embd", ("hidden_size",), 768),
    "num_layers": ("n_layer", ("num_hidden_layers",), 12),
    "num_heads": ("n_head", ("num_attention_heads",), 12),
    "ff_dim": ("n_inner", (), None),
    "tie_embeddings": ("tie_word_embeddings", (), True),
    "norm_eps": ("layer_norm_epsilon", (), 1e-5),
    "dropout_embed": ("embd_pdrop", (), 0.1),
    "dropout_attn": ("attn_pdrop", (), 0.1),
    "dropout_shortcut": ("resid_pdrop", (), 0.1),
}
_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "quick_gelu": "quick_gelu",
}
_OURS_TO_THEIRS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "silu": "silu", "quick_gelu": "quick_gelu"}
_REQUIRED: dict[str, Any] = {  # options that change the function: only these values are implemented
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "quantization_config": None,
    "pruned_heads": {},
}


CLASSIFIER, PROBLEM = "GPT2ForSequenceClassification", "single_label_classification"


def classes_from_dict(values: Mapping[str, Any], where: object) -> list[str] | None:
    """The names of a classifier's classes, by number, from transformers' config; None for a model of tokens.

    It keeps them as `id2label`, and leaves that out for its default, two. Source: transformers, configuration_utils.py.
    """
    kinds = values.get("architectures")
    if not isinstance(kinds, list) or CLASSIFIER not in kinds:
        return None
    if (problem := values.get("problem_type")) not in (None, PROBLEM):
        raise UserError(f"{where} has problem_type = {one_line(problem)}, which is not implemented; {PROBLEM} is.")
    names = values.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    if not isinstance(names, dict) or set(names) != {str(number) for number in range(len(names))}:
        raise UserError(f"{where} has an id2label that does not name the classes from 0 on.")
    if len(names) < 2:
        raise UserError(f"{where} is for a model with one output, which is no classifier: it has to tell two classes.")
    return [str(names[str(number)]) for number in range(len(names))]


def config_from_dict(values: Mapping[str, Any], where: object) -> GPTConfig:
    """A GPTConfig from transformers' config; refuses other families and options that change the computation."""
    family = values.get("model_type")
    if family != "gpt2":
        raise UserError(f"{where} is for a model of type {family!r}; only 'gpt2' can be read.")
    for option, only in _REQUIRED.items():
        if (value := values.get(option, only)) not in (only, None):
            raise UserError(f"{where} has {option} = {one_line(value)}, which is not implemented; {only} is.")
    activation = values.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise UserError(f"{where} has the activation {activation!r}, which is not implemented; known are {known}.")
    ours: dict[str, Any] = {"activation": _ACTIVATIONS[activation], "qkv_bias": True}
    if (classes := classes_from_dict(values, where)) is not None:
        ours["num_labels"] = len(classes)
    for field, (theirs, aliases, default) in _FIELDS.items():
        ours[field] = next((values[key] for key in (theirs, *aliases) if key in values), default)
    try:
        return GPTConfig(**ours)
    except UserError as error:
        raise damaged(where, "GPT-2 config", error) from error


def config_to_dict(config: GPTConfig, dtype: str, classes: Sequence[str] | None = None) -> dict[str, Any]:
    """transformers' config for a GPTConfig, with every field that its GPT-2 class reads when it computes; `classes` are
    the names of a classifier's."""
    end = END_OF_TEXT if config.vocab_size > END_OF_TEXT else None
    ours = config.to_dict()
    theirs = {key: ours[field] for field, (key, _, _) in _FIELDS.items()}
    kind = "GPT2LMHeadModel"
    if config.num_labels is not None:
        names = classes or [f"LABEL_{number}" for number in range(config.num_labels)]
        theirs |= {"id2label": {str(number): name for number, name in enumerate(names)}, "pad_token_id": end}
        theirs["label2id"] = {name: number for number, name in enumerate(names)}
        kind = CLASSIFIER
    return dict(
        sorted(
            {
                **theirs,
                "n_inner": None if config.ff_dim == 4 * config.embed_dim else config.ff_dim,
                "activation_function": _OURS_TO_THEIRS[config.activation],
                "architectures": [kind],
                "bos_token_id": end,
                "dtype": dtype,
                "eos_token_id": end,
                "model_type": "gpt2",
                "use_cache": True,
            }.items()
        )
    )


def read_config(folder: Path | str) -> GPTConfig:
    """The config of a Hugging Face GPT-2 folder."""
    path = Path(folder) / "config.json"
    return config_from_dict(read_json(path, "config file"), path)


def read_classes(folder: Path | str) -> list[str] | None:
    """The names of the classes of a Hugging Face GPT-2 folder, if it classifies."""
    path = Path(folder) / "config.json"
    return classes_from_dict(read_json(path, "config file"), path)


def read_hf(folder: Path | str) -> tuple[GPTConfig, StoredWeights]:
    """Config and canonical weights of a GPT-2 that transformers saved, single or sharded, with or without prefix."""
    folder = Path(folder)
    config = read_config(folder)
    tensors = safetensors_io.open_folder(folder)
    scheme = scheme_of(tensors, folder)
    return config, gpt2_names.to_canonical(scheme, config, tensors, folder)


def write_hf(
    folder: Path | str,
    config: GPTConfig,
    weights: Mapping[str, np.ndarray],
    max_shard_bytes: int | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Write a folder that `from_pretrained` of `GPT2LMHeadModel`, or of `GPT2ForSequenceClassification` for a
    classifier, loads; it replaces an older one only when complete. `classes` are the names of a classifier's."""
    folder = require_replaceable(folder)
    tensors = gpt2_names.from_canonical(gpt2_names.HF, config, weights)
    dtype = tensors[gpt2_names.HF.embed].dtype.name
    with replacing_folder(folder) as temporary:
        safetensors_io.write_folder(temporary, tensors, max_shard_bytes)
        text = json.dumps(config_to_dict(config, dtype, classes), indent=2) + "\n"
        (temporary / "config.json").write_text(text, encoding="utf-8")
