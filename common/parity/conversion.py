"""C0: the same weights in every implementation and every file, by the byte; none is unread, none takes another's place.

Three things are tried on every case. The names and shapes that a framework holds are those of the parameter table.
Weights with awkward values come back byte for byte from one implementation, from one after the other, and through every
file format. And noise added to one tensor moves the outputs of all implementations by the same amount. Adapters are
also merged, taken out again and switched off.
"""

import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from common import backend as door
from common import params
from common.backend import Model
from common.compare import rms
from common.config import PRECISIONS
from common.errors import UserError
from common.parity import adapted
from common.parity import rows as table
from common.parity.rows import Exhibit, Row
from common.parity.trial import Session, Trial
from common.weights import checkpoint, huggingface, safetensors_io

NAME = "C0"
TITLE = "conversion"
SENTENCE = (
    "Weights pass between PyTorch, JAX and files without the change of a byte, and noise in any tensor moves the"
    " outputs of all implementations by the same amount."
)
Weights = Mapping[str, np.ndarray]
ROUND_TRIPS = ("float32", "float64", "bfloat16")  # the precision policies; the last keeps parameters in float32
NOISE = 0.5  # standard deviation of the noise: as large as the weights themselves, so that no difference cancels
POSITIONS = 32  # of a long case: the last ones, which are enough to read every tensor
MOVES = 1e-6  # of the outputs: a live parameter moves them by more; measured: 2e-2 and more, rounding 1e-15


def for_case(trial: Trial) -> Iterator[Row | Exhibit]:
    """Names and shapes, round trips, noise, adapters."""
    if trial.session.wants("exact"):
        yield _shapes(trial)
        for tier in ROUND_TRIPS:
            yield _round_trip(trial, tier)
        with tempfile.TemporaryDirectory() as folder:
            for name in _formats(trial):
                yield _through_files(trial, name, Path(folder) / name.replace(" ", "-"))
            if _has_huggingface_form(trial):
                yield _fused(trial, Path(folder) / "fused")
    if trial.session.wants("float64"):
        yield from _moved(trial)
        yield from adapted.rows(trial)


def declared(trial: Trial) -> set[tuple[str, str]]:
    """What `for_case` must yield, from the config, the parameter table and the session."""
    out: set[tuple[str, str]] = set()
    if trial.session.wants("exact"):
        out |= {("names and shapes", "exact"), *((f"round trip/{tier}", "exact") for tier in ROUND_TRIPS)}
        out |= {(f"round trip/{name}", "exact") for name in _formats(trial)}
        out |= {("order of q, k, v", "exact")} if _has_huggingface_form(trial) else set()
    if trial.session.wants("float64"):
        out |= {(f"noise/{name}", "float64") for name in _used(trial)} | adapted.declared(trial)
    return out


def once(session: Session) -> Iterator[Row | Exhibit]:
    """Nothing: every comparison belongs to a case."""
    yield from ()


def declared_once(session: Session) -> set[tuple[str, str]]:
    """Nothing."""
    return set()


def awkward(trial: Trial, dtype: str) -> dict[str, np.ndarray]:
    """Weights that use every bit of their dtype, with -0, the smallest subnormal and the largest number in each tensor.

    Only their bytes are looked at. The weights of a case would hide a cast: bfloat16 represents them exactly.
    """
    kind = np.finfo(dtype)
    special = np.array([-0.0, kind.smallest_subnormal, -kind.max, kind.tiny], dtype)
    out = {}
    for name, parameter in params.table(trial.case.config).items():
        out[name] = params.draw(trial.case.seed, f"awkward/{name}", parameter.shape).astype(dtype)
        places = out[name].reshape(-1)[:: max(1, parameter.size // 4)]
        places[:] = special[: places.size] if places.size <= 4 else np.resize(special, places.size)
    return out


def digest(array: np.ndarray) -> str:
    """SHA-256 of shape, dtype and the little-endian bytes in C order: a view in another order has the same."""
    array = np.asarray(array)
    data = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    return hashlib.sha256(f"{array.shape}{array.dtype.name}".encode() + data.tobytes()).hexdigest()


def changed(got: Weights, want: Weights) -> list[str]:
    """The names on one side only, and those whose bytes differ."""
    wrong = set(got) ^ set(want)
    return sorted(wrong | {name for name in set(got) & set(want) if digest(got[name]) != digest(want[name])})


def _shapes(trial: Trial) -> Row:
    want = {name: parameter.shape for name, parameter in params.table(trial.case.config).items()}
    wrong, faults = {}, []
    for name, model in trial.each("float32").items():
        held = {key: tuple(shape) for key, shape in model.state_shapes().items()}
        differing = sorted(key for key in set(held) | set(want) if held.get(key) != want.get(key))
        wrong[name] = len(differing)
        faults += [f"{name}: {key}" for key in differing[:3]]
    return table.exact(NAME, trial.case.name, "names and shapes", wrong, size=len(want), note="; ".join(faults))


def _chains(trial: Trial) -> list[tuple[str, ...]]:
    """Every implementation alone, and every one followed by every other."""
    return [(name,) for name in trial.names] + list(itertools.permutations(trial.names, 2))


def _through(trial: Trial, chain: tuple[str, ...], weights: Weights, tier: str) -> Weights:
    """Weights after they were put into one implementation after the other, and taken out of each."""
    for name in chain:
        weights = trial.build(name, tier, weights).weights()
    return weights


def _round_trip(trial: Trial, tier: str) -> Row:
    given = awkward(trial, PRECISIONS[tier].param)
    wrong = {chain: changed(_through(trial, chain, given, tier), given) for chain in _chains(trial)}
    return _counted(trial, f"round trip/{tier}", wrong, len(given))


def _counted(trial: Trial, what: str, wrong: Mapping[tuple[str, ...], list[str]], size: int) -> Row:
    counts = {"/".join(chain): len(names) for chain, names in wrong.items()}
    note = "; ".join(f"{'/'.join(chain)}: {', '.join(names[:3])}" for chain, names in wrong.items() if names)
    return table.exact(NAME, trial.case.name, what, counts, size=size, note=note)


def _formats(trial: Trial) -> dict[str, tuple[Callable, Callable]]:
    """(write(path, weights), read(path) -> weights) of every file format that can hold this model, by name."""
    config = trial.case.config
    found: dict[str, tuple[Callable, Callable]] = {
        "checkpoint": (
            lambda path, weights: checkpoint.save_checkpoint(path, config, weights),
            lambda path: checkpoint.load_checkpoint(path).weights,
        )
    }
    if _has_huggingface_form(trial):
        found["hugging face folder"] = (
            lambda path, weights: huggingface.write_hf(path, config, weights),
            lambda path: huggingface.read_hf(path)[1],
        )
    if config.adapters:
        found["adapters of PEFT"] = (
            lambda path, weights: adapted.write(path, config, weights),
            lambda path: adapted.read(path, config),
        )
    for name, subject in trial.session.subjects.items():
        if hasattr(subject, "write_state_dict") and hasattr(subject, "read_state_dict"):
            found[f"state dict of {name}"] = (subject.write_state_dict, subject.read_state_dict)
    return found


def _has_huggingface_form(trial: Trial) -> bool:
    """Whether transformers' config can say what this config says; its classifiers have no bias, and ours have."""
    config = trial.case.config
    if config.num_labels is not None:
        return False
    try:
        return huggingface.config_from_dict(huggingface.config_to_dict(config, "float32"), "config.json") == config
    except (UserError, KeyError, AttributeError):  # another family, or an option that GPT-2 has not
        return False


def _through_files(trial: Trial, name: str, place: Path) -> Row:
    """File, one implementation after the other, file: the tensors are the same, and so are the bytes of the files."""
    write, read = _formats(trial)[name]
    given = awkward(trial, "float32")
    first = place.with_name(f"{place.name}-0")
    write(first, given)
    wrong = {}
    for number, chain in enumerate(_chains(trial), 1):
        got = _through(trial, chain, read(first), "float32")
        again = place.with_name(f"{place.name}-{number}")
        write(again, {key: got[key] for key in given if key in got})
        wrong[chain] = changed(got, given) + changed(_files(again), _files(first))
    return _counted(trial, f"round trip/{name}", wrong, len(given))


def _fused(trial: Trial, place: Path) -> Row:
    """GPT-2's own layout, which a round trip cannot see: c_attn is [in, out], the columns of q, then k, then v."""
    given = awkward(trial, "float32")
    huggingface.write_hf(place, trial.case.config, given)
    written = safetensors_io.open_folder(place)
    wrong = 0
    for layer in range(trial.case.config.num_layers):
        own = [given[f"model.layers.{layer}.self_attn.{name}_proj.weight"].T for name in "qkv"]
        wrong += digest(np.concatenate(own, 1)) != digest(written[f"transformer.h.{layer}.attn.c_attn.weight"].read())
    return table.exact(NAME, trial.case.name, "order of q, k, v", {"file": wrong}, size=trial.case.config.num_layers)


def _files(path: Path) -> dict[str, np.ndarray]:
    """The bytes of a file, or of every file of a folder, by name."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {file.name if path.is_dir() else "file": np.fromfile(file, np.uint8) for file in found if file.is_file()}


def _used(trial: Trial) -> list[str]:
    """The parameters that take part in the case."""
    prefix = f"{trial.case.path}." if trial.case.path else ""
    return [name for name in params.table(trial.case.config) if name.startswith(prefix)]


def _moved(trial: Trial) -> Iterator[Row]:
    """Outputs after noise in one tensor, minus outputs before; an idle tensor must leave the outputs as they are."""
    case, truth = trial.case, trial.truth
    before = {name: _output(trial, model) for name, model in trial.each().items()}
    true_before = truth.once("conversion/before", lambda: _true_output(trial, truth.model))
    for name in _used(trial):
        weights = noisy(trial, name)
        want = truth.once(
            f"conversion/{name}", lambda w=weights: _true_output(trial, truth.build(weights=w)) - true_before
        )
        after = {wing: _output(trial, trial.build(wing, "float64", weights)) for wing in trial.names}
        if truth.idle(name):
            note, got, expected = "dead: the outputs stay as they are", after, true_before
        else:
            note, got, expected = "", {wing: _minus(after[wing], before[wing]) for wing in after}, want
        row = table.arrays(NAME, case.name, f"noise/{name}", "float64", "float64", got, expected, note=note)
        if not truth.idle(name) and rms(want) < MOVES * rms(true_before):
            row = _unread(row)
        yield row


def _minus(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The difference, or no number where the shapes differ, which fails."""
    return after - before if after.shape == before.shape else np.array(np.nan)


def _unread(row: Row) -> Row:
    note = "noise in this tensor changes nothing, and the table does not say that it is dead"
    return Row(row.claim, row.case, row.what, row.tier, row.rule, {"numpy": np.inf}, size=row.size, note=note)


def noisy(trial: Trial, name: str) -> dict[str, np.ndarray]:
    """The case's weights with noise in one tensor, keyed by its name: no two tensors get the same."""
    weights = trial.case.weights()
    noise = params.draw(trial.case.seed, f"noise/{name}", weights[name].shape)
    return {**weights, name: weights[name] + (NOISE * noise).astype(np.float32)}


def _output(trial: Trial, model: Model) -> np.ndarray:
    """The component's output, or the logits."""
    if trial.case.path:
        return model.component(trial.case.path, *trial.case.signals())[0]
    return model.forward(*_ids(trial)).logits


def _true_output(trial: Trial, model: Model) -> np.ndarray:
    """The same of the oracle, without the gradient, which costs it a pass for every number."""
    if not trial.case.path:
        return model.forward(*_ids(trial)).logits
    x = trial.case.signals()[0].astype(np.float64)
    positions = np.arange(x.shape[1], dtype=np.int32)[None]
    return door.call(model.net.at(trial.case.path).__call__, x, positions)


def _ids(trial: Trial) -> tuple[np.ndarray, np.ndarray | None]:
    """(ids, positions) of a model case."""
    ids, _ = trial.case.tokens()
    if trial.case.length <= POSITIONS:
        return ids, None
    ids = ids[:, -POSITIONS:]
    return ids, np.broadcast_to(np.arange(trial.case.length - POSITIONS, trial.case.length), ids.shape)
