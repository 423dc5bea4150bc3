"""How findings are put into words: sentences of words and addressed numbers, one place for table, page and plots."""

from collections.abc import Iterable

from benchmarks.harness.others import MUCH
from benchmarks.harness.summary import TOLD
from reports.perf.numbers import NONE, Found, Number, Sentence, tally
from reports.perf.view import WINGS, BreakEven, Cell, Contender, Pair, cells

Costs = list[tuple[str, Sentence]]
# what PyTorch ("ieee", "tf32") and JAX ("highest", …) say of products of float32
PRODUCTS = {"fp32_precision": "fp32", "matmul_precision": "matmul"}


def listed(words: Iterable[str]) -> str:
    """ "a, b and c" """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def wing(name: str) -> str:
    return WINGS.get(name, name)


def precision(one: Found) -> str:
    """In what a contender stores, computes, sums and multiplies, by its settings and its framework's flags."""
    settings = one["settings"]
    kinds = [settings.get(key) or NONE for key in ("param", "compute", "reduce")]
    param, compute, reduce = kinds
    told = [compute]
    told += [f"{param} weights"] if param != compute else []
    told += [f"{reduce} sums"] if reduce != compute else []
    told += ["wide products"] if settings.get("products") == "wide" else []
    told += [f"{words} {settings[flag]}" for flag, words in PRODUCTS.items() if settings.get(flag)]
    return ", ".join(told)


def threads(one: Found) -> str:
    return str(one["settings"].get("threads") or NONE)


def attention(one: Found) -> str:
    """The attention asked for and the kernel that ran."""
    asked, kernel = one["settings"].get("attention"), one["settings"].get("kernel")
    return f"{asked}: {kernel}" if asked and kernel and asked != kernel else kernel or asked or NONE


def conditions(one: Found) -> list[str]:
    """Mode, precision, threads and kernel: what every row must say."""
    number = threads(one)
    count = f"{number} thread{'' if number == '1' else 's'}"
    return [one["mode"], precision(one), count, f"attention {attention(one)}"]


def floor(pair: Pair) -> Sentence:
    return ("floor ", Number(f"{pair.at}/floor", "percent"))


def ratio(pair: Pair, end: str = "ratio") -> Number:
    """The ratio of the other to the base, or an end of its interval ("low", "high")."""
    flipped = {"ratio": "ratio", "low": "high", "high": "low"}[end]
    return Number(f"{pair.at}/{flipped}", "inverse") if pair.inverse else Number(f"{pair.at}/{end}", "factor")


def interval(pair: Pair) -> Sentence:
    return (ratio(pair, "low"), " to ", ratio(pair, "high"))


def verdict(pair: Pair) -> Sentence:
    """ "JAX scan 1.21 × as fast", "no difference seen (floor 2 %)", "noisy (floor 8 %)", "too few samples", "void:
    carry-over of 12 %"."""
    if pair.state == "void":
        return ("not measured",)
    if pair.state == "few":
        return ("too few samples",)
    if pair.state == "noisy":
        return ("noisy (", *floor(pair), ")")
    if pair.state == "carried":
        return ("void: carry-over of ", Number(f"{pair.at}/carry_over", "percent"))
    if pair.state == "same":
        return ("no difference seen (", *floor(pair), ")")
    seen = pair if pair.state == "faster" else Pair(pair.at, pair.pair, pair.other, pair.base, not pair.inverse)
    return (f"{seen.other.title} ", ratio(seen), " × as fast")


def standing(cell: Cell, one: Contender) -> Sentence:
    """What a row of a table says about a contender: its verdict, or why there is none."""
    if one.one["refused"] is not None:
        return (one.one["refused"],)
    if not one.timed:
        return ("not timed",)
    if cell.reference is not None and one.name == cell.reference.name:
        return ("reference",)
    pair = cell.versus(one)
    told = verdict(pair) if pair is not None else ("not paired with the reference",)
    return (*told, "; a lower bound, no rival") if one.one["lower_bound"] else told


def finding(cell: Cell) -> Sentence:
    """Who is fastest in a cell, and by how much; or that nobody can say."""
    leaders = cell.leaders
    if not leaders:
        return _undecided(cell) if cell.firm else _silence(cell)
    best = _quickest(leaders)
    told = _ahead(cell, best)
    if len(leaders) == 1:
        return told or (f"no one was found faster than {best.title}",)
    even: Sentence = (f"no difference seen between {listed(one.title for one in leaders)}",)
    seen = cell.between(leaders[0], leaders[1])
    even += (" (", *floor(seen), ")") if seen is not None and seen.usable else ()
    return (*told, "; ", *even) if told else even


def _quickest(some: list[Contender]) -> Contender:
    return min(some, key=lambda one: one.one["seconds"]["median"])


def _ahead(cell: Cell, best: Contender) -> Sentence:
    """How far somebody is ahead of the best of the others; nothing if not at all."""
    pair = cell.runner_up(best)
    if pair is None or pair.state != "faster":
        return ()
    return (*verdict(pair), f" as {pair.base.title} (", *interval(pair), "; ", *floor(pair), ")")


def _undecided(cell: Cell) -> Sentence:
    """What was found, and who could not be held against the best (or the best against each other), so may be faster."""
    best = _quickest(cell.firm)
    told = list(_ahead(cell, best))
    told += ["; nobody is called fastest (" if told else "nobody is called fastest ("]
    names = [(one, other) for one, other in cell.open if best.name in (one.name, other.name)] or cell.open
    for number, (one, other) in enumerate(names):
        pair = cell.between(one, other)
        told += [", " if number else "", f"{one.title} against {other.title}: "]
        told += verdict(pair) if pair is not None else ["not paired"]
    return (*told, ")")


def _silence(cell: Cell) -> Sentence:
    """Why a cell has no finding."""
    states = {pair.state for pair in cell.pairs}
    if "noisy" in states:
        worst = max((pair for pair in cell.pairs if pair.state == "noisy"), key=lambda pair: pair.pair["floor"])
        by = Number(f"{worst.at}/floor", "percent")
        return ("noisy: this machine differs from itself by up to ", by, ", so no ratio near that is shown")
    if "carried" in states:
        worst = max((pair for pair in cell.pairs if pair.state == "carried"), key=lambda pair: pair.pair["carry_over"])
        return ("void: carry-over of up to ", Number(f"{worst.at}/carry_over", "percent"), ", so no ratio is shown")
    if "few" in states:
        return ("too few samples to tell",)
    if not any(one.timed for one in cell.contenders):
        return ("nothing was timed",)
    return ("nothing was timed against anything else",)


def winner(cell: Cell) -> str | None:
    """The wing of everybody who may be the fastest; None if they are of several, or if nobody knows."""
    wings = {one.wing for one in cell.front if cell.firm}
    return wings.pop() if len(wings) == 1 else None


def headline(found: Found) -> Sentence:
    """The one sentence a person should take away; its counts carry the addresses of the cells that they count."""
    # compiling is timed in two blocks: enough for a plot of medians, not for verdicts
    contests = [cell for cell in cells(found) if cell.mixed and cell.cell["suite"] != "compile"]
    if not contests:
        return ("Nothing was timed in two frameworks.",)
    won: dict[str, list[Cell]] = {}
    for cell in contests:
        won.setdefault(winner(cell) or "", []).append(cell)
    open_ = won.pop("", [])
    parts = [(f"{wing(name)} is fastest in ", own) for name, own in sorted(won.items(), key=lambda item: -len(item[1]))]
    parts.append(("no difference between them in ", [cell for cell in open_ if cell.leaders]))
    parts.append(("no answer in ", [cell for cell in open_ if not cell.leaders]))
    told: list[str | Number] = ["Of ", _number(contests), f" cell{'' if len(contests) == 1 else 's'}"]
    for number, (words, own) in enumerate(part for part in parts if part[1]):
        told += [", " if number else ": ", words, _number(own)]
    return (*told, ".")


def _number(some: list[Cell]) -> Number:
    return tally(cell.at for cell in some)


def warnings(found: Found) -> list[Sentence]:
    """What a reader must know before any number."""
    out: list[Sentence] = []
    if found["partial"] is not None:
        out.append((f"A partial run ({found['partial']}): what is missing was not measured.",))
    if found["quick"]:
        out.append(("A quick run: few samples, good for a look, not for conclusions.",))
    if found.get("together"):
        told = (
            "Contenders began side by side and were timed in turns: seconds of import, build and compiling are upper"
            " bounds, and XLA chose kernels on a device that it shared."
        )
        out.append((told,))
    return [one for one in (*out, disturbed(found)) if one]


def disturbed(found: Found) -> Sentence:
    """Where other work took much of the cores, which moves ratios in ways that intervals do not know; () if nowhere."""
    much = [cell for cell in cells(found) if cell.cell.get("others", 0.0) > MUCH]
    if not much:
        return ()
    worst = max(much, key=lambda cell: cell.cell["others"])
    by = Number(f"{worst.at}/others", "percent")
    told = f" cell{'' if len(much) == 1 else 's'}; their ratios may be others in a quiet run."
    return ("Other work took up to ", by, " of the cores in ", _number(much), told)


def costs(one: Contender) -> Costs:
    """MFU, MBU, peak memory and compile seconds of a contender, with their names."""
    shares = [("MFU", ("mfu_full",)), ("MBU", ("mbu",))] if one.timed else []
    out: Costs = [(name, (Number(f"{one.at}/{key[0]}", "percent"),)) for name, key in shares]
    out.append(("peak memory", (peak(one),)))
    return [*out, ("compile", compiling(one))]


def compiling(one: Contender) -> Sentence:
    """Seconds of compiling, and where they are from if no framework told them."""
    how = (one.one["phases"] or {}).get("compile_how")
    seconds = Number(f"{one.at}/phases/compile", "seconds")
    return (seconds,) if how in (None, TOLD) else (seconds, f" ({how})")


def device(found: Found) -> str:
    """The device of a run, of a processor with its instructions: two of one name may differ in them."""
    if found["device"].get("kind") != "cpu":
        return found["device"]["name"]
    machine = found["machine"]
    return ", ".join((machine.get("cpu") or found["device"]["name"], *(machine.get("instructions") or ())))


def peak(one: Contender) -> Number:
    """The peak on the device where it was measured, else of the process."""
    memory = one.one["memory"] or {}
    return Number(f"{one.at}/memory/{'device' if memory.get('device') is not None else 'peak'}", "size")


def break_even(one: BreakEven) -> Sentence:
    """After how many calls the one that compiles longer has caught up."""
    if not one.settled and one.pair.state != "slower":
        return verdict(one.pair)
    if one.entry["calls"] is None or not one.settled:
        return ("never",)
    return (Number(f"{one.at}/calls", "count"), " call" + ("" if one.entry["calls"] == 1 else "s"))


def footer(found: Found) -> Sentence:
    """Where and when it was measured, and how much this machine differs from itself."""
    days = list(dict.fromkeys(when[:10] for when in (found["started"], *found.get("resumed", ()))))
    parts: list[str | Number] = [f"{found['device']['name']}, {found['threads']} threads, {' and '.join(days)}"]
    commit = found["machine"].get("commit")
    if commit:
        parts.append(f", commit {commit['id'][:10]}{' with changes' if commit['changed'] else ''}")
    measured = (p for cell in cells(found) for p in cell.pairs if p.usable or p.state in ("noisy", "carried"))
    pairs = sorted(measured, key=lambda p: p.pair["floor"])
    if pairs:
        low, high = (Number(f"{pairs[end].at}/floor", "percent") for end in (0, -1))
        parts += [", noise floor ", low, " to ", high]
    parts += [", PARTIAL RUN"] if found["partial"] is not None else []
    return tuple(parts + ([", quick run"] if found["quick"] else []))
