"""From options to work: every input is read and checked here, before anything expensive begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.recipe import Recipe
from benchmarks.room import least, room
from common import backend, decoding, params
from common.accounting import flops
from common.commands import options
from common.config import DTYPES, Execution, ModelConfig, SamplingConfig, TrainConfig, mode, preset
from common.cores import usable_cores
from common.data import corpora, windows
from common.errors import UserError, unknown
from common.tokenizers import Tokenizer
from reports.compare.settings import Settings

LARGE = 20_000_000  # parameters from which the oracle can no longer look at everything
STEP_FLOPS, RUN_FLOPS, ORACLE_FLOPS = 2e10, 2e12, 2.5e11  # about 0.2 s, 20 s, 15 s on two cores
OPTIMIZER_FLOPS = 320  # AdamW moves 28 bytes for each parameter; as long as this many FLOPs take
MODEL_BYTES = 40  # for each parameter: weights, gradients and two averages in both wings, and what is copied between
PROMPT = "The following"
GPT2_TOKENS = 50257
NEW_TOKENS, NEW_TOKENS_QUICK = 64, 16

Batch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Plan:
    """All that will be done. Batches are (inputs [B, T], targets [B, T])."""

    settings: Settings
    config: ModelConfig
    recipe: Recipe
    tokenizer: Tokenizer
    train: TrainConfig
    batches: list[Batch]
    held_out: list[Batch]
    check: Batch
    slopes: list[str]
    prompt: list[int]
    sampling: dict[str, SamplingConfig]
    timed_sampling: SamplingConfig
    seconds_per_task: float
    about: dict[str, Any]
    skipped: list[dict[str, str]]

    @property
    def wings(self) -> tuple[str, str]:
        return self.settings.wings

    @property
    def threads(self) -> int:
        return self.settings.threads or len(usable_cores())

    @property
    def large(self) -> bool:
        return params.count(self.config) > LARGE

    def execution(self, wing: str, dtype: str | None = None) -> Execution:
        """How a wing runs; in float64 always plain and uncompiled, which is what the proof is about."""
        asked = self.settings
        if dtype == "float64" and asked.dtype != "float64":
            return Execution(dtype, asked.device, threads=self.threads)
        said = {"attention": asked.attention} if asked.attention else {}
        said |= {"compile": True} if asked.compile and wing == "torch" else {}
        fields = mode(asked.mode, wing) | said
        return Execution.from_dict(
            {"dtype": dtype or asked.dtype, "device": asked.device, "threads": self.threads, **fields}
        )

    def skip(self, what: str, reason: str) -> None:
        """Put on record what was not done."""
        self.skipped.append({"what": what, "reason": reason})


def make(settings: Settings) -> Plan:
    """Check every option and read every input. Raises UserError."""
    Execution(settings.dtype, settings.device, settings.attention or "plain", settings.compile, settings.threads)
    for wing in settings.wings:
        if mode(settings.mode, wing).get("rng") == "native":
            raise UserError("With native generators the wings draw other numbers: there is nothing to compare.")
    if settings.threads is not None and settings.threads > len(usable_cores()):
        raise UserError(f"{settings.threads} threads are asked for; this process may use {len(usable_cores())} cores.")
    if settings.device.partition(":")[0] not in ("cpu", "cuda"):
        raise unknown("device", settings.device, ("cpu", "cuda", "cuda:0"))
    for wing in settings.wings:
        if wing not in backend.names():
            raise unknown("backend", wing, backend.names())
    skipped: list[dict[str, str]] = []
    recipe = _recipe(settings)
    config = recipe.config
    _check_room(config)
    words = _tokenizer(settings, config)
    length = _length(settings, config)
    train = _train(settings, config, length)
    about, batches, held_out = _text(settings, words, length, train, skipped)
    prompt, sampling, timed = _sampling(settings, words, config)
    check, slopes = _checks(config, batches[0], settings.quick, skipped)
    about["check"] = {"sequences": check[0].shape[0], "length": check[0].shape[1], "slopes": slopes}
    _list_skipped(settings, config, skipped)
    return Plan(
        settings=settings,
        config=config,
        recipe=recipe,
        tokenizer=words,
        train=train,
        batches=batches,
        held_out=held_out,
        check=check,
        slopes=slopes,
        prompt=prompt,
        sampling=sampling,
        timed_sampling=timed,
        seconds_per_task=0.5 if settings.quick else 14.0,
        about=about,
        skipped=skipped,
    )


def _recipe(settings: Settings) -> Recipe:
    if settings.weights is not None:
        from common.weights import formats

        found = formats.load(settings.weights, heads=settings.heads)
        return Recipe("stored", found.config, path=str(settings.weights), heads=settings.heads)
    config = settings.model or preset(settings.preset)
    if settings.heads is not None:
        config = config.with_(num_heads=settings.heads)
    return Recipe("initial", config, settings.seed)


def _check_room(config: ModelConfig) -> None:
    need, (where, there) = params.count(config) * MODEL_BYTES, least(room("cpu"))
    if need > there:
        raise UserError(
            f"This model of {params.count(config):,} parameters needs about {need / 1e9:.1f} GB of memory in both wings"
            f" together, and {there / 1e9:.1f} GB are free{where}; choose a smaller model."
        )


def _tokenizer(settings: Settings, config: ModelConfig) -> Tokenizer:
    near = Path(settings.weights) if settings.weights else None
    vocab = Path(settings.vocab) if settings.vocab else None
    try:
        return options.tokenizer_for(settings.tokenizer, vocab, config.vocab_size, near)
    except UserError as error:
        if settings.tokenizer is None and vocab is None and config.vocab_size == GPT2_TOKENS:
            raise UserError(f"{error} Or read the text as bytes: --tokenizer bytes.") from error
        raise


def _length(settings: Settings, config: ModelConfig) -> int:
    if settings.length is None:
        return min(config.context_length, 64 if params.count(config) > LARGE else 128)
    if settings.length <= 0:
        raise UserError(f"The length is {settings.length}; allowed is a whole number > 0.")
    backend.check_length(settings.length, config)
    return settings.length


def _train(settings: Settings, config: ModelConfig, length: int) -> TrainConfig:
    """Batches of 8 where a step stays short, and as many steps (20 to 300) as a run of sensible length has room for."""
    cost = flops.flops_full(config, "train", 1, length)
    batch = settings.batch_size
    if batch is None:
        batch = 8 if 8 * cost <= STEP_FLOPS else 1
    steps = settings.steps
    if steps is None and settings.quick:
        steps = 6
    elif steps is None:
        steps = int(RUN_FLOPS / (max(batch, 1) * cost + OPTIMIZER_FLOPS * params.count(config)))
        steps = min(300, max(20, steps))
    rate = 1e-4 if settings.weights else 1e-3
    warm_up = min(20, max(steps, 0) // 10)
    return TrainConfig(steps, batch, learning_rate=rate, final_rate=rate / 10, warmup_steps=warm_up, seed=settings.seed)


def _text(
    settings: Settings, words: Tokenizer, length: int, train: TrainConfig, skipped: list
) -> tuple[dict[str, Any], list[Batch], list[Batch]]:
    corpus = corpora.corpus(settings.data)
    ids = words.encode(corpus.text)
    if ids.size <= length:
        raise UserError(
            f"Corpus {corpus.name!r} has {ids.size} tokens; a window of {length} and its next token need {length + 1}:"
            " use a longer text or a smaller --length."
        )
    kept, rest = ids, ids[:0]
    if ids.size >= 12 * (length + 1):
        kept, rest = corpora.split(ids)
    else:
        skipped.append({"what": "held-out loss", "reason": "the text is too short to keep a part of it back"})
    view = windows.Windows(kept, length)
    stream = windows.Batches(view, train.batch_size, seed=train.seed)
    batches = [tuple(array[0] for array in next(stream)) for _ in range(train.steps)]
    about = {
        "corpus": corpus.describe(),
        "tokenizer": words.describe(),
        "windows": view.describe(),
        "tokens_per_step": train.batch_size * length,
        "held_out_tokens": int(rest.size),
    }
    return about, batches, _held_out(rest, length, train.batch_size)


def _held_out(ids: np.ndarray, length: int, size: int) -> list[Batch]:
    """Up to four batches, spread evenly over the held-out part."""
    if ids.size <= length:
        return []
    view = windows.Windows(ids, length)
    count = min(4 * size, len(view) // size * size) or len(view)
    chosen = np.linspace(0, len(view) - 1, count).astype(int)
    return [view.gather(part) for part in np.array_split(chosen, max(1, count // size))]


def _sampling(settings: Settings, words: Tokenizer, config: ModelConfig) -> tuple[list[int], dict[str, SamplingConfig]]:
    ids = words.encode(PROMPT if settings.prompt is None else settings.prompt).tolist()
    if not ids:
        raise UserError("The prompt is empty; a model needs at least one token to continue.")
    new = min(NEW_TOKENS_QUICK if settings.quick else NEW_TOKENS, config.context_length - len(ids) + 1)
    if new < 1:
        raise UserError(
            f"The prompt has {len(ids)} tokens, but the context holds {config.context_length}; give a shorter prompt."
        )
    greedy = SamplingConfig(max_new_tokens=new, seed=settings.seed)
    decoding.crop_prompts([ids], greedy, config)
    timed = greedy.with_(max_new_tokens=min(new, 16)) if params.count(config) > LARGE else greedy
    return ids, {"greedy": greedy, "sampled": greedy.with_(temperature=0.8, top_k=40)}, timed


def _checks(config: ModelConfig, first: Batch, quick: bool, skipped: list) -> tuple[Batch, list[str]]:
    """What the agreement is tested on (the beginning of the first batch), and the tensors whose gradient the oracle
    checks: all of them where that is affordable, otherwise some of every kind."""
    large = params.count(config) > LARGE
    rows, length = (1, 32) if large else (2, 128)
    if quick:
        rows, length = min(rows, 2), min(length, 16)
    check = tuple(array[:rows, :length] for array in first)
    cost = 4 * flops.flops_full(config, "forward", *check[0].shape)  # complex arithmetic costs four times real
    names, most = list(params.table(config)), max(8, int(ORACLE_FLOPS / cost))
    if len(names) <= most:
        return check, names
    chosen = _some_of_every_kind(names, most)
    what = f"oracle's slope for {len(names) - len(chosen)} of {len(names)} tensors"
    skipped.append({"what": what, "reason": f"too costly at this size; checked are {', '.join(chosen)}"})
    return check, chosen


def _some_of_every_kind(names: Sequence[str], most: int) -> list[str]:
    """At most `most` names: of as many kinds (the name without its layer's number) as possible, from all layers."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(".".join("#" if part.isdigit() else part for part in name.split(".")), []).append(name)
    spread = [list(kinds.values())[i] for i in np.linspace(0, len(kinds) - 1, min(most, len(kinds))).astype(int)]
    picked: list[str] = []
    while len(picked) < most and any(spread):
        for number, group in enumerate(spread):
            if group and len(picked) < most:
                picked.append(group.pop(number % len(group)))
    return [name for name in names if name in picked]


def _list_skipped(settings: Settings, config: ModelConfig, skipped: list) -> None:
    if settings.attention in ("fused", "masked"):
        reason = "JAX's fused attention does not exist in float64; there the plain kernel is checked"
        skipped.append({"what": "float64 agreement of the fused kernel", "reason": reason})
    if settings.compile:
        reason = "PyTorch's compiler is checked in the precision that is trained; float64 runs eagerly"
        skipped.append({"what": "float64 agreement of compiled PyTorch", "reason": reason})
    changed = sorted({name for wing in settings.wings for name in mode(settings.mode, wing)})
    if changed:
        reason = f"the mode {settings.mode!r} is checked in the precision that is trained; float64 runs plainly"
        skipped.append({"what": f"float64 agreement of {', '.join(changed)}", "reason": reason})
    if settings.device == "cpu":
        skipped.append({"what": "GPU", "reason": "the device is the CPU (`--device cuda` runs on a GPU)"})


def gate_dtypes(plan: Plan) -> list[str]:
    """The precisions below float64 in which the wings must agree: float32, and the one that is trained."""
    return [name for name in DTYPES if name != "float64" and name in ("float32", plan.settings.dtype)]
