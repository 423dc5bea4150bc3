"""The parameter table: counts of all presets without allocating them, initial values, and the list of faults."""

import numpy as np
import pytest

from common import params
from common.accounting import memory
from common.config import GPTConfig, preset
from common.errors import UserError

CONFIG = GPTConfig(31, 8, 16, 2, 2)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2-124m", 124_439_808),
        ("gpt2-355m", 354_823_168),
        ("gpt2-774m", 774_030_080),
        ("gpt2-1558m", 1_557_611_200),
        ("book-124m", 163_009_536),
        ("book-355m", 406_212_608),
        ("book-774m", 838_220_800),
        ("book-1558m", 1_637_792_000),
    ],
)
def test_published_counts(name, count):
    assert params.count(preset(name)) == count


@pytest.mark.parametrize(
    ("name", "count"),
    [("book-124m", 124_412_160), ("book-355m", 354_749_440), ("book-774m", 773_891_840), ("book-1558m", 1_557_380_800)],
)
def test_published_counts_without_the_head(name, count):
    table = params.table(preset(name))
    assert params.count(preset(name)) - table["lm_head.weight"].size == count


@pytest.mark.parametrize(
    ("name", "size"), [("book-124m", 621.83), ("book-355m", 1549.58), ("book-774m", 3197.56), ("book-1558m", 6247.68)]
)
def test_published_sizes_in_float32(name, size):
    """F-054, F-057: what the book calls MB are 2^20 bytes."""
    assert round(memory.weights(preset(name)) / 2**20, 2) == size


def test_parts_of_the_book():
    """One attention module and one feed-forward of the 124M model."""
    table = params.table(preset("book-124m"))
    for part, size in {"self_attn": 2_360_064, "mlp": 4_722_432}.items():
        assert sum(p.size for name, p in table.items() if name.startswith(f"model.layers.0.{part}.")) == size


def test_matrices_decay_and_vectors_do_not():
    for name, parameter in params.table(CONFIG).items():
        assert parameter.decays == (len(parameter.shape) == 2), name
        assert parameter.dead == name.endswith("k_proj.bias"), name
    assert "lm_head.weight" not in params.table(CONFIG)


def test_all_faults_are_listed_in_one_error():
    shapes = {name: parameter.shape for name, parameter in params.table(CONFIG).items()}
    shapes["model.norm.bias"] = (17,)
    shapes["extra"] = (1,)
    del shapes["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(UserError) as told:
        params.check(CONFIG, shapes, "The file")
    for fault in (
        "model.layers.1.mlp.up_proj.weight is missing",
        "extra is not part of the model",
        "model.norm.bias has shape [17], expected [16]",
    ):
        assert fault in str(told.value)


@pytest.mark.parametrize("backend_name", ["numpy", "torch", "jax"])
def test_building_refuses_wrong_weights(backend_name):
    from common import backend
    from common.config import Execution

    good = dict(params.randomise(CONFIG, 0))
    build = backend.load(backend_name).build
    execution = Execution(dtype="float64")
    with pytest.raises(UserError, match=r"model\.norm\.weight is missing"):
        build(CONFIG, {n: w for n, w in good.items() if n != "model.norm.weight"}, execution)
    with pytest.raises(UserError, match="extra is not part"):
        build(CONFIG, {**good, "extra": np.zeros(1)}, execution)
    with pytest.raises(UserError, match=r"model\.norm\.weight has shape \[3\], expected \[16\]"):
        build(CONFIG, {**good, "model.norm.weight": np.zeros(3)}, execution)


def test_weights_for_tests_randomise_everything_and_fit_bfloat16():
    import ml_dtypes

    for name, value in params.randomise(CONFIG, 0).items():
        assert value.std() > 0.05, name
        assert np.array_equal(value, value.astype(ml_dtypes.bfloat16).astype(np.float32)), name
