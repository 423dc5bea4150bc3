"""The adversarial vectors as files that need neither framework to read: `edges.json` and `edges.safetensors`.

The recipe names, for every edge, its flags, the reason, the result ("valid", "policy", "raises"), what is refused in
which words, the models, and every call in order. The weights of the first model of a config are the tensor
`base/<number>`, all parameters one after the other, whose names and shapes stand in the recipe; later models of that
config store only what differs, `<edge>/weight/<model>/<parameter>`. `<edge>/expected/<output>` is float64, or int32 for
tokens.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from common import backend as door
from common import params
from common.compare import difference
from common.config import Execution, ModelConfig, dumps, model_to_dict
from common.errors import UserError
from common.files import replacing, write_text
from common.parity.adversarial import EDGES, FLAGS, Edge
from common.parity.adversarial.edge import Outcome, Record
from common.vectors import REGENERATED, SCHEMA

RECIPE, DATA = "edges.json", "edges.safetensors"


def recorded(edge: Edge) -> tuple[Outcome, Record]:
    """What the oracle makes of an edge, and everything that was asked of it."""
    oracle, record = door.load("numpy"), Record()
    with np.errstate(all="ignore"):  # overflow and NaN are the point here
        out = edge.run(record.around(lambda c, w: oracle.build(c, w, Execution(dtype="float64"))))
    return out, record


def build() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(recipe as plain data, tensors) of all edges."""
    bases: dict[ModelConfig, tuple[int, dict]] = {}
    arrays: dict[str, np.ndarray] = {}
    tests = []
    for edge in EDGES.values():
        out, record = recorded(edge)
        test: dict[str, Any] = {"name": edge.name, "flags": list(edge.flags), "result": edge.result, "why": edge.why}
        test["models"] = [_model(edge, i, *model, bases, arrays) for i, model in enumerate(record.models)]
        test["calls"] = record.calls
        test["refused"] = {name: value for name, value in out.items() if isinstance(value, str)}
        test["expected"] = [name for name, value in out.items() if not isinstance(value, str)]
        arrays |= {f"{edge.name}/expected/{name}": _stored(out[name]) for name in test["expected"]}
        tests.append(test)
    recipe = {"schema": SCHEMA, "what": "adversarial vectors", "flags": FLAGS}
    recipe |= {"bases": [_base(config) for config in bases], "tests": tests}
    return json.loads(dumps(recipe)), arrays


def _base(config: ModelConfig) -> dict[str, Any]:
    """A config, and the parameters of its base in order."""
    return {"config": model_to_dict(config), "parameters": {n: list(p.shape) for n, p in params.table(config).items()}}


def _model(edge: Edge, number: int, config: ModelConfig, weights: dict, bases: dict, arrays: dict) -> dict[str, Any]:
    """A model of an edge: the number of its base, and the parameters that differ from it (stored on their own)."""
    if config not in bases:
        bases[config] = len(bases), weights
        flat = [np.asarray(weights[name], np.float32).ravel() for name in params.table(config)]
        arrays[f"base/{bases[config][0]}"] = np.concatenate(flat)
    base = bases[config][1]
    changed = [name for name, w in weights.items() if not np.array_equal(w, base[name], equal_nan=True)]
    arrays |= {f"{edge.name}/weight/{number}/{name}": np.asarray(weights[name], np.float32) for name in changed}
    return {"base": bases[config][0], "changed": changed}


def _stored(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.int32 if array.dtype.kind in "iu" else np.float64)


def write(folder: Path) -> None:
    """Write the two files."""
    from safetensors.numpy import save_file

    recipe, arrays = build()
    with replacing(folder / DATA) as temporary:
        save_file({name: np.asarray(value, order="C") for name, value in arrays.items()}, temporary)
    digest = hashlib.sha256((folder / DATA).read_bytes()).hexdigest()
    text = json.dumps({**recipe, "sha256": digest}, separators=(",", ":")).replace('{"name":', '\n{"name":') + "\n"
    write_text(folder / RECIPE, text)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(recipe, tensors) from the files; damaged ones are refused."""
    from safetensors.numpy import load

    for name in (RECIPE, DATA):
        if not (folder / name).is_file():
            raise UserError(f"The adversarial vectors lack {name}; write them with `make vectors`.")
    data = (folder / DATA).read_bytes()
    try:
        recipe = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        digest = recipe.pop("sha256")
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{RECIPE} is damaged: {error}.") from error
    if digest != hashlib.sha256(data).hexdigest():
        raise UserError(f"{DATA} is damaged: its hash is not the one in {RECIPE}.")
    return recipe, load(data)


def stale(folder: Path) -> list[str]:
    """What is now otherwise than the files say: recipes and weights by the bit, expected values to 1e-13."""
    (recipe, stored), (fresh_recipe, fresh) = read(folder), build()
    faults = [f"{name} exists on one side only" for name in sorted(set(stored) ^ set(fresh))]
    tests, fresh_tests = ({test["name"]: test for test in r["tests"]} for r in (recipe, fresh_recipe))
    faults += [f"the recipe of {n!r} differs" for n in fresh_tests if tests.get(n) != fresh_tests[n]]
    if {**recipe, "tests": []} != {**fresh_recipe, "tests": []}:
        faults.append("the head of the recipe differs")
    return faults + [f"{name} differs" for name in set(stored) & set(fresh) if not _same(stored[name], fresh[name])]


def _same(stored: np.ndarray, fresh: np.ndarray) -> bool:
    if stored.dtype != np.float64:
        return stored.dtype == fresh.dtype and np.array_equal(stored, fresh, equal_nan=stored.dtype.kind == "f")
    try:
        return difference("", fresh, stored).relative <= REGENERATED
    except ValueError:
        return False
