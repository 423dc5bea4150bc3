"""`parallax finetune prefer`"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from common.commands import groups

_RUN = groups.Run(out=Path("out/prefer"), eval_every=5)
_MODEL, _HOW, _LEARNING = groups.Model(), groups.How(), groups.Learning()
_PLAN = groups.Plan(  # Raschka, bonus material of chapter 7
    epochs=1, learning_rate=5e-6, schedule="constant", warmup_steps=0, weight_decay=0.01, decay="all", clip_norm=0
)
REFERENCES = ("precomputed", "online")


@dataclass
class Preferences:
    """The pairs, how they are laid out, and the loss."""

    data: Annotated[
        str,
        typer.Option(
            help="instruction-data-with-preference, or a .json, .jsonl file with instruction, input, chosen, rejected."
        ),
    ] = "instruction-data-with-preference"
    shares: Annotated[str, typer.Option(help="Shares of training and test, in the order of the rows.")] = "0.85,0.1"
    style: Annotated[
        str | None,
        typer.Option(
            help="How a row is written as a prompt: alpaca or phi3 (default: as the weights' run, or alpaca)."
        ),
    ] = None
    mask_prompt: Annotated[str, typer.Option(help="Tokens that do not count: book (prompt and two), or exact.")] = (
        "book"
    )
    end_counts: Annotated[bool, typer.Option(help="The end of an answer is one of its tokens.")] = False
    length: Annotated[int, typer.Option(help="Tokens of a row at most (and never more than the context).")] = 1024
    pad_multiple: Annotated[int, typer.Option(help="Batches are as long as a multiple of this.")] = 32
    loss: Annotated[str, typer.Option(help="dpo, cdpo, ipo, hinge, simpo or orpo.")] = "dpo"
    beta: Annotated[float, typer.Option(help="How much the difference of log-probabilities counts.")] = 0.1
    smoothing: Annotated[float, typer.Option(help="cdpo, which must say it: share of labels that are wrong.")] = 0.0
    gamma: Annotated[float, typer.Option(help="simpo: margin.")] = 0.0
    reduction: Annotated[
        str | None,
        typer.Option(
            help="Log-probability of an answer: sum, or mean by token (default, as in the losses' papers: sum for dpo,"
            " cdpo, hinge; mean for ipo, simpo, orpo; the book's dpo has the mean)."
        ),
    ] = None
    reference: Annotated[
        str, typer.Option(help="Model compared with: precomputed before training, or asked online.")
    ] = "precomputed"


_PAIRS = Preferences()


@groups.grouped
def prefer(
    context: typer.Context,
    run: groups.Run = _RUN,
    model: groups.Model = _MODEL,
    pairs: Preferences = _PAIRS,
    learning: groups.Learning = _LEARNING,
    plan: groups.Plan = _PLAN,
    eval_batches: Annotated[int, typer.Option(help="Batches of each part that an evaluation sees.")] = 5,
    how: groups.How = _HOW,
) -> None:
    """Train a model to prefer the better of two answers, against a reference that stays as the model was."""
    from common.commands import options, running
    from common.commands.finetune import tuning
    from common.config import TrainConfig
    from common.tuning import preferences

    positive = {"--eval-batches": eval_batches, "--length": pairs.length, "--pad-multiple": pairs.pad_multiple}
    here = running.Running(context, "prefer", run, how, positive)
    here.one_of_both(plan)
    here.take_up(plan, model.config is not None or model.weights is not None)
    if here.start is not None:
        pairs = tuning.again(Preferences, here.start.record)
    preference = _preference(pairs)
    if here.start is not None:
        start, settings = here.start, TrainConfig.from_dict(here.start.record["train"])
        tokenizer, length = start.record["tokenizer"], start.record["length"]
    else:
        _check_used(pairs, preference)
        start = tuning.language_model(here, model, plan.seed)
        tokenizer = here.tokenizer(model)
        pairs.style = tuning.style_of(here, pairs.style)
        start.config, start.weights, trained = tuning.learns(start.config, start.weights, learning, plan.seed)
        settings = plan.train_config(trained=trained)
        length = min(pairs.length, start.config.context_length)
    here.execution.spread.check(start.config, settings)
    backend = here.backend()
    near = model.weights or here.resumed
    encoder = options.tokenizer_for(tokenizer, model.vocab, start.config.vocab_size, near)
    parts, left_out = _examples(pairs, preference, encoder, length, start.config)
    batches = tuning.batches_of(here, parts["train"], settings)
    settings = here.counted(settings, plan.epochs, batches)
    batch, cut = settings.batch_size, sum(one.truncated for one in parts.values())
    tuning.show_learning(here, start.config, settings)
    if left_out:
        here.show(f"{left_out} pairs whose prompts fill {length} tokens are left out.")
    if cut:
        here.show(f"{cut} answers go beyond {length} tokens and are cut there.")

    options_kept = tuning.kept(pairs, learning) if here.start is None else here.start.record["options"]
    record = {
        "source": pairs.data,
        "corpus": tuning.described(here, parts),
        "tokenizer": encoder.name,
        "length": length,
        "options": options_kept,
    }
    frozen: list[Callable[[], Any]] = []  # the reference model, once there is one

    def prepare(learner: Any, out: Path) -> None:
        nonlocal parts
        if not preference.needs_reference:
            return
        if pairs.reference == "online":
            asked = tuning.kept(model) if here.start is None else here.start.record.get("model")
            frozen.append(_frozen(here, learner, start, record, backend, asked, settings.seed))
            batches.windows = preferences.Online(parts["train"], frozen[0])
            return
        path = out / preferences.FILE
        if here.start is None:
            told, original = {}, learner.base() if start.config.adapters else learner
            for name, one in parts.items():
                with options.bar(f"reference, {name}") as moved:
                    told[name] = preferences.log_probs(original, one, batch, moved=moved)
            if here.leads:
                record["reference"] = preferences.write(path, told)
            found = {name: preferences.reduced(*one, preference.reduction) for name, one in told.items()}
        else:
            record["reference"] = here.start.record.get("reference")
            found = preferences.read(here.resumed / preferences.FILE, record["reference"], preference)
            if here.leads and not path.is_file():
                path.write_bytes((here.resumed / preferences.FILE).read_bytes())
        parts = {name: one.with_reference(found[name]) for name, one in parts.items()}
        batches.windows = parts["train"]

    def measured(model: Any, part: str, count: int | None) -> dict[str, float]:
        return preferences.measured(model, parts[part], lambda: frozen[0](), batch, count)

    def evaluate(model: Any) -> dict[str, float]:
        count = eval_batches * batch
        train, held_out = (measured(model, part, count) for part in ("train", "validation"))
        train["train_loss"], held_out["held_out"] = train.pop("loss"), held_out.pop("loss")
        own = {name if name == "train_loss" else f"train_{name}": value for name, value in train.items()}
        return {**own, **held_out}

    def finish(model: Any) -> dict[str, Any]:
        found = {name: measured(model, name, None) for name in parts}
        for name, one in found.items() if here.leads else ():
            print(f"{name:<10}" + "".join(f"  {key} {value:.4f}" for key, value in one.items()))
        return {**found, "pairs": {name: len(one) for name, one in parts.items()}, "cut": cut, "left out": left_out}

    task = running.Task(
        kind="prefer",
        batches=batches,
        length=length,
        record=record,
        words=f"{pairs.data}: {' + '.join(str(len(one)) for one in parts.values())} pairs, {preference.loss}",
        evaluate=evaluate,
        told=lambda found: (
            f"train loss {found['train_loss']:.4f}  held-out {found['held_out']:.4f}"
            f"  margin {found['train_margin']:.3f} / {found['margin']:.3f}"
            f"  accuracy {found['train_accuracy']:.1%} / {found['accuracy']:.1%}"
        ),
        before=True,
        prepare=prepare,
        finish=finish,
        files=tuning.files_of(encoder),
    )
    here.go(task, start, settings, backend, tuning.own_settings(here, settings, model))


def _preference(pairs: Preferences) -> Any:
    from common.errors import unknown
    from common.preference import Preference

    if pairs.reference not in REFERENCES:
        raise unknown("reference", pairs.reference, REFERENCES)
    return Preference(pairs.loss, pairs.beta, pairs.smoothing, pairs.gamma, pairs.reduction)


def _check_used(pairs: Preferences, preference: Any) -> None:
    """A new run does what its options say: not another loss, and nothing that this one has no use for."""
    from common.errors import UserError

    if pairs.loss == "cdpo" and not pairs.smoothing:
        raise UserError(
            "--loss cdpo of which no label is wrong is dpo; say by --smoothing what share is, as in --smoothing 0.1."
        )
    if pairs.reference == "online" and not preference.needs_reference:
        raise UserError(f"--reference online asks a second model, and --loss {pairs.loss} has none; leave it out.")


def _examples(
    pairs: Preferences, preference: Any, encoder: Any, length: int, config: Any
) -> tuple[dict[str, Any], int]:
    """({part: examples}, how many pairs were left out because their answers would be cut off whole)."""
    from common.commands.finetune import tuning
    from common.data.preferences import PreferenceExamples, fitting, read_preferences
    from common.errors import UserError

    rows = read_preferences(pairs.data)
    fits = [rows[i] for i in fitting(rows, encoder, style=pairs.style, length=length)]
    if not fits:
        more = tuning.wider(length, config)
        raise UserError(f"The prompts of all {len(rows)} pairs fill {length} tokens; {more}.")
    layout = {"style": pairs.style, "end_id": tuning.end_of(encoder), "length": length}
    layout |= {"multiple": pairs.pad_multiple, "mask_prompt": pairs.mask_prompt, "end_counts": pairs.end_counts}
    data = tuning.split_rows(fits, pairs.shares)
    parts = {
        name: PreferenceExamples(one, encoder, preference=preference, **layout) for name, one in data._asdict().items()
    }
    return parts, len(rows) - len(fits)


def _frozen(
    here: Any, learner: Any, start: Any, record: dict[str, Any], backend: Any, asked: Any, seed: int
) -> Callable[[], Any]:
    """What gives the reference model: the learner without its adapters, or a second model of the weights at the start,
    which a run that goes on finds again where they were."""
    from common import params
    from common.commands.finetune import tuning
    from common.errors import UserError

    if learner.config.adapters:
        return learner.base
    if here.start is not None:
        if not isinstance(asked, dict) or set(asked) != groups.names(groups.Model):
            raise UserError("The training record of this run is damaged: see model.")
        places = {name: Path(asked[name]) for name in ("config", "weights", "vocab") if asked[name] is not None}
        start = tuning.language_model(here, groups.Model(**{**asked, **places}), seed)
    record["model"], record["reference"] = asked, params.fingerprint(start.weights)
    if here.start is not None and record["reference"] != here.start.record.get("reference"):
        told = asked["weights"] or asked["config"] or asked["preset"]
        raise UserError(f"{told} has other weights than when this run began; put those back, or start a new run.")
    second = backend.build(start.config, start.weights, here.execution)
    return lambda: second
