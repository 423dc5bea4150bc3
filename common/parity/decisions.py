"""C4: the same tokens. Greedy, top-k and top-p, with and without cache, prefilled in chunks, streamed; first choices.

In float64 tokens are equal. Below, a token may differ only where the oracle itself nearly chose otherwise: where its
margin is smaller than what rounding of the tier can do to the logits there (the oracle with noise; no implementation
has a say in it). Such a certified tie is listed with its margin; from there on the texts are two, and are not compared.

Layers decide too: a router for experts, an indexer for keys. In every tier they choose the largest of the scores that
the implementation itself shows, to the last one; and given its own values before it, layer by layer, a router chooses
what the oracle's would, or its scores at the border lie within rounding: another certified tie.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common import backend as door
from common.accounting.parts import entry
from common.backend import Model
from common.config import PRECISIONS, SamplingConfig
from common.decoding import padded
from common.parity import noise, thresholds
from common.parity.margins import lead, margin
from common.parity.rows import Exhibit, Row
from common.parity.thresholds import EXACT, GUMBEL, ROUNDOFF
from common.parity.trial import Session, Trial, Truth

NAME = "C4"
TITLE = "decisions"
SENTENCE = (
    "All implementations choose the same tokens and experts as the oracle: exactly in float64, and below wherever its"
    " margin is larger than rounding; every other place is listed with its margin."
)
OWN, ROUTED = "choices by own scores", "chosen experts"  # rows about what is chosen inside of a model
TIERS = ("float64", "float32", "bfloat16")
SCORE_ROUNDINGS = 8  # an exponential, a sum, a quotient, a bias, each off by an ulp or two
CHUNK = 3  # tokens per prefill: two full chunks and a rest, for the prompts of the cases
VARIANTS: dict[str, dict[str, Any]] = {
    "cached": {},
    "uncached": {"cache": False},
    "chunked": {"prefill_chunk": CHUNK},
    "streamed": {},
}

Values = Mapping[str, np.ndarray]


def for_case(trial: Trial) -> Iterator[Row | Exhibit]:
    """Choices along the case's own tokens, of tokens and inside of the model, then generated tokens; all precisions."""
    ties: list[dict[str, Any]] = []
    for tier in _tiers(trial.session) if not trial.case.path else ():
        yield _first_choices(trial, tier, ties)
        yield from _inner_choices(trial, tier, ties)
        for number, variant in _generations(trial, tier):
            yield _generated(trial, tier, number, variant, ties)
    if ties:
        yield Exhibit("ties", ties)


def declared(trial: Trial) -> set[tuple[str, str]]:
    """What `for_case` must yield."""
    if trial.case.path:
        return set()
    found = {(what, tier) for tier in _tiers(trial.session) for what in ("first choices", *_inner(trial))}
    for tier in _tiers(trial.session):
        found |= {(_what(trial, number, variant), tier) for number, variant in _generations(trial, tier)}
    return found


def once(session: Session) -> Iterator[Row | Exhibit]:
    """Nothing: every comparison belongs to a case."""
    yield from ()


def declared_once(session: Session) -> set[tuple[str, str]]:
    """Nothing."""
    return set()


def _tiers(session: Session) -> list[str]:
    return [tier for tier in TIERS if session.wants(tier)]


def _generations(trial: Trial, tier: str) -> Iterator[tuple[int, str]]:
    """(number of the sampling, variant). A quick session tries one variant beside the cache, and in float64 only."""
    for number in range(len(trial.case.sampling)):
        variants = list(VARIANTS)
        if trial.session.quick:
            others = variants[1:]
            variants = ["cached", others[number % len(others)]] if tier == "float64" else ["cached"]
        yield from ((number, variant) for variant in variants)


def _what(trial: Trial, number: int, variant: str) -> str:
    return f"tokens {number} {strategy(trial.case.sampling[number])} {variant}"


def strategy(sampling: SamplingConfig) -> str:
    """How tokens are chosen, in a word or two."""
    if sampling.temperature == 0:
        return "greedy"
    filters = [name for name, on in (("top-k", sampling.top_k), ("top-p", sampling.top_p)) if on is not None]
    return " ".join(filters) or "sampled"


# --- along the case's own tokens -------------------------------------------------------------------------------------


def _first_choices(trial: Trial, tier: str, ties: list[dict[str, Any]]) -> Row:
    """The largest logit at every position of the case's own tokens."""
    truth, (ids, _) = trial.truth, trial.case.tokens()
    want = truth.forward.logits
    noisy = [] if tier == "float64" else noise.outputs(truth, tier)
    margins, bounds = lead(want), 2 * _logit_error(tier, want, noisy)
    wrong = {}
    for name, model in trial.each(tier).items():
        own = model.forward(ids).logits
        differs = own.argmax(-1) != want.argmax(-1)
        wrong[name] = int((differs & (margins > bounds)).sum()) + int((~np.isfinite(own)).any(-1).sum())
        for row, step in np.argwhere(differs & (margins <= bounds)):
            place, what = (int(row), int(step)), "first choices"
            ties.append(_tie(trial, tier, name, what, place, margins[row, step], bounds[row, step]))
    note = f"{int((margins <= bounds).sum())} of {margins.size} margins are within rounding"
    return _row(trial, tier, "first choices", wrong, margins.size, note)


def _logit_error(tier: str, clean: np.ndarray, noisy: list[np.ndarray]) -> np.ndarray:
    """How far a logit may be off: in float64 by that tier's bound, else by the noise. [..., V] -> [...]."""
    if tier == "float64":
        return EXACT * np.abs(clean).max(-1)
    return noise.largest_logit_error(tier, clean, noisy)


# --- inside the model ------------------------------------------------------------------------------------------------


def _choosers(trial: Trial) -> list[str]:
    """The paths of the modules that choose something for every token: experts, or keys."""
    return [tap.removesuffix(".chosen") for tap in trial.truth.forward.taps if tap.endswith(".chosen")]


def _routes(path: str) -> bool:
    """Whether a module that chooses is one that chooses experts."""
    return path.endswith(".mlp")


def _inner(trial: Trial) -> set[str]:
    """The rows about what modules choose."""
    paths = _choosers(trial)
    return ({OWN} if paths else set()) | ({ROUTED} if any(map(_routes, paths)) else set())


def _inner_choices(trial: Trial, tier: str, ties: list[dict[str, Any]]) -> Iterator[Row]:
    """Along the case's own tokens: what follows from an implementation's own scores, and what from its own inputs."""
    paths = _choosers(trial)
    if not paths:
        return
    ids, _ = trial.case.tokens()
    sizes = {path: trial.truth.forward.taps[f"{path}.chosen"][..., 0].size for path in paths}
    taps = {name: model.forward(ids, taps=("*",)).taps for name, model in trial.each(tier).items()}
    wrong = {name: sum(_unlike_own_scores(trial, path, own) for path in paths) for name, own in taps.items()}
    yield _row(trial, tier, OWN, wrong, sum(sizes.values()), "")
    if routed := list(filter(_routes, paths)):
        wrong = {name: _unlike_the_oracle(trial, tier, name, own, ties) for name, own in taps.items()}
        yield _row(trial, tier, ROUTED, wrong, sum(sizes[path] for path in routed), "")


def _unlike_own_scores(trial: Trial, path: str, own: Values) -> int:
    """How many choices of a module are not those of the largest of the implementation's own scores."""
    return int(_unlike(own[f"{path}.chosen"], _choice(trial, path, own[_scores(trial, path)])[0]).sum())


def _unlike_the_oracle(trial: Trial, tier: str, name: str, own: Values, ties: list[dict[str, Any]]) -> int:
    """How many tokens go to other experts than the oracle would send them to, given what the implementation itself
    hands to the router, though the last score chosen and the next one lie farther apart than twice what one may be off.
    """
    given = {tap: value for tap, value in own.items() if not tap.endswith(".router")}  # the oracle's are its own
    steps, wrong = noise.step_by_step(trial.truth, given), 0
    for path in filter(_routes, _choosers(trial)):
        want, margins = _choice(trial, path, steps[_scores(trial, path)])
        bounds = 2 * _score_error(trial, tier, path, own)
        differs = _unlike(own[f"{path}.chosen"], want)
        wrong += int((differs & (margins > bounds)).sum())
        for row, step in np.argwhere(differs & (margins <= bounds)):
            place, what = (int(row), int(step)), f"experts of {path}"
            ties.append(_tie(trial, tier, name, what, place, margins[row, step], bounds[row, step]))
    return wrong


def _score_error(trial: Trial, tier: str, path: str, own: Values) -> np.ndarray:
    """How far a token's logits may be off in a router, the largest of them, [B, T]: by the rule for products whose sums
    and results are here in the precision of reductions. Scores made of them are off by no more, for softmax and sigmoid
    flatten, and by their own few roundings.
    """
    x = np.asarray(own[f"{path.rpartition('.')[0]}.post_attention_layernorm"], np.float64)
    weight, unit = trial.truth.model.params[f"{path}.router.weight"], ROUNDOFF[PRECISIONS[tier].reduce]
    inputs = {"terms": float(weight.shape[1]), "sums": unit, "unit": unit}
    sizes = np.abs(x) @ np.abs(weight).T + np.abs(trial.truth.model.params.get(f"{path}.router.bias", 0.0))
    found = thresholds.bounds("matmul", {path: 0.0}, inputs)[path] * sizes.max(-1)
    if _scores(trial, path).endswith(".choice"):
        found = found + SCORE_ROUNDINGS * unit * np.abs(own[_scores(trial, path)]).max(-1)
    return found


def _scores(trial: Trial, path: str) -> str:
    """The tap that shows by what a module chooses."""
    if not _routes(path):
        return f"{path}.index_scores"
    return f"{path}.choice" if entry(trial.case.config, path).chooses_by_scores else f"{path}.router"


def _choice(trial: Trial, path: str, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a module must choose by these scores, of equal ones the first, and how near it is to choosing otherwise
    [B, T]: experts by number, in order, [B, T, C]; keys as a mask [B, T, S], hidden ones never.
    """
    layer = entry(trial.case.config, path)
    if _routes(path):
        allowed, near = _in_best_groups(scores, layer.num_groups, layer.top_groups)
        order, margins = _largest(allowed, layer.top_k)
        return np.sort(order, -1), np.minimum(margins, near)
    order, margins = _largest(scores, layer.top_k)
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, order, True, -1)
    return mask & (scores > -np.inf), margins


def _largest(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of the `count` largest, of equal ones the first, and by how much the last of them leads."""
    order = np.argsort(-scores, -1, kind="stable")
    ranked = np.take_along_axis(scores, order, -1)
    if count >= scores.shape[-1]:
        return order[..., :count], np.full(scores.shape[:-1], np.inf)
    after = ranked[..., count]
    lead_by = ranked[..., count - 1] - np.where(after > -np.inf, after, 0.0)
    return order[..., :count], np.where(after > -np.inf, lead_by, np.inf)


def _in_best_groups(scores: np.ndarray, groups: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The scores, minus infinity outside the `count` groups whose two best have the largest sum, and by how much single
    scores must be off before these are others: half of what the sums must."""
    if groups == 1:
        return scores, np.full(scores.shape[:-1], np.inf)
    parts = scores.reshape(*scores.shape[:-1], groups, -1)
    best, margins = _largest(np.sort(parts, -1)[..., -2:].sum(-1), count)
    kept = np.zeros(parts.shape[:-1], bool)
    np.put_along_axis(kept, best, True, -1)
    return np.where(kept[..., None], parts, -np.inf).reshape(scores.shape), margins / 2


def _unlike(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Where two choices differ, bool [B, T]: everywhere if one is of another number."""
    return (got != want).any(-1) if got.shape == want.shape else np.ones(want.shape[:-1], bool)


# --- generation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """What the oracle generates, and for every row and step its margin and how much the tier may take from it."""

    tokens: list[list[int]]
    margins: list[np.ndarray]
    bounds: list[np.ndarray]

    @property
    def steps(self) -> int:
        return sum(map(len, self.tokens))


def _generated(trial: Trial, tier: str, number: int, variant: str, ties: list[dict[str, Any]]) -> Row:
    what, wrong = _what(trial, number, variant), {}
    course = trial.truth.once(f"decisions/{tier}/{number}", lambda: oracle_course(trial.truth, tier, number))
    for name in trial.names:
        got = generate(trial.model(name, tier), trial.case.prompts(), trial.case.sampling[number], variant)
        wrong[name] = 0
        for row, (own, want) in enumerate(zip(got, course.tokens, strict=True)):
            step = first_difference(own, want)
            if step is None:
                continue
            margin, bound = (
                float(numbers[row][min(step, len(want) - 1)]) for numbers in (course.margins, course.bounds)
            )
            if margin > bound:
                wrong[name] += 1
            else:
                ties.append(_tie(trial, tier, name, what, (row, step), margin, bound))
    close = sum(int((m <= b).sum()) for m, b in zip(course.margins, course.bounds, strict=True))
    note = f"{close} of {course.steps} margins are within rounding" if close else ""
    return _row(trial, tier, what, wrong, course.steps, note)


def generate(model: Model, prompts: list[list[int]], sampling: SamplingConfig, variant: str) -> list[list[int]]:
    """New tokens of every row, made in one of the `VARIANTS`."""
    sampling = sampling.with_(**VARIANTS[variant])
    if variant == "streamed":
        return door.collect(model.stream(prompts, sampling), len(prompts))
    return model.generate(prompts, sampling)


def first_difference(own: list[int], want: list[int]) -> int | None:
    """The first step at which two texts part, or None."""
    for step, (mine, other) in enumerate(zip(own, want, strict=False)):
        if mine != other:
            return step
    return None if len(own) == len(want) else min(len(own), len(want))


def oracle_course(truth: Truth, tier: str, number: int) -> Course:
    """The oracle's tokens with margins and bounds; its float64 is exact but for the last digits."""
    sampling, prompts = truth.case.sampling[number], truth.case.prompts()
    tokens = truth.once(f"tokens/{number}", lambda: truth.model.generate(prompts, sampling))
    margins, bounds = [], []
    for row, (prompt, new) in enumerate(zip(prompts, tokens, strict=True)):
        ids, positions = _contexts(truth, prompt, new)
        clean = truth.model.forward(ids, positions).logits[:, -1]
        noisy = [] if tier == "float64" else _noisy(truth, tier, ids, positions)
        error = _logit_error(tier, clean, noisy)
        at = [len(prompt) + step for step in range(len(new))]
        margins.append(np.array([margin(own, sampling, p, row) for own, p in zip(clean, at, strict=True)]))
        bounds.append(allowed(error, sampling, tier))
    return Course(tokens, margins, bounds)


def _contexts(truth: Truth, prompt: list[int], new: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """What is read before every step, one row each, padded on the left."""
    limit = truth.case.config.context_length
    return padded([[*prompt, *new[:step]][-limit:] for step in range(len(new))])


def _noisy(truth: Truth, tier: str, ids: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
    draw = functools.partial(noise.disturbed, truth, tier, ids=ids, positions=positions)
    return [draw(seed)[:, -1] for seed in range(noise.SEEDS)]


def allowed(error: np.ndarray, sampling: SamplingConfig, tier: str) -> np.ndarray:
    """What logits that are each off by `error` can take from a margin; drawn noise is itself rounded to the tier."""
    if sampling.temperature == 0:
        return 2 * error
    return 2 * error / sampling.temperature + (0.0 if tier == "float64" else 2 * GUMBEL)


def _tie(trial: Trial, tier: str, name: str, what: str, place: tuple[int, int], margin: float, bound: float) -> dict:
    where = {"row": place[0], "step": place[1], "margin": float(margin), "rounding": float(bound)}
    return {"case": trial.case.name, "tier": tier, "wing": name, "what": what, **where}


def _row(trial: Trial, tier: str, what: str, wrong: dict[str, int], size: int, note: str) -> Row:
    errors = {name: float(count) for name, count in wrong.items()}
    return Row(NAME, trial.case.name, what, tier, "exact", errors, size=size, note=note)
