"""How much memory cells need, estimated before anything is built, and how much there is."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import psutil

from benchmarks.harness import machine
from benchmarks.harness.cells import DECODING, FRESH, TRAIN, Cell
from common import gpu
from common.accounting import activations, memory
from common.errors import UserError

OVERHEAD = 400 << 20  # bytes of a process with its framework
SLACK = 1.3
HOST = ("", " in this container")  # limits of the host's memory, as sentences name them


def need(cell: Cell) -> int:
    """Bytes that all contenders of a cell hold at once: estimated from closed forms, before anything is built."""
    every = [_need(replace(cell, config=cell.config_of(one))) for one in cell.contenders]
    return max(every) if cell.task in FRESH else sum(every)


def _need(cell: Cell) -> int:
    """The bytes of one of them."""
    weights = memory.weights(cell.config)
    each = weights
    if cell.task in ("train", "optimizer", "compile", "gradients"):
        learning = memory.gradients(cell.config, train=TRAIN) if cell.task == "train" else weights
        each = (
            weights + 3 * learning + sum(activations.saved(cell.config, cell.batch, cell.length, cell.dtype).values())
        )
    logits = 4 * cell.batch * cell.length * cell.config.vocab_size
    each += 3 * logits if cell.task in ("train", "gradients", "loss") else logits
    if cell.task in DECODING:
        each += memory.kv_cache(cell.config, cell.batch, cell.length + cell.new, cell.dtype)
    return int(SLACK * each + OVERHEAD)


def judges(cell: Cell) -> int:
    """Bytes of the float64 judge, which works on the host before anybody else begins: in a pass one layer at a time
    has all that it computes, and what is kept for the way back stays."""
    trains = cell.task in ("train", "optimizer", "gradients")
    kept = 0
    if cell.task in ("forward", "prefill", "train", "gradients"):
        kept = sum(activations.saved(cell.config, cell.batch, cell.length, "float64").values())
    passes = 2 * kept // max(1, cell.config.num_layers) + (kept if trains else 0)
    logits = 8 * cell.batch * cell.length * cell.config.vocab_size
    weights = max(map(memory.weights, cell.configs))
    return int(SLACK * ((8 if trains else 2) * weights + logits + passes) + OVERHEAD)


def processes(cells: Sequence[Cell], device: str) -> int:
    """Of every contender: two, if memory holds them all with half as much to spare, or one."""
    _, there = least(room(device))
    return 2 if 1.5 * 2 * max(map(need, cells)) < there else 1


def room(device: str) -> dict[str, int | None]:
    """Free bytes of the host, of a container that has a limit, and of a GPU as far as its driver tells."""
    places = dict(zip(HOST, (psutil.virtual_memory().available, machine.free_container_bytes()), strict=True))
    if device != "cpu":
        places[f" on {device}"] = gpu.free_gpu_bytes(int(device.partition(":")[2] or 0))
    return places


def least(places: Mapping[str, int | None]) -> tuple[str, int]:
    """Of places in memory the one that has least: (its name, free bytes)."""
    return min(((where, there) for where, there in places.items() if there is not None), key=lambda one: one[1])


def check_memory(groups: Iterable[Sequence[Cell]], device: str) -> None:
    """Refuse groups of cells that do not fit: into the host's free memory, where weights are made and judges compute,
    or that of its container, nor into a GPU's if its driver tells."""
    places = room(device)
    host = {where: there for where, there in places.items() if where in HOST}
    for cells in groups:
        worst, judged = max(cells, key=need), max(cells, key=judges)
        _check(worst, need(worst), f"its {len(worst.contenders)} contenders at once", places)
        _check(judged, judges(judged), "its judge in float64", host)


def _check(cell: Cell, needed: int, what: str, places: Mapping[str, int | None]) -> None:
    """Refuse a cell that needs more than there is where there is least."""
    where, there = least(places)
    if needed > there:
        raise UserError(
            f"{cell.title} needs about {needed / 1e9:.1f} GB for {what}, and {there / 1e9:.1f} GB are free{where};"
            " choose a smaller --model, or other suites."
        )
