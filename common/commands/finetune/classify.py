"""`parallax finetune classify`"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from common.commands import groups

_RUN = groups.Run(out=Path("out/classify"))
_MODEL, _HOW, _LEARNING = groups.Model(), groups.How(), groups.Learning(train="last-block")
_PLAN = groups.Plan(  # Raschka, chapter 6
    epochs=5, learning_rate=5e-5, schedule="constant", warmup_steps=0, weight_decay=0.1, decay="all", clip_norm=0
)
LENGTHS = ("longest", "model")


@dataclass
class Texts:
    """The texts, how they are laid out, and where their class is read."""

    data: Annotated[
        str, typer.Option(help="sms-spam, movie-reviews, or a .csv, .tsv, .jsonl, .json file with text and label.")
    ] = "sms-spam"
    classes: Annotated[
        str | None, typer.Option(help="Names of the classes, as in ham,spam (default: the labels there are, sorted).")
    ] = None
    balance: Annotated[bool, typer.Option(help="Take as many texts of every class as the rarest has.")] = True
    shares: Annotated[str, typer.Option(help="Shares of training, validation and test.")] = "0.7,0.1,0.2"
    split_seed: Annotated[int, typer.Option(help="Seed of balancing and splitting.")] = 123
    length: Annotated[str, typer.Option(help="Tokens of a text: longest (to train on), model (all), or so many.")] = (
        "longest"
    )
    pad_to: Annotated[str, typer.Option(help="Pad to that length, or to the longest text of a batch.")] = "length"
    pad_multiple: Annotated[int, typer.Option(help="Batches are as long as a multiple of this.")] = 1
    read: Annotated[str, typer.Option(help="Position read: last, first, or flexible (last token before padding).")] = (
        "last"
    )
    average: Annotated[bool, typer.Option(help="Read the mean of all positions.")] = False
    causal: Annotated[bool, typer.Option(help="Hide later tokens from earlier ones, or not.")] = True


_TEXTS = Texts()


@groups.grouped
def classify(
    context: typer.Context,
    run: groups.Run = _RUN,
    model: groups.Model = _MODEL,
    texts: Texts = _TEXTS,
    learning: groups.Learning = _LEARNING,
    plan: groups.Plan = _PLAN,
    eval_batches: Annotated[int, typer.Option(help="Batches of each part that evaluations between epochs see.")] = 5,
    baseline: Annotated[bool, typer.Option(help="Hold it against a logistic regression on bags of words.")] = True,
    how: groups.How = _HOW,
) -> None:
    """Train a model to classify texts; accuracy, confusion matrix and baselines end up in results.json."""
    import numpy as np

    from common import heads
    from common.commands import options, running
    from common.commands.finetune import tuning
    from common.config import TrainConfig
    from common.tuning import classes

    positive = {"--eval-batches": eval_batches, "--pad-multiple": texts.pad_multiple}
    here = running.Running(context, "classify", run, how, positive)
    here.one_of_both(plan)
    here.take_up(plan, model.config is not None or model.weights is not None)
    if here.start is not None:
        texts = tuning.again(Texts, here.start.record)
    data = _parts(texts)
    names = data.train.names
    if here.start is not None:
        start, settings = here.start, TrainConfig.from_dict(here.start.record["train"])
        tokenizer, length = start.record["tokenizer"], start.record["length"]
    else:
        start, length = tuning.language_model(here, model, plan.seed), None
        tokenizer = here.tokenizer(model)
        if start.config.num_labels is not None:
            here.show(f"{model.weights} is a classifier; a new head takes the place of its own.")
        shape = {"pooling": "mean" if texts.average else "none", "causal": texts.causal, "seed": plan.seed}
        start.config, start.weights = heads.classifier(start.config, start.weights, len(names), **shape)
        start.config, start.weights, trained = tuning.learns(start.config, start.weights, learning, plan.seed)
        settings = plan.train_config(trained=trained)
        _check_reading(texts, here.typed("read"), settings.accumulate)
    here.execution.spread.check(start.config, settings)
    backend = here.backend()
    near = model.weights or here.resumed
    encoder = options.tokenizer_for(tokenizer, model.vocab, start.config.vocab_size, near)
    parts, cut = _examples(data, texts, encoder, length, start.config.context_length)
    batches = tuning.batches_of(here, parts["train"], settings)
    settings = here.counted(settings, plan.epochs, batches)
    length, batch = parts["train"].length, settings.batch_size
    tuning.show_learning(here, start.config, settings)
    if cut:
        here.show(f"{cut} texts are longer than {length} tokens and are cut there.")

    def evaluate(model: Any, count: int | None = eval_batches * batch) -> dict[str, float]:
        found = [classes.scores(model, parts[name], batch, count) for name in ("train", "validation")]
        told = {"train_loss": found[0].loss, "held_out": found[1].loss}
        return {**told, "train_accuracy": found[0].accuracy, "accuracy": found[1].accuracy}

    def epoch(model: Any) -> dict[str, float]:
        return {f"epoch_{name}": value for name, value in evaluate(model, None).items()}

    def told(found: dict[str, float]) -> str:
        words = [
            f"{title}train loss {found[f'{at}train_loss']:.4f}  held-out {found[f'{at}held_out']:.4f}"
            f"  accuracy {found[f'{at}train_accuracy']:.2%} / {found[f'{at}accuracy']:.2%}"
            for at, title in (("", ""), ("epoch_", "all data: "))
            if f"{at}held_out" in found
        ]
        return "  ".join(words)

    def finish(model: Any) -> dict[str, Any]:
        found = {name: classes.scores(model, one, batch) for name, one in parts.items()}
        accuracies = {"model": {name: one.accuracy for name, one in found.items()}}
        if baseline and here.leads:
            accuracies |= classes.baselines(data)
            if "bag of words" not in accuracies:
                here.show(
                    "There is no logistic regression beside it: the texts have no words, or scikit-learn is missing."
                )
        counts = found["test"].confusion()
        if here.leads:
            print(classes.table(accuracies), classes.confusion_table(counts, names), sep="\n\n")
        losses = {name: one.loss for name, one in found.items()}
        results = {"accuracy": accuracies, "loss": losses, "confusion": counts, "classes": list(names)}
        unseen = classes.unseen(data)
        if len(unseen) and not unseen.all():
            own = {"model": float(found["test"].right[unseen].mean())}
            if baseline and here.leads:
                without = data._replace(test=data.test.take(np.flatnonzero(unseen)))
                own |= {name: one["test"] for name, one in classes.baselines(without).items()}
            results["unseen"] = {"texts": int(unseen.sum()), "accuracy": own}
            here.show(f"{int((~unseen).sum())} test texts are among those trained on; without them {own['model']:.2%}.")
        return {**results, "texts": {name: one.counts() for name, one in data._asdict().items()}, "cut": cut}

    task = running.Task(
        kind="classify",
        batches=batches,
        length=length,
        record={
            "source": texts.data,
            "corpus": tuning.described(here, data._asdict()),
            "tokenizer": encoder.name,
            "length": length,
            "classes": list(names),
            "options": tuning.kept(texts, learning) if here.start is None else here.start.record["options"],
        },
        words=f"{texts.data}: {' + '.join(str(len(one)) for one in parts.values())} texts of {', '.join(names)}",
        evaluate=evaluate,
        told=told,
        epoch=epoch,
        before=True,
        finish=finish,
        files=tuning.files_of(encoder),
    )
    here.go(task, start, settings, backend, tuning.own_settings(here, settings, model))


def _check_reading(texts: Texts, said: bool, accumulate: int) -> None:
    """The mean of all positions is the same wherever it is read. Who sees padding must see as much in a step as
    elsewhere: the micro-batches of a step are all as long as the longest text of any of them."""
    from common.errors import UserError

    if texts.average and (said or texts.read != _TEXTS.read):
        raise UserError(f"--average reads all positions, so --read {texts.read} chooses none; leave one of them out.")
    if texts.pad_to == "batch" and accumulate > 1 and (texts.average or not texts.causal):
        who = "--average" if texts.average else "--no-causal"
        raise UserError(
            f"{who} reads padding, and each of --accumulate {accumulate} batches would get what the longest needs: use"
            " --pad-to length, or leave --accumulate out."
        )


def _parts(texts: Texts) -> Any:
    from common.data import labelled
    from common.errors import UserError

    try:
        shares = tuple(float(one) for one in texts.shares.split(","))
    except ValueError as error:
        raise UserError(f"--shares {texts.shares} are no numbers; write three, as in 0.7,0.1,0.2.") from error
    names = None if texts.classes is None else [one.strip() for one in texts.classes.split(",")]
    if names is not None and not all(names):
        raise UserError(f"--classes {texts.classes!r} has a name that is empty; write them as in ham,spam.")
    found = labelled.read_labelled(texts.data, names)
    found = labelled.balance(found, texts.split_seed) if texts.balance else found
    return labelled.split(found, shares, texts.split_seed)


def _examples(data: Any, texts: Texts, encoder: Any, length: int | None, context: int) -> tuple[dict[str, Any], int]:
    """({part: examples}, how many texts were cut); all parts have the length of that which is trained on."""
    from common.commands.finetune.tuning import end_of
    from common.data.labelled import TextExamples
    from common.errors import UserError

    ids = {name: [encoder.encode(text) for text in one.texts] for name, one in data._asdict().items()}
    if length is None:
        if texts.length in LENGTHS:
            length = context if texts.length == "model" else min(context, max(map(len, ids["train"])))
        elif not texts.length.isdecimal() or not 0 < int(texts.length) <= context:
            raise UserError(
                f"--length is {texts.length!r}; allowed is longest, model, or a whole number from 1 to {context}."
            )
        else:
            length = int(texts.length)
    own = {"length": length, "pad_id": end_of(encoder), "read": texts.read, "pad_to": texts.pad_to}
    parts = {
        name: TextExamples(ids[name], one.labels, multiple=texts.pad_multiple, **own)
        for name, one in data._asdict().items()
    }
    return parts, sum(one.truncated for one in parts.values())
