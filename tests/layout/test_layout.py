"""What a layout is: how it is told, what it cuts, what it refuses; and the share of one device in closed form."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common import layout as layouts
from common import params
from common.adapters import Adapter
from common.config import Execution, GPTConfig, TrainConfig
from common.errors import UserError
from common.layout import Layout
from common.rng import address
from common.variants import GatedDeltaNet, GatedMLP, GroupedQuery, Latent, MixtureOfExperts, Sparse
from torch_impl import placing, rng

SMALL = GPTConfig(32, 16, 16, 2, 4, ff_dim=24)
BATCH = TrainConfig(batch_size=8)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("", (1, 1, 1)),
        ("data=2", (2, 1, 1)),
        (" tensor=4 , shard=2", (1, 2, 4)),
        ("data=2,shard=3,tensor=4", (2, 3, 4)),
    ],
)
def test_a_layout_is_told_by_its_axes(text, sizes):
    found = Layout.parse(text)
    assert found.sizes == sizes
    assert found.devices == np.prod(sizes)
    assert Layout.parse(str(found)) == found
    assert Execution(layout=text).spread == found
    assert Execution(layout=text).layout == str(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dta=2", "did you mean 'data'"),
        ("data", "gives data no number"),
        ("data=two", "gives data no number"),
        ("data=0", "gives data no number"),
        ("data=²", "gives data no number"),
        ("data=2,,tensor=2", "axis of a layout"),
        (",", "axis of a layout"),
        ("data=2,data=3", "names data twice"),
    ],
)
def test_what_is_no_layout_is_refused(text, words):
    with pytest.raises(UserError) as refused:
        Execution(layout=text)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "config", "words"),
    [
        ("data=3", SMALL, "8 windows of a batch cannot be dealt out equally to data x shard = 3"),
        ("data=4,shard=4", SMALL, "8 windows of a batch cannot be dealt out equally to data x shard = 16"),
        ("tensor=3", SMALL, "4 heads of layer 0 cannot be dealt out equally to tensor = 3"),
        ("tensor=4", SMALL.with_(attention=(GroupedQuery(2),)), "2 heads of keys of layer 0 cannot be dealt out"),
        ("tensor=16", SMALL.with_(attention=(Latent(rank=4),)), "24 hidden units of layer 0 cannot be dealt out"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_numbers(text, config, words):
    with pytest.raises(UserError) as refused:
        Layout.parse(text).check(config, BATCH)
    assert words in str(refused.value)


def test_tensor_parallelism_cuts_what_makes_heads_by_rows_and_what_puts_them_together_by_columns():
    found = layouts.splits(SMALL.with_(feed_forward=(GatedMLP(bias=True),)))
    layer = {name.removeprefix("model.layers.1."): axis for name, axis in found.items() if ".1." in name}
    assert layer == {
        **{f"self_attn.{name}_proj.{part}": 0 for name in "qkv" for part in ("weight", "bias")},
        "self_attn.o_proj.weight": 1,
        **{f"mlp.{name}_proj.{part}": 0 for name in ("gate", "up") for part in ("weight", "bias")},
        "mlp.down_proj.weight": 1,
    }
    shapes = {name: one.shape for name, one in params.table(SMALL).items()}
    layout = Layout.parse("shard=8,tensor=2")
    cut = {name: layouts.parts(layout, found.get(name), shape) for name, shape in shapes.items()}
    assert cut["model.layers.0.self_attn.q_proj.weight"] == ("tensor", "shard")
    assert cut["model.layers.0.self_attn.o_proj.weight"] == ("shard", "tensor")
    assert cut["model.layers.0.input_layernorm.weight"] == ("shard",)
    assert layouts.parts(Layout.parse("shard=5"), None, (3, 10)) == (None, "shard")
    assert layouts.parts(Layout.parse("shard=7"), None, (3, 10)) == (None, None)


def test_adapters_are_cut_as_the_maps_that_they_change():
    config = SMALL.with_(adapters=(Adapter(targets=("*_proj", "lm_head"), dora=True),), tie_embeddings=False)
    found = layouts.splits(config)
    layer = {name.removeprefix("model.layers.1."): axis for name, axis in found.items() if ".1." in name}
    assert {name: axis for name, axis in layer.items() if "lora" in name} == {
        **{
            f"{path}.{part}.default.weight": 0
            for path in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj")
            for part in ("lora_B", "lora_magnitude_vector")
        },
        **{f"{path}.lora_A.default.weight": 1 for path in ("self_attn.o_proj", "mlp.down_proj")},
    }
    assert not any("lm_head" in name for name in found)
    assert layouts.splits(config.with_(attention=(Latent(rank=8),), feed_forward=(MixtureOfExperts(4, 2),))) == {}


@pytest.mark.parametrize(
    "attention",
    [
        Latent(rank=4), GatedDeltaNet(), Sparse(2, top_k=4), GroupedQuery(2, sinks=True), GroupedQuery(2, alibi=True),
        GroupedQuery(2, qk_norm="width"),
    ],
)  # fmt: skip
def test_layers_that_need_all_heads_are_whole_everywhere(attention):
    config = SMALL.with_(attention=(attention,), feed_forward=(MixtureOfExperts(4, 2, expert_dim=8),))
    assert layouts.splits(config) == {}
    Layout(tensor=3).check(config)


@pytest.mark.parametrize(("rows", "first"), [(2, 0), (3, 2), (1, 7)])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (700, 131)])
def test_rows_of_a_larger_batch_draw_their_own_numbers(rows, first, shape):
    """Also far behind the first chunk of counters."""
    key = address(3, 1, 4)
    whole = rng.bernoulli(key, 0.7, (8, *shape))
    part = rng.bernoulli(rng.Part(key, first), 0.7, (rows, *shape))
    torch.testing.assert_close(part, whole[first : first + rows])
    other = rng.fold_in(rng.Part(key, first), 9)
    torch.testing.assert_close(
        rng.uniform(other, (rows, *shape)), rng.uniform(rng.fold_in(key, 9), (8, *shape))[first:][:rows]
    )


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "are no numbers"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "process 2 of 2"),
    ],
)
def test_an_environment_that_tells_nonsense_is_refused(env, words):
    with pytest.raises(UserError, match=words):
        layouts.processes(env)


def test_the_environment_tells_which_process_this_is(monkeypatch):
    assert (layouts.processes({}), layouts.leads({}), layouts.restarted({})) == ((0, 1), True, False)
    second = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "TORCHELASTIC_RESTART_COUNT": "1"}
    assert (layouts.processes(second), layouts.leads(second), layouts.restarted(second)) == ((1, 2), False, True)
    assert (layouts.neighbours({}), layouts.neighbours(second)) == (1, 2)
    assert [layouts.neighbours({**second, "LOCAL_WORLD_SIZE": told}) for told in ("1", "3", "x")] == [1, 2, 2]
    assert layouts.device_of("cuda", "torch", second) == "cuda:1"
    assert [layouts.device_of("cuda", "jax", second), layouts.device_of("cpu", "torch", second)] == ["cuda", "cpu"]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="none of them is told a --layout"):
        layouts.check_processes(Layout())
    layouts.check_processes(Layout(data=2))


def failing(words):
    raise UserError(words)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [(lambda: failing("Too long."), UserError, "Too long"), (lambda: 1 / 0, ZeroDivisionError, "division by")],
)
def test_what_the_leader_makes_reaches_all_and_so_does_its_failure(make, kind, words):
    """Nobody waits for a process that has failed."""
    told = []

    def leader(text):
        told.append(text)
        return text

    def follower(text):
        assert text == b""
        return told[-1]

    assert layouts.by_leader(True, leader, lambda: [[1, None], []]) == [[1, None], []]
    assert layouts.by_leader(False, follower, lambda: failing("It is not asked.")) == [[1, None], []]
    with pytest.raises(kind, match=words):
        layouts.by_leader(True, leader, make)
    with pytest.raises(UserError, match=words):
        layouts.by_leader(False, follower, make)


@pytest.mark.parametrize("port", ["abc", "0", "65535", "70000", ""])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(UserError, match="MASTER_PORT of the environment"):
        layouts.address({"MASTER_PORT": port})
    assert layouts.address({}) == ("127.0.0.1", 29500)


def test_a_cpu_plays_as_many_devices_for_jax_as_the_layout_has():
    flag = "--xla_force_host_platform_device_count"
    eight = Layout(2, 2, 2)
    assert layouts.environment({}, "jax", "cpu", eight) == {"XLA_FLAGS": f"{flag}=8"}
    assert layouts.environment({"WORLD_SIZE": "2", "XLA_FLAGS": "--a"}, "jax", "cpu", eight) == {
        "XLA_FLAGS": f"--a {flag}=4"
    }
    for own, backend, device, layout in (
        ({"XLA_FLAGS": f"{flag}=3"}, "jax", "cpu", eight),
        ({}, "torch", "cpu", eight),
        ({}, "jax", "cuda", eight),
        ({}, "jax", "cpu", Layout()),
    ):
        assert layouts.environment(own, backend, device, layout) == {}


@pytest.mark.parametrize("first", [0, 3])
def test_processes_draw_the_masks_of_their_own_heads(first):
    """Of rows from the first one here on, what one process would draw for all heads of all rows."""
    words, shape = address(3, 1), (5, 6, 4, 7)
    whole = rng.bernoulli(words, 0.7, shape)[first : first + 2]
    for process in range(3):
        mesh = SimpleNamespace(size=lambda: 3, get_local_rank=lambda process=process: process)
        key = placing.Heads(rng.Part(words, first) if first else words, mesh)
        found = rng.bernoulli(key, 0.7, (2, 2, *shape[2:]))
        assert torch.equal(found, whole[:, 2 * process : 2 * process + 2])
        later = rng.bernoulli(rng.fold_in(key, 4), 0.7, (2, 2, *shape[2:]))
        assert torch.equal(
            later, rng.bernoulli(rng.fold_in(words, 4), 0.7, shape)[first : first + 2][:, 2 * process :][:, :2]
        )
