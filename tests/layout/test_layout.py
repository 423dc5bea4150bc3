"""What a layout is: how it is told, what it cuts, what it refuses; and the share of one device in closed form."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common import layout as layouts
from common import nf4, params
from common.accounting import activations, flops, memory, spread
from common.adapters import Adapter
from common.config import Execution, GPTConfig, TrainConfig, model_to_dict, preset
from common.errors import UserError
from common.layout import Layout
from common.rng import address
from common.variants import GatedDeltaNet, GatedMLP, GroupedQuery, Latent, MixtureOfExperts, Sparse
from torch_impl import placing, rng

ROOT = Path(__file__).parents[2]
plan = importlib.import_module("common.commands.plan")
SMALL = GPTConfig(32, 16, 16, 2, 4, ff_dim=24)
BATCH = TrainConfig(batch_size=8)
TUNED = SMALL.with_(adapters=(Adapter(targets=("*_proj",), rank=4),), tie_embeddings=False)


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


def test_one_device_holds_and_computes_everything():
    train = TrainConfig(batch_size=4, accumulate=3)
    found = spread.share(SMALL, Layout(), train, 16, "float32")
    assert found.parameters == found.gradients == memory.weights(SMALL)
    assert found.optimizer == memory.optimizer_slots(SMALL)
    assert found.gathered == 0
    assert found.activations == sum(activations.saved(SMALL, 4, 16, dropout=True).values())
    assert found.flops == flops.flops_full(SMALL, "train", 12, 16)
    assert found.total == found.parameters * 4 + found.activations


def test_shards_of_a_base_in_4_bits_are_shares_of_its_bits():
    """Adapters learn; `data` and `tensor` leave the bits whole."""
    plain, one = (spread.share(TUNED, Layout(), BATCH, 16, "float32", base=base) for base in ("plain", "nf4"))
    small = [params.table(TUNED)[name].size for name in nf4.names(TUNED)]
    bits = sum(memory.matrix(size, "nf4") for size in small)
    assert one.gathered - plain.gathered == 2 * 4 * max(small)
    assert one.parameters == memory.base(TUNED, "float32", "nf4") == plain.parameters - 4 * sum(small) + bits
    shard = spread.share(TUNED, Layout(shard=2), BATCH, 16, "float32", base="nf4")
    assert shard.parameters * 2 == one.parameters
    assert spread.share(TUNED, Layout(data=4), BATCH, 16, "float32", base="nf4").parameters == one.parameters
    cut = sum(params.table(TUNED)[name].size for name in layouts.splits(TUNED) if name not in nf4.names(TUNED))
    tensor = spread.share(TUNED, Layout(tensor=2), BATCH, 16, "float32", base="nf4")
    assert one.parameters - tensor.parameters == cut // 2 * 4
    with pytest.raises(UserError, match="in 4 bits, which cannot be trained"):
        spread.share(SMALL, Layout(), BATCH, 16, "float32", base="nf4")


def test_shares_add_up():
    """What is cut evenly is a part of the whole; what cannot be cut stays whole."""
    one = spread.share(SMALL, Layout(), BATCH, 16, "float32")
    data = spread.share(SMALL, Layout(data=4), BATCH, 16, "float32")
    assert (data.parameters, data.optimizer) == (one.parameters, one.optimizer)
    assert data.flops * 4 == one.flops
    assert data.activations == pytest.approx(one.activations / 4, rel=2e-2)  # masks are the same for all rows
    shard = spread.share(SMALL, Layout(shard=4), BATCH, 16, "float32")
    assert (shard.parameters * 4, shard.optimizer * 4) == (one.parameters, one.optimizer)
    assert shard.gathered > 0
    tensor = spread.share(SMALL, Layout(tensor=2), BATCH, 16, "float32")
    cut = sum(one.size for name, one in params.table(SMALL).items() if name in layouts.splits(SMALL))
    assert one.parameters - tensor.parameters == cut // 2 * 4
    layers = sum(
        flops.flops_full(SMALL, "train", 8, 16, path=f"model.layers.{i}.{part}")
        for i in range(2)
        for part in ("self_attn", "mlp")
    )
    assert one.flops - tensor.flops == layers // 2
    whole = SMALL.with_(attention=(Latent(rank=4),), feed_forward=(MixtureOfExperts(4, 2, expert_dim=8),))
    assert (
        spread.share(whole, Layout(tensor=2), BATCH, 16, "float32").flops
        == spread.share(whole, Layout(), BATCH, 16, "float32").flops
    )


def test_shares_of_adapters_add_up():
    """Before and behind a cut their matrices are whole, and so is what A gives B."""
    own = SMALL.with_(adapters=(Adapter(targets=("*.up_proj", "*.down_proj"), rank=4, dora=True),))
    one, tensor = (spread.share(own, layout, BATCH, 16, "float32") for layout in (Layout(), Layout(tensor=2)))
    cut = sum(one.size for name, one in params.table(own).items() if name in layouts.splits(own))
    assert one.parameters - tensor.parameters == cut // 2 * 4
    learnt = 2 * (24 * 4 + 24 + 4 * 24)  # of both layers: B and magnitudes of up, A of down
    assert one.gradients - tensor.gradients == learnt // 2 * 4
    plain = {"trained": params.trained(own, BATCH)}
    layers = [f"model.layers.{i}" for i in range(2)]

    def products(*paths):
        return sum(sum(flops.training(own, 8, 16, path=path, **plain).values()) for path in paths)

    whole = [f"{layer}.mlp.{part}.default" for layer in layers for part in ("up_proj.lora_A", "down_proj.lora_B")]
    dealt = products(*(f"{layer}.{part}" for layer in layers for part in ("self_attn", "mlp"))) - products(*whole)
    assert one.flops - tensor.flops == dealt // 2
    kept = [activations.saved(own, 8, 16, dropout=True, tensor=size)["adapters"] for size in (1, 2)]
    inner = 2 * 2 * 8 * 16 * 4 * 4  # A x of two maps in two layers, R = 4
    of_down = 2 * (3 * 16 + 2 * 8 * 16 * 16) * 4  # norms, gain, gain - 1, change and what is without a bias
    assert kept[0] - kept[1] == (kept[0] - inner - of_down) // 2


def test_all_layouts_of_some_devices_are_found_and_no_other():
    found = spread.layouts_of(SMALL, 4, TrainConfig(batch_size=2))
    assert sorted(map(str, found)) == ["data=2,tensor=2", "shard=2,tensor=2", "tensor=4"]
    assert spread.layouts_of(SMALL, 7, BATCH) == []


def test_the_plan_is_printed_for_every_layout(call):
    code, out, _ = call("plan", "nano", "--devices", 4, "--memory", 0.03)
    assert code == 0
    assert out.startswith("nano: 842,496 parameters; 1,024 tokens a step")
    lines = [
        line for line in out.splitlines() if "=" in line.split("  ")[0] or line.strip().startswith(("data", "shard"))
    ]
    assert len(lines) >= 4
    assert " yes" in out
    assert " no" in out
    assert "PyTorch fits" in out
    assert "JAX" not in out


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


def test_a_model_of_174_billion_parameters_is_planned(call):
    """In closed form: shares of parameters, gradients and averages, and the FLOPs of 6 N T with those of attention."""
    sizes = {"num_layers": 96, "embed_dim": 12288, "num_heads": 96, "ff_dim": 49152, "context_length": 2048}
    asked = [word for name, value in sizes.items() for word in ("--set", f"{name}={value}")]
    more = ["--layout", "shard=64,tensor=8", "--batch-size", 512, "--dtype", "bfloat16"]
    code, out, err = call("plan", "gpt2-1558m", *asked, *more)
    assert code == 0, err
    assert "174,604,259,328 parameters; 1,048,576 tokens a step" in out
    config = preset("gpt2-1558m").with_(**sizes)
    assert params.count(config) == 174_604_259_328
    own = sum(flops.training(config, 512, 2048).values()) / 512
    assert own == pytest.approx(6 * 174.6e9 * 2**20 / 512, rel=0.06)
    (row,) = (line for line in out.splitlines() if line.strip().startswith("shard=64,tensor=8"))
    kept = 174_604_259_328 * 4 / 512 / 1e9
    assert own < float(row.split()[-1]) < 1.05 * own  # tensor parallelism leaves embedding and head whole
    assert kept < float(row.split()[2]) < 1.05 * kept


def column(out, title):
    """A column of the plan's table by the layout of its row."""
    head, *rows = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines() if re.search(r"\S\s{2,}\S", line)]
    at = head.index(title)
    return {row[0]: row[at] for row in rows}


def test_what_fits_is_judged_for_each_framework_by_its_own_number(call, monkeypatch):
    """PyTorch by the closed form, JAX by XLA's plan; where there is none, nobody knows."""
    planned = {
        "data=2": {"planned": 10**6, "flops": None},
        "shard=2": {"planned": 10**9, "flops": 1.5e9},
        "tensor=2": None,
    }
    monkeypatch.setattr(plan, "_compiled", lambda *asked: planned)
    kept = {
        one: spread.share(preset("nano"), Layout.parse(one), TrainConfig(), 128, "float32").total for one in planned
    }
    between = (kept["data=2"] + kept["shard=2"]) / 2  # the first takes more of PyTorch
    assert kept["shard=2"] < between < kept["data=2"]
    code, out, _ = call("plan", "nano", "--devices", 2, "--compiled", "--memory", between / 1e9)
    assert code == 0
    assert column(out, "JAX fits") == {"data=2": "yes", "shard=2": "no", "tensor=2": "?"}
    fits = column(out, "PyTorch fits")
    assert (fits["data=2"], fits["shard=2"]) == ("no", "yes")
    assert column(out, "XLA's plan") == {"data=2": "0.001", "shard=2": "1.00", "tensor=2": "-"}
    assert column(out, "XLA's FLOPs") == {"data=2": "-", "shard=2": "1.5e+09", "tensor=2": "-"}


PLANS = """
import json, sys
from common import backend
from common.config import Execution, TrainConfig, model_from_dict
config, length, base, found = model_from_dict(json.loads(sys.argv[1])), int(sys.argv[2]), sys.argv[3], {}
for one in sys.argv[4:]:
    execution = Execution(layout=one, layers="scan" if base == "plain" else "loop", base=base)
    found[one] = backend.load("jax").plan(config, execution, TrainConfig(batch_size=8), length)
print(json.dumps(found))
"""


def named_devices(count, *arguments):
    """What a process prints for which the CPU plays so many devices."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
    words = [sys.executable, *map(str, arguments)]
    return subprocess.run(words, env=env, cwd=ROOT, check=True, timeout=300, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.full  # XLA compiles for four devices
@pytest.mark.parametrize(
    "layouts", [("shard=2,tensor=2",), pytest.param(("data=4", "shard=4", "data=2,tensor=2"), marks=pytest.mark.full)]
)
def test_a_compiled_plan_takes_what_the_layout_leaves_of_a_device(layouts):
    """Four named devices: the step's arguments are a device's parts of parameters and averages, and its rows of ids,
    as the closed form has them; what comes out takes their place, for they are donated."""
    found = json.loads(named_devices(4, "-c", PLANS, json.dumps(model_to_dict(SMALL)), 16, "plain", *layouts))
    for one in layouts:
        own, plan_of = spread.share(SMALL, Layout.parse(one), BATCH, 16, "float32"), found[one]
        held = own.parameters + own.optimizer
        ids = 2 * own.rows * 16 * 4
        assert 0 <= plan_of["arguments"] - held - ids <= 16 * 4 + 256, one  # positions, and a few numbers
        pointers = 8 * 3 * len(params.table(SMALL)) + 64  # of each array one; and a loss and a norm
        assert held <= plan_of["aliased"] <= plan_of["outputs"] <= held + pointers, one
        assert plan_of["planned"] >= held + ids + own.gradients // 2, one
        assert plan_of["flops"] == own.flops, one


@pytest.mark.full  # likewise
def test_a_compiled_plan_of_a_base_in_4_bits_takes_its_bits():
    """By a loop: a scan goes back through its first layer's maps, too, below which nothing learns."""
    one = "shard=2,tensor=2"
    found = json.loads(named_devices(4, "-c", PLANS, json.dumps(model_to_dict(TUNED)), 16, "nf4", one))[one]
    own = spread.share(TUNED, Layout.parse(one), BATCH, 16, "float32", base="nf4")
    held = own.parameters + own.optimizer + 2 * own.rows * 16 * 4
    assert 0 <= found["arguments"] - held <= 16 * 4 + 256
    assert found["flops"] == own.flops


@pytest.mark.full
def test_the_command_compiles_for_devices_that_are_only_named(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps(model_to_dict(SMALL)))
    asked = ["-m", "common.cli", "plan", "--config", tmp_path / "model.json", "--devices", 2, "--batch-size", 8]
    out = named_devices(2, *asked, "--compiled", "--memory", 1)
    assert set(column(out, "JAX fits").items()) == {("data=2", "yes"), ("shard=2", "yes"), ("tensor=2", "yes")}
    whole = json.loads(named_devices(2, "-c", PLANS, json.dumps(model_to_dict(SMALL)), 16, "plain", "data=2"))["data=2"]
    assert float(column(out, "XLA's plan")["data=2"]) == pytest.approx(whole["planned"] / 1e9, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nano", "--devices", 7), "No layout of 7 devices"),
        (("nano", "--devices", 0), "--devices is 0"),
        (("nano", "--layout", "data=3"), "cannot be dealt out equally"),
        (("nano", "--layout", "data=2", "--devices", 4), "has 2 devices, and --devices is 4"),
        (("nano", "--memory", 0), "--memory is 0"),
        (("nano", "--base", "nf4"), "in 4 bits, which cannot be trained"),
        (("nano", "--base", "nf5"), "did you mean 'nf4'"),
        (("nano", "--length", 4096), "this model has positions for 1 to"),
        (("nanu",), "did you mean 'nano'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_a_sentence(call, arguments, words):
    code, out, err = call("plan", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err
