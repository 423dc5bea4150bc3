"""`parallax adapter`: what adapters of a run are and cost, and their way into weights and PEFT's files."""

import typer

from common.commands.adapter.files import export, import_, merge, remove
from common.commands.adapter.info import info

adapter = typer.Typer(
    help="Adapters (LoRA, DoRA): what they cost, merged into weights or removed, written for PEFT and read from it.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
for name, command in {"info": info, "merge": merge, "remove": remove, "export": export, "import": import_}.items():
    adapter.command(name)(command)
