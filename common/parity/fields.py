"""The fields of the configs, a part of C6: each is changed, and must change all implementations alike, or none.

A field that an implementation never reads is a bug that no test at one config can see. So every field of every model
family, of TrainConfig, SamplingConfig and Execution gets another valid value (`perturb`). What is then computed must
equal the oracle and differ from before. Fields that rightly change nothing stand in UNREAD, each with its reason, and
are held to it; a field that is in no table and changes nothing fails.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from common import allocator, params
from common.cases import Case
from common.compare import UNIT_ROUNDOFF, difference
from common.config import FAMILIES, STACKS, Execution
from common.parity.perturb import another, names_of
from common.parity.probes import ORACLE, Outcome, Probe, forward, probes, smallest
from common.parity.rows import Exhibit, Row
from common.parity.trial import Session
from common.quantised import quantised
from common.record import plain

NAME = "C6"
READ = 1e-9  # a smaller relative change is none: float64 rounds at 1e-15, the faintest field here changes 1e-6
UNREAD = {
    "TrainConfig.batch_size": "the run cuts its batches by it; a step takes the arrays that it is given",
    "TrainConfig.accumulate": "the run cuts its micro-batches by it; a step takes the arrays that it is given",
    "SamplingConfig.cache": "the cache only saves work",
    "SamplingConfig.prefill_chunk": "the prompt is read in parts, which only saves memory",
    "Execution.dtype": "only rounds more coarsely",
    "Execution.device": "the same computation elsewhere",
    "Execution.attention": "another kernel of the same function",
    "Execution.compile": "the same operations, compiled or one by one",
    "Execution.threads": "the same work, shared otherwise",
    "Execution.layers": "the same block for every layer, compiled once, or called again on the way back",
    "Execution.loss": "the same loss, some rows at a time",
    "Execution.norm": "another kernel of the same function",
    "Execution.optimizer": "another kernel of the same step",
    "Execution.products": "the same products of the same numbers",
    "Execution.decode": "the same products, read otherwise",
    "Execution.projections": "the same products, joined or with heads in place",
    "Execution.experts": "the same experts, one by one or together",
    "Execution.recurrence": "the same recurrence, some tokens at once",
    "Execution.latent": "the same products in another order",
    "Execution.allocator": "the same work in other memory",
    "Execution.graphs": "the same kernels, launched at once",
    "Execution.buffers": "the same programs, which write elsewhere",
    "Execution.rng": "only training and sampling draw",
    "Execution.base": "the numbers that 4 bits stand for, against an oracle that has these",
    "Execution.masks": "the same masks, stored or made on the fly",
    "Execution.gelu": "another form of the same function",
    "Execution.layout": "the same rows and matrices, on several devices",
}
SLOW = ("Execution.compile",)  # PyTorch's compiler takes half a minute
HALF = ("Execution.dtype", "Execution.attention")  # compared in float32, which all fused kernels offer


def declared(session: Session) -> set[tuple[str, str]]:
    """(what, tier) of every row that `rows` yields."""
    return {(f"field/{key}", tier) for _, _, key, tier in _chosen(session)}


def rows(session: Session) -> Iterator[Row | Exhibit]:
    """A row for every field, and the list of what each change did."""
    shown = []
    for probe, name, key, tier in _chosen(session):
        row, before, after = _tried(session, probe, name, tier)
        yield row
        owner, _, field = key.partition(".")
        change, errors = row.inputs.get("change", 0.0), [e for n, e in row.errors.items() if not n.endswith(" change")]
        shown.append(
            {"class": owner, "field": field, "from": plain(before), "to": plain(after), "unread": UNREAD.get(key, "")}
            | {"change": _plain(change), "agreement": _plain(max(errors, default=np.inf)), "passed": row.passed}
        )
    if shown:
        yield Exhibit("fields", shown)


def row(session: Session, key: str) -> Row:
    """The row of one field, by its key ("GPTConfig.norm_eps")."""
    (found,) = (entry for entry in _chosen(session) if entry[2] == key)
    probe, name, _, tier = found
    return _tried(session, probe, name, tier)[0]


def _chosen(session: Session) -> Iterator[tuple[Probe, str, str, str]]:
    """(probe, field, key, tier) of all fields that this session tries."""
    for probe in probes(session):
        for name in names_of(probe.base):
            key = probe.key(name)
            tier = _tier(probe, key)
            if session.wants(tier) and _applies(session, key):
                yield probe, name, key, tier


def _plain(number: float) -> float | str:
    """A number as JSON knows it: infinity, which another shape or a refusal counts as, is text that float() reads."""
    return float(number) if np.isfinite(number) else str(float(number))


def _tier(probe: Probe, key: str) -> str:
    if key in HALF:
        return "float32"
    return "exact" if probe.exact else "float64"


def _applies(session: Session, key: str) -> bool:
    if key == "Execution.device":
        return any(_device(session, subject) for subject in session.subjects)
    if key == "Execution.allocator":  # chosen when a process starts
        return allocator.is_kept()
    if key == "Execution.graphs":
        return session.device != "cpu"
    return not (session.quick and key in SLOW)


def _tried(session: Session, probe: Probe, name: str, tier: str) -> tuple[Row, Any, Any]:
    """The row of one field, and its values before and after."""
    key = probe.key(name)
    blank = Row(NAME, "", f"field/{key}", tier, "exact", dict.fromkeys(session.subjects, 1.0))
    before = getattr(probe.base, name)
    try:
        if isinstance(probe.base, Execution):
            return _execution(session, probe, name, blank), before, "another"
        changed = _changed(probe, name)
        if changed is None:
            note = f"no other valid value of {key} is known; see common/parity/perturb.py"
            return replace(blank, note=note), before, "none known"
        row = (_unread if key in UNREAD else _read)(session, probe, changed, blank)
        return row, before, getattr(changed, name)
    except Exception as fault:  # one field that breaks must not hide the others
        return replace(blank, note=f"{type(fault).__name__}: {fault}"[:400]), before, "not tried"


def _changed(probe: Probe, name: str) -> Any:
    if probe.key(name) == "SamplingConfig.end_token":  # only a token that is drawn can end a row
        rows = probe.stages[0](ORACLE, probe.base)
        return probe.base.with_(end_token=int(rows[0, 1]))
    return another(probe.base, name, probe.place)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def _read(session: Session, probe: Probe, changed: Any, row: Row) -> Row:
    """A field that must be read: the first stage that shows it in the oracle is compared in all."""
    for stage in probe.stages:
        want, base = stage(ORACLE, changed), stage(ORACLE, probe.base)
        change = _relative(want, base)
        if change > READ:
            break
    else:
        return replace(row, note="changes nothing in the oracle, and UNREAD has no reason for it")
    after = {name: stage(name, changed) for name in session.subjects}
    before = {name: stage(name, probe.base) for name in session.subjects}
    errors = {name: max(_relative(after[name], want), _relative(before[name], base)) for name in after}
    errors |= {f"{a}/{b}": _relative(after[a], after[b]) for a, b in itertools.combinations(after, 2)}
    if probe.exact:
        return replace(row, errors={n: float(e > 0) for n, e in errors.items()}, inputs={"change": change})
    if _numbers(want, base):
        moved = {n: after[n] - before[n] for n in after if _numbers(after[n], before[n], want)}
        errors |= {f"{n} change": _relative(moved[n], want - base) if n in moved else np.inf for n in after}
    refused = "; ".join(f"{name}: {value}" for name, value in after.items() if isinstance(value, str))
    return replace(row, rule="field", errors=errors, inputs={"change": change}, size=np.size(want), note=refused)


def _unread(session: Session, probe: Probe, changed: Any, row: Row) -> Row:
    """A field that must not be read: no stage changes, neither here nor in the oracle."""
    if any(_relative(stage(ORACLE, changed), stage(ORACLE, probe.base)) > 0 for stage in probe.stages):
        return replace(row, note="changes the oracle, though UNREAD says that it does not")
    errors = {
        name: max(_relative(stage(name, changed), stage(name, probe.base)) for stage in probe.stages)
        for name in session.subjects
    }
    if probe.exact:
        return replace(row, errors={name: float(error > 0) for name, error in errors.items()})
    return replace(row, rule="float64", errors=errors)


def _execution(session: Session, probe: Probe, name: str, row: Row) -> Row:
    """Another way to execute: the oracle's logits within rounding, or a refusal in a sentence."""
    model, (stage,) = smallest(min(FAMILIES)), probe.stages
    want, notes, errors = stage(ORACLE, None), [], {}
    for subject in session.subjects:
        found = []
        for execution in _other_executions(session, subject, name):
            got, due = stage(subject, execution), want
            if execution.base != "plain":  # computes with the numbers that 4 bits stand for
                due = forward(
                    ORACLE, session, model.config, None, quantised(model.config, model.weights(), execution.base)
                )
            if isinstance(got, str):
                notes.append(f"{subject} refuses: {got}")
            else:
                found.append(_relative(got, due))
        errors[subject] = max(found, default=0.0)
    row = replace(row, errors=errors, size=want.size, note="; ".join(notes))
    if row.tier == "float64":
        return replace(row, rule="float64")
    nudged = forward(ORACLE, session, model.config, None, _nudged(model, UNIT_ROUNDOFF[row.tier]))
    return replace(row, rule="control", inputs={"control": _relative(nudged, want)})


def _relative(got: Outcome, want: Outcome) -> float:
    """Relative RMS difference; refusals are equal by their sentence; of different kind or shape is infinitely far."""
    if isinstance(got, str) or isinstance(want, str):
        return 0.0 if isinstance(got, str) and isinstance(want, str) and got == want else np.inf
    try:
        return difference("", got, want).relative
    except ValueError:
        return np.inf


def _numbers(*values: Outcome) -> bool:
    """Whether these are arrays of one shape, so that they can be subtracted."""
    return all(isinstance(v, np.ndarray) and v.shape == np.shape(values[0]) for v in values)


# --- other ways to execute --------------------------------------------------------------------------------------------


def _other_executions(session: Session, subject: str, name: str) -> list[Execution]:
    """A subject's execution with other values of this field, as far as it has any."""
    base, wing = session.execution(subject, "float64"), session.subjects[subject]
    if name == "dtype":
        return [base.with_(dtype="float32")]
    if name == "device":
        device = _device(session, subject)
        return [base.with_(device=device)] if device else []
    if name == "threads":  # the number that it has anyway, said aloud: JAX can take no other in a running process
        return [base.with_(threads=wing.threads())]
    if name == "compile":  # one of the two is what it does by itself
        return [base.with_(compile=value) for value in (True, False)]
    if name == "layers":
        return [base.with_(layers=value) for value in STACKS if value != base.layers]
    changed = another(base.with_(dtype="float32") if name == "attention" else base, name)
    return [] if changed is None else [changed]


def _device(session: Session, subject: str) -> str | None:
    others = [d for d in session.subjects[subject].devices() if d.partition(":")[0] != session.device.partition(":")[0]]
    return others[0] if others else None


def _nudged(case: Case, unit: float) -> dict[str, np.ndarray]:
    """The weights of a case, each moved by one rounding."""
    moved = {n: np.sign(params.draw(1, n, w.shape)) for n, w in case.weights().items()}
    return {n: w.astype(np.float64) * (1 + unit * moved[n]) for n, w in case.weights().items()}
