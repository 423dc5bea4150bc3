"""`parallax plan`"""

from pathlib import Path
from typing import Annotated

import typer

from common.commands import options
from common.config import TrainConfig

_DEFAULT = TrainConfig()
_MOST = 65_536  # devices


def plan(
    model: Annotated[str | None, typer.Argument(help="Preset: nano, gpt2-124m, gpt2-1558m, …")] = None,
    config: Annotated[Path | None, typer.Option(help="The model as JSON instead, as for estimate.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="A field of the model, as in num_layers=96 (may be given again).")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Other layers of that model, as in 'latent rank=512'.")] = None,
    devices: Annotated[int, typer.Option(help="How many devices there are: every layout of them is shown.")] = 1,
    layout: Annotated[str | None, typer.Option(help="This layout alone, as in shard=8,tensor=2.")] = None,
    batch_size: Annotated[int, typer.Option(help="Windows per micro-batch, of all devices.")] = _DEFAULT.batch_size,
    accumulate: Annotated[int, typer.Option(help="Micro-batches per step.")] = _DEFAULT.accumulate,
    length: Annotated[int | None, typer.Option(help="Tokens per window (default: the model's context).")] = None,
    optimizer: Annotated[str, typer.Option(help="adamw or muon.")] = _DEFAULT.optimizer,
    dtype: options.Dtype = "float32",
    attention: options.Attention = None,
    base: Annotated[
        str, typer.Option(help="nf4 or nf4_double: the base of adapters (of --config, a run's config.json) in 4 bits.")
    ] = "plain",
    memory: Annotated[
        float | None, typer.Option(help="GB (10^9 bytes) that a device has: whether PyTorch, and XLA's plan, fit.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Also XLA's plan: JAX compiles the step for devices that are only named.")
    ] = False,
    layers: Annotated[
        str, typer.Option(help="With --compiled: how JAX runs layers, loop, scan or checkpointed.")
    ] = "scan",
) -> None:
    """What training would take of each of several devices: memory and FLOPs, by layout, in closed form and (--compiled)
    as compiled. Nothing is built."""
    from common import params
    from common.accounting import spread
    from common.commands import variations
    from common.config import Execution
    from common.errors import UserError
    from common.layout import Layout

    name, chosen = variations.chosen(model, config)
    chosen = variations.changed(chosen, change or ())
    if variant is not None:
        name, chosen = variations.varied(chosen, variant)
    if not 1 <= devices <= _MOST:
        raise UserError(f"--devices is {devices}; allowed is a whole number from 1 to {_MOST:,}.")
    if memory is not None and not memory > 0:
        raise UserError(f"--memory is {memory:g}; allowed is a number of GB > 0.")
    train = TrainConfig(batch_size=batch_size, accumulate=accumulate, optimizer=optimizer)
    length = chosen.context_length if length is None else length
    if not 1 <= length <= chosen.context_length:
        raise UserError(f"--length is {length}; this model has positions for 1 to {chosen.context_length}.")
    execution = Execution(dtype=dtype or "float32", attention=attention or "plain", layers=layers, base=base)
    if layout is not None:
        found = [Layout.parse(layout)]
        if devices not in (1, found[0].devices):
            raise UserError(f"The layout {layout} has {found[0].devices} devices, and --devices is {devices}.")
    else:
        found = spread.layouts_of(chosen, devices, train)
        if not found:
            raise UserError(
                f"No layout of {devices} devices deals out {batch_size} windows and this model's heads and hidden"
                " units equally; choose another --devices or --batch-size."
            )
    how = execution.dtype, execution.attention, execution.base
    shares = [spread.share(chosen, one, train, length, *how) for one in found]
    shares.sort(key=lambda one: one.total)
    plans = _compiled(chosen, execution, train, length, found) if compiled else {}
    tokens = batch_size * accumulate * length
    print(
        f"{name}: {params.count(chosen):,} parameters; {tokens:,} tokens a step in {accumulate} x {batch_size} windows"
        f" of {length}; {execution.dtype}, {optimizer}"
    )
    _show(shares, plans, memory)


def _compiled(config, execution, train, length, layouts) -> dict[str, dict[str, int] | None]:
    """XLA's plan for each layout, by its text, on devices that a CPU plays."""
    import os

    from common import backend as door
    from common import layout as common_layout

    os.environ.update(common_layout.environment(os.environ, "jax", "cpu", layouts[0]))
    backend, found = door.load("jax"), {}
    for one in layouts:
        options.show(f"Compiling for {one or 'one device'}")
        found[str(one)] = backend.plan(config, execution.with_(layout=str(one)), train, length)
    return found


def _show(shares, plans, memory: float | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, header_style="bold")
    heads = ["Layout", "Rows", "Parameters", "Gradients", "Optimizer", "Gathered", "Activations", "Together"]
    heads += [*(["XLA's plan"] if plans else []), "FLOPs", *(["XLA's FLOPs"] if plans else [])]
    if memory is not None:
        heads += ["PyTorch fits", *(["JAX fits"] if plans else [])]
    for head in heads:
        table.add_column(head, justify="left" if head == "Layout" else "right", no_wrap=True)
    for one in shares:
        kept = (one.parameters, one.gradients, one.optimizer, one.gathered, one.activations, one.total)
        row = [str(one.layout) or "one device", str(one.rows), *map(_size, kept)]
        planned = plans.get(str(one.layout))
        row += [_size(None if planned is None else planned["planned"])] if plans else []
        row.append(f"{one.flops:.3g}")
        compiled = planned and planned.get("flops")
        row += ["-" if compiled is None else f"{compiled:.3g}"] if plans else []
        if memory is not None:
            row.append(_fits(one.total, memory, whole=one.activations is not None))
            row += [_fits(planned and planned["planned"], memory)] if plans else []
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 160, highlight=False).print(table)
    print(
        "Of one device, in GB (10^9 bytes); rows of a micro-batch, FLOPs of a step. Gathered: what shards put together"
        " while they compute, and the largest matrix of a base in 4 bits.\nActivations: what PyTorch's eager training"
        " keeps of a micro-batch; where layers have no closed form, none are shown. Together: of PyTorch."
    )
    if plans:
        print(
            "XLA's plan: all that JAX's compiled step needs on a device. It is no part of what is together."
            "\nXLA's FLOPs: of the matrix products in that program, with what it computes again; - if it does not tell."
        )


def _fits(number: int | None, memory: float, whole: bool = True) -> str:
    """Whether so many bytes, or (not whole) more, lie in that many GB; "?" where nobody can say."""
    if number is None:
        return "?"
    return "no" if number > memory * 1e9 else "yes" if whole else "?"


def _size(number: int | None) -> str:
    if number is None:
        return "-"
    return f"{number / 1e9:,.2f}" if number >= 1e7 else f"{number / 1e9:.2g}"
