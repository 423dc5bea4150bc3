"""What the commands that fine-tune share: which parameters learn, from which weights, and what their records keep."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from common.commands import groups

T = TypeVar("T")
STYLE = "alpaca"  # of prompts, where nothing says another


def learns(
    config: Any, weights: Mapping[str, Any], asked: groups.Learning, seed: int
) -> tuple[Any, Any, tuple[str, ...]]:
    """(config, weights, patterns of the parameters that learn) of a model that is fine-tuned."""
    from common import adapters, params
    from common.errors import UserError, unknown

    if asked.train not in groups.TRAINED:
        raise unknown("choice of what learns (--train)", asked.train, groups.TRAINED)
    if asked.train == "lora":
        targets = tuple(asked.targets or ("*",))
        own = {"rank": asked.rank, "alpha": asked.alpha, "dropout": asked.lora_dropout}
        adapter = adapters.Adapter(targets=targets, rslora=asked.rslora, dora=asked.dora, **own)
        config, weights = adapters.add(config, weights, adapter, seed)
        names = params.table(config)
        # a new head that no adapter changes learns itself
        new = "score.weight" in names and not any(one.startswith("score.lora_") for one in names)
        return config, weights, ("*.lora_*", "score.*") if new else ()
    given = [
        one.name for one in fields(groups.Learning) if one.name != "train" and getattr(asked, one.name) != one.default
    ]
    if given:
        option = given[0].replace("_", "-")
        raise UserError(f"--{option} is for --train lora; this is --train {asked.train}.")
    if asked.train == "all":
        return config, weights, ()
    names = params.table(config)
    head = next((f"{path}.*" for path in ("score", "lm_head") if f"{path}.weight" in names), None)
    if asked.train == "last-layer":
        if head is None:
            raise UserError("The head of this model is its token embedding; choose another --train than last-layer.")
        return config, weights, (head,)
    blocks = range(config.num_layers)[-1 if asked.train == "last-block" else -2 :]
    layers = [f"model.layers.{index}.*" for index in blocks]
    return config, weights, (*layers, "model.norm.*", *([head] if head else []))


def language_model(here: Any, model: groups.Model, seed: int) -> Any:
    """What a new run starts from: a model of tokens, whose earlier adapters have become part of it."""
    from common.errors import UserError

    start = here.model(model, seed, model.tokenizer, model.vocab)
    start.config, start.weights = merged(here, model, start.config, start.weights)
    if start.config.num_labels is not None and here.kind != "classify":
        raise UserError(f"{model.weights} classifies texts; give weights that predict tokens.")
    return start


def merged(here: Any, model: groups.Model, config: Any, weights: Mapping[str, Any]) -> tuple[Any, Any]:
    """(config, weights) whose adapters, if any, have become part of the weights; that is told."""
    from common import adapters

    if not config.adapters:
        return config, weights
    names = ", ".join(one.name for one in config.adapters)
    here.show(f"The adapters of {model.weights} ({names}) are merged into its weights first.")
    return adapters.merge(config, weights)


def end_of(encoder: Any) -> int:
    """The id that ends an answer, and pads: that of the tokenizer, or a byte that no text has."""
    from common.errors import UserError

    if encoder.end_token is None and encoder.name != "bytes":
        raise UserError(f"Tokenizer {encoder.name!r} has no token that ends a text; choose one that has.")
    return 0 if encoder.end_token is None else int(encoder.end_token)


def style_of(here: Any, asked: str | None) -> str:
    """How a new run writes rows as prompts: as is asked for, or as the run that the weights are from, which is told."""
    if asked is not None or here.origin.get("kind") not in ("instruct", "prefer"):
        return asked or STYLE
    from common.errors import UserError

    options = here.origin.get("options")
    style = options.get("style") if isinstance(options, dict) else None
    if not isinstance(style, str):
        raise UserError("The training record of the run that --weights names is damaged: see options.")
    here.show(f"The run that the weights are from writes prompts as {style}, and so does this (--style chooses).")
    return style


def kept(*asked: Any) -> dict[str, Any]:
    """Options as plain data for a run's record."""
    plain = {name: value for one in asked for name, value in asdict(one).items()}
    return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}


def again(kind: type[T], record: Mapping[str, Any]) -> T:
    """Options as a run's record keeps them."""
    from common.errors import UserError

    options, hints = record.get("options"), get_type_hints(kind)
    names = [one.name for one in fields(kind)]
    wide = {float: float | int}  # a whole number may be written without its point
    if not isinstance(options, dict) or any(
        name not in options or not isinstance(options[name], wide.get(hints[name], hints[name])) for name in names
    ):
        raise UserError("The training record of this run is damaged: see options.")
    return kind(**{name: options[name] for name in names})


def length_of(record: Mapping[str, Any]) -> int:
    """How many tokens a row of a run has at most, as its record keeps it."""
    from common.errors import UserError

    length = record.get("length")
    if type(length) is not int or length < 1:
        raise UserError("The training record of this run is damaged: see length.")
    return length


def wider(length: int, config: Any) -> str:
    """What gives rows more room than `length` tokens."""
    if length < config.context_length:
        return "give a larger --length"
    return "the context of this model has no more, so give a model with a longer one, or shorter rows"


def own_settings(here: Any, plan: Any, model: groups.Model) -> dict[str, Any]:
    """What is resolved in the file of settings."""
    named = model.config is not None or model.weights is not None
    return {"steps": plan.steps, "epochs": None, "preset": None if named else model.preset}


def batches_of(here: Any, examples: Any, plan: Any) -> Any:
    """Batches of examples, from the start or from where the run was."""
    from common.data.windows import Batches

    if here.start is not None:
        return Batches.resume(examples, here.start.record["data"])
    return Batches(examples, plan.batch_size, seed=plan.seed, accumulate=plan.accumulate)


def described(here: Any, parts: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies each part of the data; a run that goes on must find all of them as they were."""
    from common.errors import UserError

    found = {name: one.describe() for name, one in parts.items()}
    kept = found if here.start is None else here.start.record.get("corpus")
    for name, one in found.items():
        was = kept.get(name) if isinstance(kept, dict) else None
        if not isinstance(was, dict):
            raise UserError("The training record of this run is damaged: see corpus.")
        differs = [f"{key} was {was.get(key)}, is {one[key]}" for key in one if was.get(key) != one[key]]
        if differs:
            raise UserError(
                f"The {name} part of the data is not what it was when this run began ({'; '.join(differs)}); put the"
                " rows back, or start a new run."
            )
    return found


def split_rows(rows: list[Any], shares: str) -> Any:
    """(train, validation, test) in the order of the rows, by the shares of training and test."""
    from common.data.instructions import split_in_order
    from common.errors import UserError

    try:
        train, test = map(float, shares.split(","))
    except ValueError as error:
        raise UserError(f"--shares {shares} are no two numbers; write them as in 0.85,0.1.") from error
    return split_in_order(rows, train, test)


def show_learning(here: Any, config: Any, plan: Any) -> None:
    """How many of the parameters learn, if not all do."""
    from common import params

    table, chosen = params.table(config), params.trained(config, plan)
    count = sum(one.size for name, one in table.items() if chosen[name])
    if count < params.count(config):
        here.show(f"{count:,} of {params.count(config):,} parameters learn")


def files_of(encoder: Any) -> Callable[[Path], None] | None:
    """What keeps a tokenizer's vocabulary in a run's folder, where it comes from files."""
    from common.tokenizers import FROM_FILES

    return encoder.save if encoder.name in FROM_FILES else None
