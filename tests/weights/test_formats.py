"""detect, load and convert: every pair of forms, and targets that must not be harmed."""

import itertools
import tracemalloc

import numpy as np
import pytest

from common import params
from common.config import GPTConfig
from common.errors import UserError
from common.weights import gpt2_names, safetensors_io
from common.weights.checkpoint import save_checkpoint
from common.weights.formats import TARGETS, convert, detect, load

FORMS = {"hf": "a", "parallax": "b", "safetensors": "c.safetensors", "pth": "d.pth"}


@pytest.mark.parametrize("tie", [True, False])
def test_every_pair_of_forms(tie, tiny, tmp_path, same):
    config = tiny.with_(tie_embeddings=tie)
    weights = params.randomise(config, 2)
    save_checkpoint(tmp_path / "start", config, weights)
    for one, other in itertools.product(FORMS, FORMS):
        first, second = tmp_path / "1" / FORMS[one], tmp_path / "2" / FORMS[other]
        convert(tmp_path / "start", first, to=one)
        assert detect(first) == one
        convert(first, second, to=other, heads=3 if one in ("safetensors", "pth") else None, tie=tie)
        found = load(second, heads=3, tie=tie)
        assert found.kind == other
        assert found.config == config
        assert same(found.weights, weights)
    assert set(FORMS) == set(TARGETS)


def test_suffixes_choose_the_form(tiny, weights, tmp_path):
    save_checkpoint(tmp_path / "start", tiny, weights)
    for name, kind in (
        ("x.pth", "pth"),
        ("x.pt", "pth"),
        ("x.safetensors", "safetensors"),
        ("x", "hf"),
        ("v1.5", "hf"),
    ):
        assert detect(convert(tmp_path / "start", tmp_path / name)) == kind


@pytest.mark.parametrize("names", ["canonical", "hf", "hf_bare", "book"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_names_for_files(names, suffix, tiny, weights, tmp_path, same):
    save_checkpoint(tmp_path / "start", tiny, weights)
    path = convert(tmp_path / "start", tmp_path / f"x{suffix}", names=names)
    assert same(load(path, heads=3, tie=True).weights, weights)


def test_a_model_without_biases_goes_where_it_can(tiny, tmp_path, same, refused):
    config = tiny.with_(qkv_bias=False, tie_embeddings=False)
    weights = params.randomise(config, 1)
    save_checkpoint(tmp_path / "start", config, weights)
    convert(tmp_path / "start", tmp_path / "x.pth")
    found = load(tmp_path / "x.pth", heads=3)
    assert found.config == config
    assert same(found.weights, weights)
    for target in ("x", "x.safetensors"):
        with refused("qkv_bias", "canonical"):
            convert(tmp_path / "start", tmp_path / target)
    convert(tmp_path / "start", tmp_path / "x.safetensors", names="canonical")
    assert load(tmp_path / "x.safetensors", heads=3).config == config


def test_files_without_a_telling_suffix_are_known_by_their_start(tiny, weights, tmp_path, refused):
    save_checkpoint(tmp_path / "start", tiny, weights)
    for name, kind in (("x.pth", "pth"), ("x.safetensors", "safetensors")):
        (tmp_path / "blob").write_bytes(convert(tmp_path / "start", tmp_path / name).read_bytes())
        assert detect(tmp_path / "blob") == kind
    (tmp_path / "blob").write_text("Every effort moves you")
    with refused("neither"):
        detect(tmp_path / "blob")


def test_what_is_no_weights_at_all(tmp_path, refused):
    with refused("There is nothing at"):
        detect(tmp_path / "nowhere")
    with refused("no folder of weights"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with refused("config.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with refused("config.json"):
        load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with refused("give the folder"):
        load(tmp_path / "model.safetensors.index.json")


def test_foreign_tensors_in_a_bare_file(tmp_path, refused):
    from common.weights.stored import in_memory

    safetensors_io.write_file(tmp_path / "x.safetensors", {"layer.weight": in_memory(np.zeros((2, 2)))})
    with refused("no token embedding", "layer.weight"):
        load(tmp_path / "x.safetensors")
    for tensors in (
        {"tok_emb.weight": (3, 2)},
        {"tok_emb.weight": (3,), "pos_emb.weight": (3, 2)},
        {"tok_emb.weight": (3, 2), "pos_emb.weight": (3, 2)},
        {"tok_emb.weight": (3, 2), "pos_emb.weight": (3, 2), "trf_blocks.0.norm1.scale": (2,)},
        {"tok_emb.weight": (3, 2), "pos_emb.weight": (3, 2), "trf_blocks.999999999.ff.layers.0.weight": (8, 2)},
        {"tok_emb.weight": (3, 0), "pos_emb.weight": (3, 2), "trf_blocks.0.ff.layers.0.weight": (8, 2)},
    ):
        made = {name: in_memory(np.zeros(shape, np.float32)) for name, shape in tensors.items()}
        safetensors_io.write_file(tmp_path / "x.safetensors", made)
        with refused():
            load(tmp_path / "x.safetensors", heads=1)


def test_misshapen_weights_are_refused_before_they_are_read(tiny, weights, tmp_path, refused):
    save_checkpoint(tmp_path / "start", tiny, weights)
    tensors = gpt2_names.from_canonical(gpt2_names.CANONICAL, tiny, weights)
    del tensors["model.norm.bias"]
    safetensors_io.write_file(tmp_path / "start" / "model.safetensors", tensors)
    with refused("model.norm.bias is missing"):
        load(tmp_path / "start")
    with refused("model.norm.bias is missing"):
        convert(tmp_path / "start", tmp_path / "x")
    assert [item.name for item in tmp_path.iterdir()] == ["start"]


def test_arguments_that_contradict(tiny, weights, tmp_path, refused):
    save_checkpoint(tmp_path / "start", tiny, weights)
    with refused("3 heads, not 4"):
        load(tmp_path / "start", heads=4)
    with refused("Unknown kind of target", "parallax"):
        convert(tmp_path / "start", tmp_path / "x", to="paralax")
    with refused("Unknown naming scheme", "book"):
        convert(tmp_path / "start", tmp_path / "x.pth", names="boook")
    with refused("always uses the names 'hf'"):
        convert(tmp_path / "start", tmp_path / "x", names="book")
    with refused("single file"):
        convert(tmp_path / "start", tmp_path / "x.pth", max_shard_bytes=1000)


def test_the_source_is_never_harmed(tiny, weights, tmp_path, refused, contents):
    save_checkpoint(tmp_path / "start", tiny, weights)
    before = contents(tmp_path / "start")
    inside = tmp_path / "start" / "model.safetensors"
    (tmp_path / "link").symlink_to(tmp_path / "start")
    (tmp_path / "hard.safetensors").hardlink_to(inside)
    for source, target in (
        ("start", "start"),
        ("start", "link"),
        ("link", "start"),
        ("start/model.safetensors", "start"),
        ("start/model.safetensors", "start/model.safetensors"),
        ("start/model.safetensors", "hard.safetensors"),
        ("start", "start/model.safetensors"),
        ("start", "start/../start"),
    ):
        with refused("give another target"):
            convert(tmp_path / source, tmp_path / target, to=None if "." in target else "parallax", heads=3)
        assert contents(tmp_path / "start") == before


def test_a_damaged_source_leaves_the_target_alone(tiny, weights, tmp_path, contents):
    save_checkpoint(tmp_path / "start", tiny, weights)
    convert(tmp_path / "start", tmp_path / "hf")
    before = contents(tmp_path / "hf")
    path = tmp_path / "start" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError):
        convert(tmp_path / "start", tmp_path / "hf")
    assert contents(tmp_path / "hf") == before


BIG = GPTConfig(300, 64, 96, 12, 4)


@pytest.mark.parametrize(
    ("source", "target", "share"),
    [
        ("hf", "parallax", 0.4),
        ("parallax", "hf", 0.4),
        ("safetensors", "safetensors", 0.4),
        ("pth", "hf", 0.4),
        ("hf", "pth", 1.3),  # PyTorch's writer needs every tensor at once: one copy, never two
    ],
)
def test_converting_never_holds_a_second_copy(source, target, share, tmp_path):
    total = params.count(BIG) * 4
    save_checkpoint(tmp_path / "start", BIG, params.randomise(BIG, 0))
    one, other = tmp_path / "1" / FORMS[source], tmp_path / "2" / FORMS[target]
    convert(tmp_path / "start", one, to=source)
    convert(one, other, to=target, heads=4)  # imports and caches are not what is measured
    tracemalloc.start()
    convert(one, other, to=target, heads=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < share * total, f"{peak / total:.2f} of the weights"


def test_loading_reads_nothing_until_asked(tmp_path):
    total = params.count(BIG) * 4
    save_checkpoint(tmp_path / "start", BIG, params.randomise(BIG, 0))
    convert(tmp_path / "start", tmp_path / "hf")
    load(tmp_path / "hf")
    tracemalloc.start()
    weights = load(tmp_path / "hf").weights
    held = tracemalloc.get_traced_memory()[0]
    sizes = [weights[name].size for name in weights]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) == params.count(BIG)
    assert held < 0.1 * total
    assert peak < 0.2 * total
