"""`parallax finetune instruct`"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from common.commands import groups

_RUN = groups.Run(out=Path("out/instruct"), eval_every=5)
_MODEL, _HOW, _LEARNING = groups.Model(), groups.How(), groups.Learning()
_PLAN = groups.Plan(  # Raschka, chapter 7
    epochs=2, learning_rate=5e-5, schedule="constant", warmup_steps=0, weight_decay=0.1, decay="all", clip_norm=0
)


@dataclass
class Instructions:
    """The rows, and how they are written and laid out."""

    data: Annotated[
        str, typer.Option(help="instruction-data, or a .json or .jsonl file with instruction, input, output.")
    ] = "instruction-data"
    shares: Annotated[str, typer.Option(help="Shares of training and test, in the order of the rows.")] = "0.85,0.1"
    style: Annotated[str, typer.Option(help="How a row is written as a prompt: alpaca or phi3.")] = "alpaca"
    mask_instruction: Annotated[bool, typer.Option(help="Learn the answers alone, not the instructions.")] = False
    length: Annotated[int, typer.Option(help="Tokens of a row at most (and never more than the context).")] = 1024
    pad_multiple: Annotated[int, typer.Option(help="Batches are as long as a multiple of this.")] = 32


_ROWS = Instructions()


@groups.grouped
def instruct(
    context: typer.Context,
    run: groups.Run = _RUN,
    model: groups.Model = _MODEL,
    rows: Instructions = _ROWS,
    learning: groups.Learning = _LEARNING,
    plan: groups.Plan = _PLAN,
    eval_batches: Annotated[int, typer.Option(help="Batches of each part that an evaluation sees.")] = 5,
    how: groups.How = _HOW,
) -> None:
    """Train a model to follow instructions; `parallax respond` has it answer those that it has not seen."""
    from common.commands import options, running
    from common.commands.finetune import tuning
    from common.config import TrainConfig
    from common.data.instructions import InstructionExamples, read_instructions
    from common.errors import UserError
    from common.tuning import answers

    positive = {"--eval-batches": eval_batches, "--length": rows.length, "--pad-multiple": rows.pad_multiple}
    here = running.Running(context, "instruct", run, how, positive)
    here.one_of_both(plan)
    here.take_up(plan, model.config is not None or model.weights is not None)
    if here.start is not None:
        rows = tuning.again(Instructions, here.start.record)
    data = tuning.split_rows(read_instructions(rows.data), rows.shares)
    if here.start is not None:
        start, settings = here.start, TrainConfig.from_dict(here.start.record["train"])
        tokenizer, length = start.record["tokenizer"], start.record["length"]
    else:
        start = tuning.language_model(here, model, plan.seed)
        tokenizer = here.tokenizer(model)
        start.config, start.weights, trained = tuning.learns(start.config, start.weights, learning, plan.seed)
        settings = plan.train_config(trained=trained)
        length = min(rows.length, start.config.context_length)
    here.execution.spread.check(start.config, settings)
    backend = here.backend()
    near = model.weights or here.resumed
    encoder = options.tokenizer_for(tokenizer, model.vocab, start.config.vocab_size, near)
    layout = {"style": rows.style, "mask_instruction": rows.mask_instruction, "multiple": rows.pad_multiple}
    layout |= {"end_id": tuning.end_of(encoder), "length": length}
    parts = {name: InstructionExamples(one, encoder, **layout) for name, one in data._asdict().items()}
    for name, one in parts.items():
        if not len(one.answered):
            why = "nothing would be learned" if name == "train" else f"the {name} part has no loss"
            more = tuning.wider(length, start.config)
            raise UserError(f"No answer has a token within {length}, so {why}; {more}.")
    batches = tuning.batches_of(here, parts["train"], settings)
    settings = here.counted(settings, plan.epochs, batches)
    batch, cut = settings.batch_size, sum(one.truncated for one in parts.values())
    tuning.show_learning(here, start.config, settings)
    if cut:
        nothing = sum(one.unanswered for one in parts.values())
        here.show(f"{cut} answers go beyond {length} tokens and are cut there; of {nothing} nothing is left.")

    def evaluate(model: Any, count: int | None = eval_batches * batch) -> dict[str, float]:
        names = {"train_loss": "train", "held_out": "validation"}
        return {name: answers.loss(model, parts[part], batch, count) for name, part in names.items()}

    def finish(model: Any) -> dict[str, Any]:
        losses = {name: answers.loss(model, one, batch) for name, one in parts.items()}
        if here.leads:
            print("loss  " + "  ".join(f"{name} {value:.4f}" for name, value in losses.items()))
            print(f"Have it answer the test set: parallax respond --weights {here.out}")
        return {"loss": losses, "instructions": {name: len(one) for name, one in parts.items()}, "cut": cut}

    task = running.Task(
        kind="instruct",
        batches=batches,
        length=length,
        record={
            "source": rows.data,
            "corpus": tuning.described(here, parts),
            "tokenizer": encoder.name,
            "length": length,
            "options": tuning.kept(rows, learning) if here.start is None else here.start.record["options"],
        },
        words=f"{rows.data}: {' + '.join(str(len(one)) for one in parts.values())} instructions",
        evaluate=evaluate,
        told=lambda found: f"train loss {found['train_loss']:.4f}  held-out {found['held_out']:.4f}",
        before=True,
        finish=finish,
        files=tuning.files_of(encoder),
    )
    here.go(task, start, settings, backend, tuning.own_settings(here, settings, model))
