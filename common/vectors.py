"""Test vectors: what the oracle says about a case, as files that need neither framework to read.

`<case>.json` holds the recipe (config, shapes, seeds, sampling, training) and the hash of `<case>.safetensors`, whose
tensors are inputs (`input/…`), weights (`weight/…`, float32) and expected values (`expected/…`, float64).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common import params
from common.cases import Case
from common.compare import difference
from common.config import Execution, dumps, model_to_dict
from common.errors import UserError
from common.files import replacing, write_text

SCHEMA = "parallax-vectors/1"
FOLDER = Path(__file__).parents[1] / "tests" / "vectors"
REGENERATED = 1e-13  # NumPy's own functions may differ by an ulp between machines; 500 roundings of float64
STORED_POSITIONS = 8  # of a long sequence, only the last positions' logits are kept
DROPOUT_STEP = 3


def build(case: Case) -> dict[str, np.ndarray]:
    """All arrays of a case: inputs, weights and what the oracle computes from them."""
    from common.oracle.backend import backend as oracle

    weights = case.weights()
    out = {f"weight/{name}": value for name, value in weights.items()}
    model = oracle.build(case.config, weights, Execution(dtype="float64"))
    if case.path:
        x, cotangent = case.signals()
        output, gradients = model.component(case.path, x, cotangent)
        out |= {"input/x": x, "input/cotangent": cotangent, "expected/output": output}
        return out | {f"expected/grad/{name}": g for name, g in gradients.grads.items()}
    ids, targets = case.tokens()
    forward = model.forward(ids)
    out |= {"input/ids": ids, "expected/logits": forward.logits[:, -STORED_POSITIONS:]}
    out |= {"input/targets": getattr(targets, "labels", targets)}
    if case.preference is not None:
        out["input/reference"] = targets.reference
    if case.full_gradient:
        gradients = model.gradients(ids, targets, dropout=(case.seed, DROPOUT_STEP))
        out["expected/loss"] = np.array(gradients.value)
        out |= {f"expected/grad/{name}": g for name, g in gradients.grads.items()}
    else:
        out["expected/loss"] = np.array(model.loss(ids, targets))
        out |= {
            f"input/direction/{n}": direction(case, p).astype(np.int8) for n, p in params.table(case.config).items()
        }
        out |= {f"expected/slope/{name}": np.array(s) for name, s in slopes(case, model).items()}
    for number, sampling in enumerate(case.sampling):
        out[f"expected/tokens/{number}"] = np.array(model.generate(case.prompts(), sampling), np.int32)
    if case.train_steps:
        model.start_training(case.train)
        results = [model.train_step(ids, targets) for _ in range(case.train_steps)]
        out["expected/train/losses"] = np.array([r.loss for r in results])
        out["expected/train/grad_norms"] = np.array([r.grad_norm for r in results])
        table = params.table(case.config)  # AdamW makes whole steps of a dead parameter's rounding noise: not stored
        kept = {name: value for name, value in model.weights().items() if not table[name].dead}
        out |= {f"expected/train/weight/{name}": value for name, value in kept.items()}
    return out


def direction(case: Case, parameter: params.Parameter) -> np.ndarray:
    """The random direction along which the oracle certifies a gradient: +1 or -1, float64, in the parameter's shape."""
    return np.where(params.draw(case.seed, f"direction/{parameter.name}", parameter.shape) < 0, -1.0, 1.0)


def slopes(case: Case, model) -> dict[str, float]:
    """The oracle's directional derivative of the loss for every parameter tensor, along `direction`."""
    from common.oracle.gradient import slope

    ids, targets = case.tokens()
    return {
        name: float(slope(lambda p: model.loss_of(p, ids, targets), model.params, {name: direction(case, parameter)}))
        for name, parameter in params.table(case.config).items()
    }


def write(case: Case, folder: Path) -> None:
    """Write a case's two files."""
    from safetensors.numpy import save_file

    arrays = {name: np.asarray(value, order="C") for name, value in build(case).items()}
    with replacing(folder / f"{case.name}.safetensors") as temporary:
        save_file(arrays, temporary)
    digest = hashlib.sha256((folder / f"{case.name}.safetensors").read_bytes()).hexdigest()
    write_text(folder / f"{case.name}.json", dumps({**describe(case), "sha256": digest}))


def describe(case: Case) -> dict:
    """The recipe of a case as plain data."""
    return {
        "schema": SCHEMA,
        "case": case.name,
        "what": case.what,
        "model": model_to_dict(case.config),
        "path": case.path,
        "batch": case.batch,
        "length": case.length,
        "seed": case.seed,
        "dropout": {"seed": case.seed, "step": DROPOUT_STEP} if case.config.has_dropout else None,
        "prompts": case.prompts() if case.sampling else [],
        "sampling": [sampling.to_dict() for sampling in case.sampling],
        "train": case.train.to_dict() if case.train_steps else None,
        **({} if case.preference is None else {"preference": case.preference.to_dict()}),
    }


def read(case: Case, folder: Path) -> dict[str, np.ndarray]:
    """A case's arrays from its files; damaged or outdated files are refused."""
    from safetensors.numpy import load

    recipe_path, data_path = folder / f"{case.name}.json", folder / f"{case.name}.safetensors"
    for path in (recipe_path, data_path):
        if not path.is_file():
            raise UserError(f"The vectors of case {case.name!r} lack {path.name}; write them with `make vectors`.")
    data = data_path.read_bytes()
    try:
        recipe = json.loads(recipe_path.read_text(encoding="utf-8"))
        digest = recipe.pop("sha256")
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{recipe_path.name} is damaged: {error}.") from error
    if digest != hashlib.sha256(data).hexdigest():
        raise UserError(f"{data_path.name} is damaged: its hash is not the one in {recipe_path.name}.")
    if recipe != json.loads(dumps(describe(case))):
        raise UserError(
            f"{recipe_path.name} was made for another definition of the case; write it with `make vectors`."
        )
    return load(data)


def stale(case: Case, folder: Path, fresh: Mapping[str, np.ndarray] | None = None) -> list[str]:
    """What the oracle now computes otherwise than the files say: inputs by the bit, expected values to 1e-13.

    `fresh` is what `build` gave, where that is known already.
    """
    stored, fresh = read(case, folder), build(case) if fresh is None else fresh
    faults = [f"{name} exists on one side only" for name in sorted(set(stored) ^ set(fresh))]
    for name in set(stored) & set(fresh):
        exact = not name.startswith("expected/") or stored[name].dtype.kind in "iu"
        if exact and not np.array_equal(stored[name], fresh[name]):
            faults.append(f"{name} differs")
        elif not exact and not _same(name, fresh[name], stored[name]):
            faults.append(f"{name} differs by more than {REGENERATED:g}")
    return faults


def _same(name: str, fresh: np.ndarray, stored: np.ndarray) -> bool:
    """Relative to the array, or absolutely where the truth is zero and only rounding is left (dead parameters)."""
    row = difference(name, fresh, stored)
    return row.relative <= REGENERATED or row.largest <= REGENERATED


def main() -> None:
    """Write the vectors of every case into the folder that is given (`make vectors`)."""
    import sys

    from common.cases import CASES
    from common.parity import edge_vectors

    for entry in CASES.values():
        write(entry, Path(sys.argv[1]))
        print(f"wrote {entry.name}")
    edge_vectors.write(Path(sys.argv[1]))
    print("wrote edges")


if __name__ == "__main__":
    main()
