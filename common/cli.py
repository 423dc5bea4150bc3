"""The command `parallax`. Commands are found in the entry-point group `parallax.commands`; none imports a framework
before it runs. A mistake of the user's ends with one sentence and exit code 2, never with a traceback."""

import sys

import typer

from common.errors import UserError, unknown
from common.points import entry_points

ORDER = (
    "compare",
    "parity",
    "bench",
    "report",
    "diverge",
    "train",
    "finetune",
    "classify",
    "respond",
    "adapter",
    "curves",
    "search",
    "generate",
    "convert",
    "inspect",
    "quantise",
    "estimate",
    "tokenizer",
    "corpus",
    "fetch",
    "doctor",
)
USAGE_ERROR = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
ABOUT = "The same language models in PyTorch and in JAX: train them, run them, compare them."


def app(arguments: list[str]) -> typer.Typer:
    """The command line; of all installed commands only the one that is called is loaded, or all to be listed."""
    tool = typer.Typer(help=ABOUT, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    tool.callback()(lambda: None)
    points = {point.name: point for point in entry_points(group="parallax.commands")}
    if arguments and not arguments[0].startswith("-") and arguments[0] not in points:
        raise unknown("command", arguments[0], points)
    called = [arguments[0]] if arguments and arguments[0] in points else list(points)
    for name in sorted(called, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
        command = points[name].load()
        if isinstance(command, typer.Typer):  # a command that has commands
            tool.add_typer(command, name=name)
        else:
            tool.command(name)(command)
    return tool


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 a mistake in the call or its data, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(arguments)(arguments or ["--help"], standalone_mode=False)
    except UserError as error:
        _stop(str(error), 2)
    except USAGE_ERROR as error:
        _stop(error.format_message(), 2)
    except (typer.Abort, KeyboardInterrupt):
        _stop("Interrupted.", 130)
    except SystemExit as stop:  # the command-line library's own answer to Ctrl-C
        if stop.code == 130:
            _stop("Interrupted.", 130)
        raise
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except MemoryError:
        _stop("There is not enough memory for this; choose a smaller model, batch or length.", 2)
    if code == 130:
        _stop("Interrupted.", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _stop(sentence: str, code: int) -> None:
    print(f"parallax: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
