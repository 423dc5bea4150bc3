"""`parallax finetune`: a trained model learns to classify, to follow instructions, or what people prefer."""

import typer

from common.commands.finetune.classify import classify
from common.commands.finetune.instruct import instruct
from common.commands.finetune.prefer import prefer

finetune = typer.Typer(
    help="Fine-tune a model: to classify texts, to follow instructions, or to prefer the better of two answers.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
for command in (classify, instruct, prefer):
    finetune.command()(command)
