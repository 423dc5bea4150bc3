"""What the fields of a config are observed in: logits, objectives, trained weights, sampled texts."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from common import backend as door
from common import params, vectors
from common.cases import CASES, Case
from common.config import FAMILIES, Execution, GPTConfig, ModelConfig, SamplingConfig, TrainConfig
from common.errors import UserError
from common.parity.trial import Session
from common.record import Record
from common.variants import PATTERNS, Part
from common.variants.rotary import SCALINGS

ORACLE = "numpy"
TRAINED = GPTConfig(5, 4, 4, 1, 2, ff_dim=4, qkv_bias=False, dropout_embed=0.2)  # the oracle differentiates 144 numbers
TRAIN = TrainConfig(
    optimizer="muon",
    steps=6,
    warmup_steps=2,
    learning_rate=2e-2,
    initial_rate=5e-3,
    final_rate=2e-3,
    adam_eps=1e-2,
    clip_norm=0.1,
    seed=5,
)
TRAIN_STEPS = 4  # two of the warm-up, the peak and one of the descent
SAMPLING = SamplingConfig(8, temperature=1.3, seed=11)
DROPOUT = (9, 2)  # seed and step of the masks of the gradients


Outcome = np.ndarray | str  # what was computed, or the sentence with which it was refused
Stage = Callable[[str, Any], Outcome]  # (implementation, config) -> outcome


@dataclass(frozen=True)
class Probe:
    """Where one class of configs is observed: a base config, and stages of which one at least must show every field.

    `exact` says that outcomes are decisions, equal or not. `place` puts a changed config where it is observed, and
    raises where it does not fit.
    """

    base: Any
    stages: tuple[Stage, ...]
    exact: bool = False
    place: Callable[[Any], Any] = lambda changed: changed

    def key(self, name: str) -> str:
        return f"{type(self.base).__name__}.{name}"


def probes(session: Session) -> list[Probe]:
    """What is changed: every model family and kind of layer, then training, sampling and execution."""
    return [
        *(_model_probe(session, smallest(family)) for family in FAMILIES),
        *_part_probes(session),
        *_adapter_probes(session),
        Probe(TRAIN, (_kept(lambda name, train: _trained(session, name, train)),)),
        _sampling_probe(session, smallest(min(FAMILIES))),
        _execution_probe(session, smallest(min(FAMILIES))),
    ]


def smallest(family: str) -> Case:
    """The model case of a family with the fewest parameters that predicts tokens and trains all of them."""
    found = [case for case in CASES.values() if not case.path and case.config.family == family and not case.special]
    return min(found, key=lambda case: params.count(case.config))


def _kept(stage: Stage) -> Stage:
    """A stage that computes each outcome once; a refusal is its sentence."""

    @functools.cache
    def run(name: str, config: Any) -> Outcome:
        try:
            return stage(name, config)
        except UserError as refusal:
            return str(refusal)

    return run


def _build(session: Session, name: str, config: ModelConfig, weights: Mapping, execution: Execution | None = None):
    if name == ORACLE:
        return door.load(ORACLE).build(config, weights, Execution(dtype="float64"))
    return session.subjects[name].build(config, weights, execution or session.execution(name, "float64"))


def _ids(config: ModelConfig, rows: int, length: int) -> np.ndarray:
    """Random ids [rows, length] of the vocabulary."""
    return np.random.default_rng(0).integers(0, config.vocab_size, (rows, length)).astype(np.int32)


def _part_probes(session: Session) -> Iterator[Probe]:
    """Every kind of layer with settings, and the records among its settings: of each the one that says most, so that
    its fields have something to act on, in the smallest case that has it."""
    chosen: dict[type, tuple[Case, Any, list[Callable[[Any], dict]]]] = {}
    for case in sorted((c for c in CASES.values() if not c.path), key=lambda case: params.count(case.config)):
        for field in PATTERNS:
            for part in filter(fields, getattr(case.config, field)):
                found = [(part, [lambda other, field=field: {field: other}])]
                found += [(inner, _inner_places(field, part, name)) for name, inner in _records(part)]
                for base, places in found if _stands_alone(case, field, part) else ():
                    best = chosen.get(type(base))
                    if best is None or _told(base) > _told(best[1]):
                        chosen[type(base)] = case, base, places
    for case, base, places in chosen.values():
        yield _in_place(session, case, base, places)


def _adapter_probes(session: Session) -> Iterator[Probe]:
    """An adapter, in the smallest case that has one."""
    found = [case for case in CASES.values() if case.config.adapters]
    case = min(found, key=lambda case: params.count(case.config))
    yield _in_place(session, case, case.config.adapters[0], [lambda adapter: {"adapters": adapter}])


def _told(record: Record) -> int:
    """How many of its fields are not as they would be unsaid."""
    return sum(getattr(record, one.name) != one.default for one in fields(record))


def _stands_alone(case: Case, field: str, part: Part) -> bool:
    """Whether all layers can be of that kind: one that reads the keys of others cannot be the first."""
    try:
        case.config.with_(**{field: part})
    except UserError:
        return False
    return True


def _records(part: Part) -> list[tuple[str, Record]]:
    found = [(one.name, getattr(part, one.name)) for one in fields(part)]
    return [(name, value) for name, value in found if isinstance(value, Record)]


def _inner_places(field: str, part: Part, name: str) -> list[Callable[[Any], dict]]:
    """Where a record of settings is observed: as it is, and in each of the ways that it can be scaled, for most of its
    numbers belong to one of them."""
    plain = [lambda inner: {field: part.with_(**{name: inner})}]
    scaled = [lambda inner, s=s: {field: part.with_(**{name: inner.with_(scaling=s)})} for s in SCALINGS]
    return plain + (scaled if hasattr(getattr(part, name), "scaling") else [])


def _in_place(session: Session, case: Case, base: Any, places: Sequence[Callable[[Any], dict]]) -> Probe:
    """A probe of something inside a model's config, which is observed where the model is."""

    def stage(whole: Stage, put: Callable[[Any], dict]) -> Stage:
        return _kept(lambda name, inner: whole(name, case.config.with_(**put(inner))))

    stages = tuple(stage(whole, put) for put in places for whole in _model_probe(session, case).stages)
    return Probe(base, stages, place=lambda changed: case.config.with_(**places[0](changed)))


def _model_probe(session: Session, case: Case) -> Probe:
    def logits(name: str, config: ModelConfig) -> np.ndarray:
        return forward(name, session, config, None, params.randomise(config, case.seed))

    def objective(name: str, config: ModelConfig) -> np.ndarray:
        """Loss and slopes along one direction per tensor, with dropout: what only training shows."""
        weights = params.randomise(config, case.seed)
        ids, targets = _ids(config, 1, 6)[:, :-1], _ids(config, 1, 6)[:, 1:]
        model = _build(session, name, config, weights)
        along = {p.name: vectors.direction(case, p) for p in params.table(config).values()}
        if name == ORACLE:
            return _oracle_slopes(model, ids, targets, along)
        found = model.gradients(ids, targets, dropout=DROPOUT)
        return np.array([found.value, *((found.grads[n].astype(np.float64) * along[n]).sum() for n in along)])

    return Probe(case.config, (_kept(logits), _kept(objective)))


def _oracle_slopes(model: Any, ids: np.ndarray, targets: np.ndarray, along: Mapping[str, np.ndarray]) -> np.ndarray:
    from common.oracle.gradient import slope

    def loss(weights):
        return model.loss_of(weights, ids, targets, DROPOUT)

    slopes = [slope(loss, model.params, {name: direction}) for name, direction in along.items()]
    return np.array([loss(model.params), *slopes], np.float64)


def forward(name: str, session: Session, config: ModelConfig, execution: Execution | None, weights) -> np.ndarray:
    """Logits [1, T, V] at the full length of the context."""
    ids = _ids(config, 1, config.context_length)
    return np.asarray(_build(session, name, config, weights, execution).forward(ids).logits, np.float64)


def _trained(session: Session, name: str, train: TrainConfig) -> np.ndarray:
    """All parameters after a few steps of two micro-batches."""
    model = _build(session, name, TRAINED, params.randomise(TRAINED, 0))
    model.start_training(train)
    ids = _ids(TRAINED, 2, TRAINED.context_length + 1).reshape(2, 1, -1)
    for _ in range(TRAIN_STEPS):
        model.train_step(ids[..., :-1], ids[..., 1:])
    return np.concatenate([value.ravel() for _, value in sorted(model.weights().items())]).astype(np.float64)


def _sampling_probe(session: Session, case: Case) -> Probe:
    def texts(prompts: list[list[int]]) -> Stage:
        def run(name: str, sampling: SamplingConfig) -> np.ndarray:
            model = _build(session, name, case.config, case.weights())
            found = model.generate(prompts, sampling)
            width = sampling.max_new_tokens
            return np.array([row + [-1] * (width - len(row)) for row in found], np.float64)

        return _kept(run)

    too_long = _ids(case.config, 1, case.config.context_length).tolist()
    return Probe(SAMPLING, (texts(case.prompts()), texts(too_long)), exact=True)


def _execution_probe(session: Session, case: Case) -> Probe:
    def logits(name: str, execution: Execution | None) -> np.ndarray:
        return forward(name, session, case.config, execution, case.weights())

    return Probe(Execution(dtype="float64"), (_kept(logits),))
