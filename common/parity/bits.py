"""C1: what must be equal by the bit: random words and all that is made of them, token ids, batches, initial weights,
what weights in 4 bits are kept as.

The shared generator is the common ground: what NumPy draws is held against published answers, and what the frameworks
draw against NumPy. Masks are also looked at where a model applies them: an element that dropout zeroes has a gradient
of exactly zero, so the gradients of one row show which elements a wing kept.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from common import adapters, params, rng
from common.backend import Model
from common.cases import CASES, Case
from common.config import GPTConfig, ModelConfig, preset
from common.data.windows import Batches, Windows
from common.parity import four_bits, known, tuning
from common.parity import rows as table
from common.parity.known import sha256
from common.parity.rows import Exhibit, Row
from common.parity.trial import Session, Trial
from common.tokenizers import tokenizer
from common.variants import rotary

NAME = "C1"
TITLE = "exact bits"
SENTENCE = (
    "Random words, uniforms, dropout masks, split keys, token ids, batches of text, instructions and pairs, their"
    " order, initial weights and what 4 bits keep of weights are equal by the bit in NumPy, PyTorch and JAX."
)
TIER = "exact"
MASK_STEPS = (0, 1, 2, 7, 1000, 2**32 - 1)  # the training steps whose masks are looked at
ADAPTED = "gpt_lora"  # the case whose adapters are looked at in deeper models, too
DEEPER_SEED = 2  # by which nothing that an adapter reads is zero by itself: the tanh form of GELU underflows far below
MASK_DTYPE = "float32"  # C2 compares the losses and gradients under the same masks in float64

# (address, shape): no axis, none of its elements, odd sizes, and more than the 65,536 words that PyTorch draws at once.
DRAWS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((0,), ()),
    ((42,), (0,)),
    ((2**32 - 1, rng.SAMPLING, 2**32 - 1, 0), (7,)),
    ((9, rng.DROPOUT, 17, 3), (3, 5, 1, 2)),
    ((42, rng.DROPOUT, 2, 0, 1), (65_537,)),
    ((5, rng.DATA), (2, 3, 11_003)),
)
RATES = (1e-3, 0.1, 0.5, 0.9, 0.999)
SPLITS = (((5,), 1), ((42,), 2), ((2**32 - 1, 3), 301))


class Site(NamedTuple):
    """One dropout mask: address behind (seed, DROPOUT, step, micro), rate, shape, and the gradient that shows it."""

    layer: int
    site: int
    rate: float
    shape: tuple[int, ...]
    shown_by: str


def for_case(trial: Trial) -> Iterator[Row | Exhibit]:
    """Initial weights inside every wing, and the masks that it applies."""
    if not trial.session.wants(TIER):
        return
    if not trial.case.path:
        yield _initial(trial)
    if _has_masks(trial):
        yield _applied_masks(trial)


def declared(trial: Trial) -> set[tuple[str, str]]:
    """What `for_case` must yield."""
    if not trial.session.wants(TIER):
        return set()
    own = {("initial weights", TIER)} if not trial.case.path else set()
    return own | ({("masks in the model", TIER)} if _has_masks(trial) else set())


def once(session: Session) -> Iterator[Row | Exhibit]:
    """Known answers, draws, ids, batches, the initial weights of a preset."""
    if not session.wants(TIER):
        return
    yield _row("cipher", _cipher())
    yield _row("layout", {"numpy": _layout(), **{n: _layout_of(subject) for n, subject in session.subjects.items()}})
    yield from four_bits.exact(session)
    for what, draws in _draws().items():
        yield _drawn(session, what, draws)
    if not session.quick:
        yield _many_words(session)
    yield _row("token ids", _token_ids())
    yield _row("batches", _batches())
    yield _row("resumed batches", _resumed())
    yield _row("rotary pairs", _pairs())
    for what, wrong in tuning.counts().items():
        yield _row(what, wrong)
    yield _masks_of_adapters(session)
    yield _preset(session)


def declared_once(session: Session) -> set[tuple[str, str]]:
    """What `once` must yield."""
    if not session.wants(TIER):
        return set()
    names = [
        "cipher",
        "layout",
        *_draws(),
        "token ids",
        "batches",
        "resumed batches",
        "rotary pairs",
        *tuning.ROWS,
        *map(four_bits.what, four_bits.BASES),
        "masks of adapters",
        f"initial weights/{known.PRESET}",
    ]
    return {(name, TIER) for name in names + ([] if session.quick else ["many words"])}


def _row(what: str, wrong: int | Mapping[str, int], case: str = "", size: int = 1, note: str = "") -> Row:
    counts = wrong if isinstance(wrong, Mapping) else {"numpy": wrong}
    return table.exact(NAME, case, what, counts, size=size, note=note)


def _cipher() -> int:
    """How many of the published answers the cipher misses."""
    wrong = 0
    for key, counter, words in known.CIPHER:
        got = rng.threefry(np.array(key, np.uint32), *(np.array([c], np.uint32) for c in counter))
        wrong += tuple(int(word[0]) for word in got) != words
    return wrong


def _layout() -> int:
    """How many of the answers for seed 42 NumPy misses."""
    key = rng.key(42)
    found = tuple(rng.bits(key, (4,))), tuple(rng.split(key)[0]), tuple(rng.fold_in(key, 7))
    shape, start = known.MANY_WORDS
    wrong = sum(one != other for one, other in zip(found, (known.WORDS, known.SPLIT, known.FOLDED), strict=True))
    return wrong + (not sha256(rng.bits(key, shape)).startswith(start))


def _layout_of(subject) -> int:
    """The same of a framework; its folded key shows in the first word that it draws."""
    x, y = rng.threefry(np.array(known.FOLDED, np.uint32), np.zeros(1, np.uint32), np.zeros(1, np.uint32))
    found = (
        tuple(subject.draw("bits", (42,), (4,))) != known.WORDS,
        tuple(subject.draw("split", (42,), (2,))[0]) != known.SPLIT,
        int(subject.draw("bits", (42, 7), ())) != int((x ^ y)[0]),
    )
    return sum(found)


def _draws() -> dict[str, list[tuple]]:
    """(kind, address, shape, probability) of the draws of every row."""
    out: dict[str, list[tuple]] = {
        "words": [("bits", *draw, 0.5) for draw in DRAWS],
        "uniforms": [("uniform", *draw, 0.5) for draw in DRAWS],
        "split keys": [("split", address, (count,), 0.5) for address, count in SPLITS],
    }
    for number, rate in enumerate(RATES):
        address, shape = DRAWS[-1 - number % 3]
        out[f"masks/{rate:g}"] = [("bernoulli", (*address, number), shape, 1 - rate)]
    return out


def _drawn(session: Session, what: str, draws: list[tuple]) -> Row:
    """How many elements of these draws are not those of NumPy."""
    oracle = {
        "bits": lambda key, shape, _: rng.bits(key, shape),
        "uniform": lambda key, shape, _: rng.uniform(key, shape),
        "split": lambda key, shape, _: rng.split(key, *shape),
        "bernoulli": lambda key, shape, probability: rng.bernoulli(key, probability, shape),
    }
    wrong, size = dict.fromkeys(session.subjects, 0), 0
    for kind, address, shape, probability in draws:
        want = oracle[kind](rng.address(*address), shape, probability)
        size += want.size
        for name, subject in session.subjects.items():
            wrong[name] += table.unequal(subject.draw(kind, address, shape, probability), want)
    return _row(what, wrong, size=size)


def _many_words(session: Session) -> Row:
    shape, start = known.MANY_WORDS
    wrong = {n: not sha256(s.draw("bits", (42,), shape)).startswith(start) for n, s in session.subjects.items()}
    return _row("many words", wrong, size=int(np.prod(shape)))


def _token_ids() -> int:
    """The byte tokenizer: known ids, and the text comes back."""
    chosen = tokenizer("bytes")
    ids = chosen.encode(known.TEXT)
    everything = np.arange(256, dtype=np.int32)
    wrong = [sha256(ids) != known.IDS, ids.dtype != np.int32, chosen.decode(ids) != known.TEXT]
    return sum([*wrong, chosen.decode_bytes(everything) != bytes(range(256))])


def _stream() -> Batches:
    ids = rng.bits(rng.address(known.SEED, rng.DATA), (known.CORPUS,)) % 256
    windows = Windows(ids.astype(np.int32), known.LENGTH, known.STRIDE)
    return Batches(windows, known.BATCH, seed=known.SEED, accumulate=known.ACCUMULATE)


def _batches() -> int:
    """Whether the first steps, three epochs of them, hash to something else than they always did."""
    stream = _stream()
    arrays = [array for _ in range(known.STEPS) for array in next(stream)]
    return sha256(*arrays) != known.BATCHES


def _resumed() -> int:
    """Steps that differ when the stream is taken up again from its recorded state, after any number of steps."""
    straight = [next(stream) for stream in [_stream()] for _ in range(known.STEPS)]
    wrong, first = 0, _stream()
    for step in range(known.STEPS):
        second = Batches.resume(_stream().windows, first.state())
        wrong += any(table.unequal(a, b) for a, b in zip(next(second), straight[step], strict=True))
        next(first)
    return wrong


def _pairs() -> int:
    """How many conversions between the two layouts of rotary pairs give other rows."""
    wrong = 0
    for (rows, *sizes), order in known.PAIRS:
        weight = np.arange(rows)
        halves = rotary.interleaved_to_halves(weight, *sizes)
        wrong += tuple(halves) != order
        wrong += not np.array_equal(rotary.halves_to_interleaved(halves, *sizes), weight)
    return wrong


def _preset(session: Session) -> Row:
    """Initial weights of a preset: known, and what arrives in every wing."""
    config = preset(known.PRESET)
    weights = dict(params.initialise(config, known.SEEDS[0]))
    drawn = [params.initialise(config, seed) for seed in known.SEEDS]
    parts = [part for one in drawn for name in params.table(config) for part in (name, one[name])]
    wrong = {"numpy": int(sha256(*parts) != known.INITIAL)}
    for name, subject in session.subjects.items():
        model = subject.build(config, weights, session.execution(name, "float32"))
        wrong[name] = table.differing(model.weights(), weights)
    return _row(f"initial weights/{known.PRESET}", wrong, size=params.count(config))


def _initial(trial: Trial) -> Row:
    """The initial weights of the case's config, made by name, as they arrive in every wing."""
    weights = params.initialise(trial.case.config, trial.case.seed)
    wrong = {n: table.differing(trial.build(n, "float32", weights).weights(), weights) for n in trial.names}
    return _row("initial weights", wrong, trial.case.name, params.count(trial.case.config))


def _gpt_sites(config: GPTConfig) -> list[Site]:
    """Of a text of one token: a parameter that is added where a mask cuts has a zero gradient exactly where it cuts;
    of one that multiplies what a mask cuts, columns are zero."""
    embed, heads = config.embed_dim, config.num_heads
    table = params.table(config)
    sites = [Site(0, 0, config.dropout_embed, (1, 1, embed), "model.embed_positions.weight")]
    for index in range(config.num_layers):
        layer = f"model.layers.{index}"
        sites.append(Site(index + 1, 1, config.dropout_shortcut, (1, 1, embed), f"{layer}.self_attn.o_proj.bias"))
        sites.append(Site(index + 1, 2, config.dropout_shortcut, (1, 1, embed), f"{layer}.mlp.down_proj.bias"))
        if values := config.attention_of(index).values(config):
            shown_by = f"{layer}.self_attn.{values}.weight"
            sites.append(Site(index + 1, 0, config.dropout_attn, (1, heads, 1, 1), shown_by))
    for path, adapter, _, inputs, address in adapters.placed(config):
        layer = int(path.split(".")[2]) + 1 if path.startswith("model.layers.") else 0
        shown_by = f"{path}.lora_A.{adapter.name}.weight"
        if not path.endswith(("q_proj", "k_proj")):  # a single key is seen whatever the query is
            sites.append(Site(layer, address, adapter.dropout, (1, 1, inputs), shown_by))
    return [site for site in sites if site.rate and site.shown_by in table]


SITES = {"gpt": _gpt_sites}  # by family; C2 compares what comes of the masks for those that are not here


def _has_masks(trial: Trial) -> bool:
    config: ModelConfig = trial.case.config
    return not trial.case.path and config.has_dropout and config.family in SITES


def _applied_masks(trial: Trial) -> Row:
    """Elements that a wing keeps and the shared mask does not, or the other way round."""
    return _masked("masks in the model", trial.case, trial.each(MASK_DTYPE))


def _masks_of_adapters(session: Session) -> Row:
    """The same of two blocks with equal adapters, which draw from keys of their own."""
    case = CASES[ADAPTED]
    deeper = replace(case, name="", config=case.config.with_(num_layers=2), seed=DEEPER_SEED)
    weights = deeper.weights()
    models = {
        name: subject.build(deeper.config, weights, session.execution(name, MASK_DTYPE))
        for name, subject in session.subjects.items()
    }
    return _masked("masks of adapters", deeper, models)


def _masked(what: str, case: Case, models: Mapping[str, Model]) -> Row:
    config, seed = case.config, case.seed
    ids, _ = case.tokens()
    wrong, faults, size = dict.fromkeys(models, 0), {}, 0
    for step in MASK_STEPS:
        masks = _masks(SITES[config.family](config), seed, step)
        size += sum(mask.size for mask in masks.values())
        for name, model in models.items():
            grads = model.gradients(ids[:1, :1], ids[:1, 1:2] % config.outputs, dropout=(seed, step)).grads
            for site, mask in masks.items():
                differing = int((kept(grads, site) != mask).sum())
                wrong[name] += differing
                if differing:
                    faults[f"{name}: layer {site.layer}, site {site.site}"] = differing
    return _row(what, wrong, case.name, size, "; ".join(list(faults)[:4]))


def _masks(sites: list[Site], seed: int, step: int) -> dict[Site, np.ndarray]:
    """The shared mask of every site. Attention weights behind a branch that is dropped whole show nothing: False."""
    found = {
        site: rng.bernoulli(rng.address(seed, rng.DROPOUT, step, 0, site.layer, site.site), 1 - site.rate, site.shape)
        for site in sites
    }
    branches = {site.layer: mask.any() for site, mask in found.items() if site.site == 1}
    return {site: mask & (branches.get(site.layer, True) if site.site == 0 else True) for site, mask in found.items()}


def kept(grads: Mapping[str, np.ndarray], site: Site) -> np.ndarray:
    """The mask that a gradient shows, in the mask's shape: where anything of an element's gradient is not zero."""
    gradient = grads[site.shown_by]
    if site.site >= adapters.SITES:
        gradient = gradient.T
    elif site.layer == 0:
        gradient = gradient[:1]  # the first position's row
    return (gradient.reshape(np.prod(site.shape), -1) != 0).any(-1).reshape(site.shape)
