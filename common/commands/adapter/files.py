"""`parallax adapter merge`, `remove`, `export` and `import`"""

from pathlib import Path
from typing import Annotated, Any

import typer

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run with adapters, or a folder of weights that has some.")]


def merge(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder for the weights.")],
    names: Annotated[
        str | None, typer.Option(help="Adapters that are merged, as in first,second (default: all); others stay.")
    ] = None,
) -> None:
    """Write weights that adapters have become part of: what they compute is the same, and no slower than the base."""
    from common import adapters
    from common.tokenizers import vocabulary_files
    from common.weights.checkpoint import save_checkpoint
    from common.weights.formats import keep_apart

    found, record = opened(run)
    chosen = None if names is None else tuple(name.strip() for name in names.split(",") if name.strip())
    config, weights = adapters.merge(found.config, found.weights, _known(found.config, chosen))
    keep_apart(run, out)
    save_checkpoint(out, config, weights, training=_told(record), beside=vocabulary_files(run))
    print(f"Wrote {out}: {', '.join(sorted(_names(found.config) - _names(config)))} merged")


def remove(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder for the weights.")],
    adapter: Annotated[
        list[str] | None, typer.Option(help="Adapter to leave out (may be given again; default: all); others stay.")
    ] = None,
) -> None:
    """Write the model without adapters, or without some: what the base computes, or the others on it."""
    from common import adapters
    from common.tokenizers import vocabulary_files
    from common.weights.checkpoint import save_checkpoint
    from common.weights.formats import keep_apart

    found, record = opened(run)
    chosen = None if adapter is None else tuple(adapter)
    config, weights = adapters.without(found.config, found.weights, chosen)
    keep_apart(run, out)
    save_checkpoint(out, config, weights, training=_told(record), beside=vocabulary_files(run))
    print(f"Wrote {out}: {', '.join(sorted(_names(found.config) - _names(config)))} removed")


def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    name: Annotated[str | None, typer.Option(help="Which adapter (default: the only one).")] = None,
    base: Annotated[str | None, typer.Option(help="Where PEFT finds the base: a folder, or a model's name.")] = None,
) -> None:
    """Write an adapter as PEFT loads it: adapter_config.json and adapter_model.safetensors."""
    import numpy as np

    from common.commands import options
    from common.errors import UserError
    from common.weights import peft
    from common.weights.formats import keep_apart

    found, _ = opened(run)
    if name is None:
        if len(found.config.adapters) > 1:
            raise UserError(f"{run} has {len(found.config.adapters)} adapters; choose one of {_list(found)} by --name.")
        name = found.config.adapters[0].name
    keep_apart(run, out)
    peft.save_adapter(out, found.config, found.weights, name, base)
    if found.config.num_labels is not None and np.any(found.weights["score.bias"]):
        options.show(
            "The head has a bias: the file holds it, but the classifiers of transformers have none, so PEFT leaves it"
            " out and gives other logits, unless `score` of its base is a linear map with a bias."
        )
    print(f"Wrote {out}")


def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An adapter as PEFT stores it.")],
    weights: Annotated[Path, typer.Option(help="The base: weights of any known kind, or a run.")],
    out: Annotated[Path, typer.Option(help="Folder for the base with the adapter.")],
    name: Annotated[str, typer.Option(help="What the adapter is called there.")] = "default",
    heads: Annotated[int | None, typer.Option(help="Number of heads, where the base's file cannot tell.")] = None,
    any_base: Annotated[
        bool, typer.Option(help="Take a base with other numbers than the one that the adapter was trained on.")
    ] = False,
) -> None:
    """Put an adapter of PEFT on its base: a folder of weights that generates, trains on, and merges."""
    from common.run import weights_of
    from common.tokenizers import vocabulary_files
    from common.weights import peft
    from common.weights.checkpoint import save_checkpoint
    from common.weights.formats import keep_apart

    require_adapter(folder)
    found, record = weights_of(weights, heads=heads)
    config, grown = peft.load_adapter(folder, found.config, found.weights, name, any_base)
    for source in (folder, weights):
        keep_apart(source, out)
    save_checkpoint(out, config, grown, training=_told(record), beside=vocabulary_files(weights))
    print(f"Wrote {out}")


def opened(run: Path):
    """(weights, record) of a run or a folder of weights; UserError where it has no adapters."""
    from common.errors import UserError
    from common.run import weights_of
    from common.weights import peft_config

    if (run / peft_config.FILE).is_file():
        raise UserError(
            f"{run} is an adapter as PEFT stores it, without its base: put it on one by `parallax adapter import`."
        )
    found, record = weights_of(run)
    if not found.config.adapters:
        raise UserError(f"{run} has no adapters; `parallax finetune classify --train lora` trains some.")
    return found, record


def require_adapter(folder: Path) -> None:
    """Refuse what PEFT did not write."""
    from common.errors import UserError
    from common.weights import peft_config

    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    if not (folder / peft_config.FILE).is_file():
        held = sorted(one.name for one in folder.iterdir())
        what = f"it holds {', '.join(held[:3])}{', …' if held[3:] else ''}" if held else "it is empty"
        raise UserError(f"{folder} is no adapter as PEFT stores it: {peft_config.FILE} is missing, {what}.")


def _told(record: dict[str, Any]) -> dict[str, Any] | None:
    """Of a run's record what other commands want to know of its weights (tokenizer, classes, prompts), and nothing of
    its training."""
    return {key: value for key, value in record.items() if key not in ("step", "train", "data")} or None


def _names(config) -> set[str]:
    return {one.name for one in config.adapters}


def _list(found) -> str:
    return ", ".join(one.name for one in found.config.adapters)


def _known(config, chosen):
    from common.errors import UserError, unknown

    for name in chosen or ():
        if name not in _names(config):
            raise unknown("adapter", name, sorted(_names(config)))
    if chosen == ():
        raise UserError("--names names no adapter; leave it out to merge all.")
    return chosen
