"""What a base in 4 bits (`quantise.py`, three times) brings to C1 and C2.

To C1: codes, scales and the weights that they stand for, equal by the bit and known. To C2: a model whose base lies in
4 bits computes what the oracle computes with the weights that the bits stand for, adapters on it learning as they do.
"""

import functools
from collections.abc import Iterator

import numpy as np

from common import backend as door
from common import nf4, params, vectors
from common.accounting.parts import kind
from common.backend import Model
from common.cases import CASES, Case
from common.oracle.gradient import gradient
from common.parity import known
from common.parity import rows as table
from common.parity.known import sha256
from common.parity.rows import Row
from common.parity.trial import Session, Trial
from common.quantised import BASES, quantised

TIER = "float64"
SHAPE = 129, 131  # blocks of more than one group; neither the last of them is full nor the last byte
SIZES = 0.02, 1.0, 7.0  # by which one block differs from the next; the order in which all are added shows


# --- C1 --------------------------------------------------------------------------------------------------------------


def matrices() -> list[np.ndarray]:
    """Float32: normal numbers whose first blocks are zeros, ties with their upper neighbours, and too small to count;
    and a matrix whose blocks have one absmax, which leaves nothing of their differences."""
    x = params.draw(known.SEED, "4 bits", SHAPE).reshape(-1)
    x = (x * np.resize(np.repeat(SIZES, nf4.BLOCK), x.size)).astype(np.float32)
    zeros, ties, small = (x[start : start + nf4.BLOCK] for start in range(0, 3 * nf4.BLOCK, nf4.BLOCK))
    zeros[:] = 0
    zeros[1] = -0.0
    middle = nf4.midpoints(nf4.NF4)
    ties[:] = np.resize([1, *middle, *np.nextafter(middle, np.float32(2))], ties.size)
    small[:] = 0.99 * 2.0**-100
    level = np.full((5, nf4.BLOCK), 0.7, np.float32)
    return [x.reshape(SHAPE), level]


def what(base: str) -> str:
    """The name of a row of C1."""
    return f"4 bits/{base}"


def exact(session: Session) -> Iterator[Row]:
    """Whether the oracle's bits are those that they always were, and how many bytes of the others' differ from them."""
    given, oracle = matrices(), door.load("numpy")
    for base in BASES:
        want = [oracle.four_bits(matrix, base) for matrix in given]
        parts = [part for own in want for name, array in own.items() for part in (name, array)]
        wrong = {"numpy": int(sha256(*parts) != known.FOUR_BITS[base])}
        for name, subject in session.subjects.items():
            got = [subject.four_bits(matrix, base) for matrix in given]
            wrong[name] = sum(map(table.differing, got, want))
        yield table.exact("C1", "", what(base), wrong, size=sum(matrix.size for matrix in given))


# --- C2 --------------------------------------------------------------------------------------------------------------


@functools.cache
def _firsts() -> frozenset[str]:
    """The models that are the first ones in the registry whose feed-forward layers have a kind of map that no model
    with adapters has. Attention is left out: JAX compiles what quantises for every size of matrix."""
    models = [case for case in CASES.values() if not case.path]
    maps = {case.name: {kind(path) for path in _maps(case) if ".mlp." in path} for case in models}
    seen = set().union(*(maps[case.name] for case in models if case.config.adapters))
    found = set()
    for name, own in maps.items():
        if own - seen:
            found.add(name)
        seen |= own
    return frozenset(found)


def _maps(case: Case) -> list[str]:
    return [name.removesuffix(".weight") for name in nf4.names(case.config)]


def _tried(trial: Trial) -> bool:
    """Models with adapters, and one for every kind of map that these lack; a quick session leaves the latter out."""
    case = trial.case
    learns = bool(case.config.adapters) and not case.path
    return learns or (case.name in _firsts() and not trial.session.quick)


def rows(trial: Trial) -> Iterator[Row]:
    """Logits and the weights that come out; of a model with adapters also the loss, with dropout, and all gradients
    that there are, which are those of everything that is not kept in 4 bits."""
    for base in BASES if _tried(trial) else ():
        yield from _of_base(trial, base)


def declared(trial: Trial) -> set[tuple[str, str]]:
    """What `rows` must yield."""
    names = ["logits"]
    if trial.case.config.adapters:
        names += ["loss/dropout", *(f"grad/{name}" for name in _free(trial))]
    if not _tried(trial):
        return set()
    found = {(f"{base}/{name}", TIER) for base in BASES for name in names}
    return found | {(f"{base}/weights", "exact") for base in BASES}


def _free(trial: Trial) -> list[str]:
    """What is not kept in 4 bits and has a gradient."""
    small = set(nf4.names(trial.case.config))
    return [name for name in params.table(trial.case.config) if name not in small and not trial.truth.dead(name)]


def _of_base(trial: Trial, base: str) -> Iterator[Row]:
    case, truth = trial.case, trial.truth
    (ids, targets), dropout = case.tokens(), (case.seed, vectors.DROPOUT_STEP)
    given = dict(quantised(case.config, case.weights(), base))
    oracle = truth.once(f"{base}/model", lambda: truth.build(given))
    models = {name: _build(trial, name, base) for name in trial.names}
    wrong = {name: table.differing(model.weights(), _wide(given)) for name, model in models.items()}
    yield table.exact("C2", case.name, f"{base}/weights", wrong, size=params.count(case.config))
    want = truth.once(f"{base}/logits", lambda: oracle.forward(ids).logits)
    yield _row(trial, f"{base}/logits", {name: model.forward(ids).logits for name, model in models.items()}, want)
    if not case.config.adapters:
        return
    found = {name: model.gradients(ids, targets, dropout) for name, model in models.items()}

    def loss(own):
        return oracle.loss_of(own, ids, targets, dropout)

    want = truth.once(f"{base}/loss", lambda: float(loss(oracle.params)))
    yield _row(trial, f"{base}/loss/dropout", {name: own.value for name, own in found.items()}, want)
    grads = truth.once(f"{base}/grads", lambda: gradient(loss, oracle.params, _free(trial)))
    for part, value in grads.items():
        got = {name: own.grads.get(part, np.nan) for name, own in found.items()}
        yield _row(trial, f"{base}/grad/{part}", got, value)


def _build(trial: Trial, name: str, base: str) -> Model:
    execution = trial.session.execution(name, TIER).with_(base=base)
    return trial.session.subjects[name].build(trial.case.config, trial.case.weights(), execution)


def _wide(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float64) for name, array in weights.items()}


def _row(trial: Trial, what: str, got: dict[str, object], want: object) -> Row:
    return table.arrays("C2", trial.case.name, what, TIER, "float64", got, want)
