"""`parallax adapter info`"""

from pathlib import Path
from typing import Annotated

import typer

from common.commands import options

TITLES = {"full": "full training", "part": "this run", "nf4": "this run, base in NF4"}


def info(
    run: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FOLDER", help="A run, weights of any known kind, or PEFT's adapter.")
    ],
    weights: Annotated[Path | None, typer.Option(help="The base, if the folder is an adapter of PEFT.")] = None,
    heads: Annotated[int | None, typer.Option(help="Number of heads, where a file cannot tell.")] = None,
    dtype: options.Dtype = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Parameters and memory of a run with adapters against full training; also of one that trains certain layers."""
    from rich.console import Console

    from common.accounting import adapted
    from common.commands.adapter.files import require_adapter
    from common.config import Execution, TrainConfig, dumps
    from common.errors import UserError
    from common.run import weights_of
    from common.weights import peft, peft_config

    dtype = Execution(dtype=dtype or "float32").dtype
    if weights is not None:
        require_adapter(run)
        base, _ = weights_of(weights, heads=heads)
        config, _ = peft.load_adapter(run, base.config, base.weights, any_base=True)  # sizes are all that is told
        train = TrainConfig()
    elif (run / peft_config.FILE).is_file():
        raise UserError(f"{run} is an adapter as PEFT stores it; name its base by --weights.")
    else:
        found, record = weights_of(run, heads=heads)
        config = found.config
        train = TrainConfig.from_dict(record["train"]) if isinstance(record.get("train"), dict) else TrainConfig()
    report = adapted.report(config, train, dtype)
    if json:
        print(dumps({"source": run.resolve().name, "dtype": dtype, **report.to_dict()}), end="")
        return
    Console(width=None if Console().is_terminal else 120, highlight=False).print(_table(run, config, report, dtype))


def _table(run: Path, config, report, dtype: str):
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def table(title: str, *columns: str) -> Table:
        made = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in columns:
            made.add_column(name, justify="right" if name not in ("", "targets") else "left", no_wrap=name != "targets")
        return made

    told = []
    if report.shares:
        head = "", "targets", "maps", "rank", "alpha", "scale", "dropout", "kind", "parameters"
        adapters = table(f"{run}: adapters", *head)
        for one in report.shares:
            own = one.adapter
            kind = "DoRA" if own.dora else "LoRA"
            adapters.add_row(
                own.name,
                Text(", ".join(own.targets)),
                str(one.maps),
                str(own.rank),
                f"{own.alpha:g}",
                f"{own.scale:g}",
                f"{own.dropout:g}",
                f"{kind}, rsLoRA" if own.rslora else kind,
                f"{one.parameters:,}",
            )
        told.append(adapters)
    share = report.trainable / (report.trainable + report.frozen)
    told.append(
        Text(f"{report.trainable:,} parameters are trained ({share:.2%}), {report.frozen:,} are frozen.\n", "bold")
    )
    costs = table(
        f"bytes in {dtype}", "", "weights", "gradients", "optimizer", "together", "of full", "FLOPs a token", "of full"
    )
    full = report.runs["full"]
    for name, one in report.runs.items():
        numbers = (f"{size:,}" for size in (one.weights, one.gradients, one.optimizer, one.together))
        flops = ("-", "-") if one.flops is None else (f"{one.flops:.4g}", f"{one.flops / full.flops:.1%}")
        costs.add_row(TITLES[name], *numbers, f"{one.together / full.together:.1%}", *flops)
    return Group(*told, costs, Text(NOTE))


NOTE = (
    "Full training is that of the model without adapters. Without activations, which depend on the batch. FLOPs: of a"
    " training step, matrix products,\nfor texts as long as the context; what a base in 4 bits is dequantised with is"
    " elementwise work, and not among them."
)
