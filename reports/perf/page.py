"""One self-contained page: every number on it is an address in summary.json, nothing comes from outside."""

import itertools
from collections.abc import Mapping
from typing import Any

from common import gpu
from reports import html
from reports.perf import view
from reports.perf import wording as say
from reports.perf.numbers import NONE, Found, Number, Sentence, marked
from reports.perf.plots import PLOTS

TOLD = {
    "ratio_forest": "A point is how many times as fast a contender is as its cell's reference, the line its 99 %"
    " interval, the band the noise floor: what this machine calls a difference between a function and itself. A hollow"
    " point: no difference seen. Carry-over is how much a contender's turn depends on whose turn came before it; what"
    " does not exceed it is void, and has no point. Pairs that are noisy or have too few samples are not drawn.",
    "roofline": "What was reached, by closed-form FLOPs with full scores over the least bytes that must move, under the"
    " roofs of the best matrix product (in the format that is multiplied in) and the best reading that were measured on"
    " this machine. What stays in the processor's caches counts nothing, so programs move more than the least.",
    "scaling": "Medians; whiskers are the 10th and 90th percentile.",
    "variants": "Steps of a small model after texts of several lengths, all equal but the kind of attention; and what"
    " their caches take.",
    "memory": "Above, what must be held by closed form. Below it, what each contender took beyond the import of its"
    " framework, which stands pale left of zero; on a device, its own peak.",
    "breakeven": "Total time of calling, counted from where the contender that compiles less is ready. A line drops"
    " where compiling has paid, with the number of calls. Seen from the reference; all other pairs, and those"
    " where it never pays, are in the table below.",
    "depth": "The first training step less the next one, each time in a process of its own: tracing and compiling."
    " Medians; whiskers are the 10th and 90th percentile.",
}
PHASES = {"import": "Import", "build": "Build", "trace": "Trace", "compile": "Compile", "first": "First call"}
PEAKS = (("gemm", "Matrix product", "flops"), ("read", "Reading", "bandwidth"), ("copy", "Copying", "bandwidth"))


def render(found: Found, drawn: Mapping[str, str]) -> str:
    """The page as one HTML document; `drawn` are its plots as <svg> elements, by name."""
    from markupsafe import Markup

    def show(sentence: Sentence) -> Any:
        return marked(found, sentence)

    def number(at: str, form: str, over: str = "") -> Any:
        return marked(found, (Number(at, form, over),))

    cells = view.cells(found)
    return html.render(
        "reports.perf",
        found=found,
        say=say,
        show=show,
        number=number,
        none=NONE,
        cells=cells,
        suites=_suites(cells),
        refusals=list(view.refusals(found)),
        phases=PHASES,
        peaks=_peaks(found),
        plots=[(name, PLOTS[name].title, TOLD[name], Markup(svg)) for name, svg in drawn.items()],
        machine=_machine(found),
        versions=_versions(cells),
        break_evens=view.break_evens(found),
    )


def _suites(cells: list[view.Cell]) -> dict[str, list[view.Cell]]:
    out: dict[str, list[view.Cell]] = {}
    for cell in cells:
        out.setdefault(cell.cell["suite"], []).append(cell)
    return out


def _peaks(found: Found) -> list[tuple[str, str, str, str | None, list[tuple[str, str]]]]:
    """(what, address, form, address in the data sheet, by wing) of every measured peak."""
    out, sheet = [], found["peaks"].get("sheet") or {}
    for what, title, form in PEAKS:
        own = found["peaks"].get(what) or {}
        entries = own.items() if what == "gemm" else [("", own)] if own else []
        for dtype, entry in entries:
            at = f"peaks/{what}/{dtype}" if dtype else f"peaks/{what}"
            named = dtype or "bandwidth"
            by = [(say.wing(wing), f"{at}/by/{wing}") for wing in entry.get("by", {})]
            on_sheet = f"peaks/sheet/{named}" if sheet.get(named) else None
            out.append((f"{title} {dtype}".strip(), f"{at}/value", form, on_sheet, by))
    return out


def _versions(cells: list[view.Cell]) -> dict[str, str]:
    """By wing the versions that its contenders named."""
    out: dict[str, dict[str, None]] = {}
    for cell in cells:
        for one in cell.contenders:
            told = ", ".join(f"{name} {version}" for name, version in (one.one.get("versions") or {}).items())
            out.setdefault(say.wing(one.wing), {})[told] = None
    return {wing: "; ".join(told for told in own if told) for wing, own in out.items()}


def _machine(found: Found) -> dict[str, str]:
    """What is known about the machine, in words; unknown things are left out."""
    told, machine = {}, found["machine"]
    told["Device"] = f"{found['device']['name']} ({found['device']['kind']})"
    cores = f", {machine['cores']} cores, {machine['usable_cores']} usable" if machine.get("cores") else ""
    told["Processor"] = f"{machine.get('cpu', NONE)}{cores}"
    told["Instructions"] = ", ".join(machine.get("instructions") or [])
    for one in machine.get("gpus") or []:
        told["GPU"] = ", ".join(filter(None, (told.get("GPU"), ", ".join(map(str, one.values())))))
    for end, state in (found.get("gpu_state") or {}).items():
        told[f"GPU at the {end}"] = "; ".join(map(_gpu, state or []))
    told["Threads"] = str(found["threads"])
    told["Affinity"] = _ranges(machine.get("affinity") or [])
    told["Governor"] = machine.get("governor") or ""
    told["System"] = ", ".join(str(machine[key]) for key in ("system", "architecture", "python") if machine.get(key))
    told["Packages"] = ", ".join(f"{name} {version}" for name, version in (machine.get("versions") or {}).items())
    told["Files of packages"] = ", ".join(
        f"{name} sha256 {digest[:16]}" for name, digest in (machine.get("wheels") or {}).items()
    )
    told["Seeds"] = ", ".join(f"{what} {str(seed).strip('[]')}" for what, seed in (found.get("seeds") or {}).items())
    told["Environment"] = " ".join(f"{name}={value}" for name, value in (machine.get("environment") or {}).items())
    loads = [found["load"].get(end) or [] for end in ("start", "end")]
    told["Load average"] = "; ".join(
        f"{', '.join(map(str, load))} at the {end}" for load, end in zip(loads, ("start", "end"), strict=True) if load
    )
    commit = machine.get("commit")
    told["Commit"] = f"{commit['id']}{' (with changes)' if commit['changed'] else ''}" if commit else ""
    told["Code"] = f"sha256 {machine['code'][:16]}" if machine.get("code") else ""
    again = "".join(f", gone on with at {when}" for when in found.get("resumed") or ())
    told["Time"] = f"{found['started']} to {found['finished'] or 'not finished'}{again}"
    told["Raw samples"] = f"raw.jsonl, sha256 {found['raw_sha256']}"
    return {name: value for name, value in told.items() if value}


def _gpu(state: Found) -> str:
    """Clocks, temperature and power of a GPU, and what holds its clocks back, as far as the driver tells."""
    forms = {"clock": "{}", "memory_clock": "memory {}", "temperature": "{} °C", "power": "{}"}
    known = {what: value for what, value in state.items() if not value.startswith("[")}  # as in "[N/A]"
    parts = [form.format(known[what]) for what, form in forms.items() if what in known]
    held = gpu.reasons(state.get("held_back", ""))
    return ", ".join(parts + ([f"held back by {say.listed(held)}"] if held else []))


def _ranges(cores: list[int]) -> str:
    """ "0 to 3, 8" """
    rows = itertools.groupby(enumerate(cores), lambda pair: pair[1] - pair[0])
    own = ([core for _, core in row] for _, row in rows)
    return ", ".join(f"{row[0]} to {row[-1]}" if row[1:] else str(row[0]) for row in own)
