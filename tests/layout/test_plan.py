"""What `parallax plan` says: shares of memory and FLOPs by closed form, and what XLA plans for named devices."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common import layout as layouts
from common import nf4, params
from common.accounting import activations, flops, memory, spread
from common.adapters import Adapter
from common.config import GPTConfig, TrainConfig, model_to_dict, preset
from common.errors import UserError
from common.layout import Layout
from common.variants import Latent, MixtureOfExperts

ROOT = Path(__file__).parents[2]
plan = importlib.import_module("common.commands.plan")
SMALL = GPTConfig(32, 16, 16, 2, 4, ff_dim=24)
BATCH = TrainConfig(batch_size=8)
TUNED = SMALL.with_(adapters=(Adapter(targets=("*_proj",), rank=4),), tie_embeddings=False)


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


LARGE = {"num_layers": 96, "embed_dim": 12288, "num_heads": 96, "ff_dim": 49152, "context_length": 2048}
PLAN_LARGE = [
    "plan", "gpt2-1558m", *(word for name, value in LARGE.items() for word in ("--set", f"{name}={value}")),
    "--layout", "shard=64,tensor=8", "--batch-size", "512", "--dtype", "bfloat16",
]  # fmt: skip


def test_a_model_of_174_billion_parameters_is_planned(call):
    """In closed form: shares of parameters, gradients and averages, and the FLOPs of 6 N T with those of attention."""
    code, out, err = call(*PLAN_LARGE)
    assert code == 0, err
    assert "174,604,259,328 parameters; 1,048,576 tokens a step" in out
    config = preset("gpt2-1558m").with_(**LARGE)
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


@pytest.mark.full
def test_a_model_of_174_billion_parameters_is_compiled_for_512_named_devices():
    """What XLA needs in each is more than its shares of parameters, gradients and averages, and less than half of what
    blocks would keep that are not checkpointed; what these multiply again comes to its products."""
    out = named_devices(512, "-m", "common.cli", *PLAN_LARGE, "--compiled", "--layers", "checkpointed")
    (planned,), (multiplied,) = (map(float, column(out, title).values()) for title in ("XLA's plan", "XLA's FLOPs"))
    config, layout = preset("gpt2-1558m").with_(**LARGE), Layout.parse("shard=64,tensor=8")
    own = spread.share(config, layout, TrainConfig(batch_size=512), 2048, "bfloat16")
    assert (own.parameters + own.gradients + own.optimizer) / 1e9 < planned < own.total / 2e9
    assert 1 < multiplied / own.flops < 4 / 3


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
