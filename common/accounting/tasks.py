"""What a wing is asked to account for: a task, its sizes and a path, checked before anything is built for it."""

from common import params
from common.backend import check_length
from common.config import ModelConfig
from common.errors import UserError, unknown

# One forward pass; the gradients of a batch; the same with its optimizer step; filling a cache, where the head predicts
# at the last position only; one more token a row on a cache, whose slots are then the length.
COUNTED = ("forward", "gradients", "train", "prefill", "decode")
# And what multiplies no matrices, but needs memory: clipping and the optimizer's step; dropout of an activation
# [B, T, E]; tokens drawn from logits [B, V].
PLANNED = (*COUNTED, "optimizer", "dropout", "sample")


def check_counted(
    what: str, length: int, path: str, slots: int | None, config: ModelConfig, known: tuple[str, ...] = COUNTED
) -> int:
    """The slots of the cache that a task of these runs on, or an error that says why there is nothing to count."""
    if what not in known:
        raise unknown("task to count" if known is COUNTED else "task to plan", what, known)
    if path not in params.modules(config):
        raise unknown("component", path, params.modules(config))
    if path and what not in ("forward", "gradients"):
        raise UserError(f"The component {path!r} has a forward pass and gradients to count, but no {what!r}.")
    check_length(length, config)
    least = 1 if what == "decode" else length
    if slots is not None and slots < least:
        raise UserError(f"A cache of {slots} slots has no room for {least} tokens.")
    return length if slots is None else slots


def input_width(path: str, config: ModelConfig) -> int:
    """The size of a component's input vectors: a linear map's own, or E."""
    weight = params.table(config).get(f"{path}.weight")
    return weight.shape[1] if weight and len(weight.shape) == 2 else config.embed_dim
