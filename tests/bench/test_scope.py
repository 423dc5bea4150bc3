"""Which precisions and modes the suites take follows from what the device can multiply."""

import itertools
import math

import pytest

from benchmarks.harness import contenders, contest, gate, machine
from benchmarks.room import judges, need
from benchmarks.suites import DEFAULT, SUITES, Scope, ladder
from common import allocator
from common.weights import loading

KINDS = {"latent": ("continue", "absorbed"), "DeltaNet": ("forward", "chunked rule")}
CPUINFO = "processor\t: 0\nmodel name\t: A Processor\nflags\t\t: fpu {flags} sse\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {flags}\n"


@pytest.mark.parametrize("scope", [Scope(), Scope(quick=True), Scope(model="nano"), Scope("cuda", model="gpt2-355m")])
def test_no_two_cells_have_one_name(scope):
    named = [cell.name for suite in SUITES.values() for cell in suite(scope)]
    assert sorted(set(named)) == sorted(named)


@pytest.mark.parametrize("scope", [Scope(), Scope(quick=True), Scope("cuda")])
def test_no_two_cells_of_a_run_have_one_title(scope):
    """By which is told what had no time, and which memory was not measured."""
    titled = [cell.title for name in DEFAULT for cell in SUITES[name](scope)]
    assert sorted(set(titled)) == sorted(titled)
    assert not any("Dropout, dropout" in title for title in titled)


@pytest.mark.parametrize(
    ("told", "flags", "device", "modes", "large"),
    [
        (CPUINFO, "avx2", "cpu", ("fast+wide",), ("float32",)),
        (CPUINFO, "avx2 avx512f avx512_bf16", "cpu", ("fast",), ("float32", "bfloat16")),
        (ARM, "bf16", "cpu", ("fast",), ("float32", "bfloat16")),
        (CPUINFO, "avx2", "cuda", ("fast",), ("float32", "bfloat16")),
        (None, "", "cpu", ("fast+wide",), ("float32",)),
    ],
)
def test_large_models_run_in_16_bits_where_the_device_multiplies_them(told, flags, device, modes, large, monkeypatch):
    monkeypatch.setattr(machine, "_read", lambda path: told and told.format(flags=flags))
    scope = Scope(device)
    assert (scope.narrow, scope.dtypes(scope.model)) == (modes, large)
    assert scope.dtypes(scope.small) == ("float32", "bfloat16")
    for suite in ("forward", "train"):
        narrow = [cell for cell in SUITES[suite](scope) if cell.dtype == "bfloat16" and cell.part != "as it is"]
        assert narrow
        for cell in narrow:
            fast = [one.mode for one in cell.contenders if one.wing == "torch" and one.mode.startswith("fast")]
            assert [mode for mode in fast if mode not in (*scope.flash, *scope.graphs)] == list(modes), cell.name


@pytest.mark.parametrize(("device", "dtypes"), [("cpu", set()), ("cuda", {"float32", "bfloat16"})])
def test_pytorchs_launches_are_recorded_on_a_gpu(device, dtypes):
    """Where JAX compiles a program: in forward passes, training steps and decoding, in both precisions."""
    for suite in ("forward", "train", "decode"):
        found = [
            (one, cell) for cell in SUITES[suite](Scope(device)) for one in cell.contenders if "graphs" in one.mode
        ]
        assert {(one.wing, one.mode) for one, _ in found} == ({("torch", "fast+graphs")} if dtypes else set()), suite
        assert {cell.dtype_of(one) for one, cell in found} == dtypes, suite
        assert all(one.options["graphs"] == "cuda" for one, _ in found)


@pytest.mark.parametrize(("device", "asked"), [("cpu", []), ("cuda", ["torch", "jax"]), ("cuda:1", ["torch", "jax"])])
def test_a_gpus_own_attention_is_asked_for_in_16_bits(device, asked):
    """In forward passes and training, of both wings, by a contender of its own; elsewhere nobody has it, but PyTorch's
    prefill in float32, which is otherwise slower than plain calls are."""
    for suite in ("forward", "train", "decode", "prefill", "loss"):
        for cell in SUITES[suite](Scope(device)):
            if (cell.dtype == "bfloat16" or not asked) and cell.part != "as it is":
                found = [one.wing for one in cell.contenders if one.mode == "fast+fused"]
                own = ["torch"] if suite == "prefill" and cell.dtype == "float32" else []
                assert found == (asked if suite in ("forward", "train") else own), cell.name


def choice(cell):
    return contest.choice(cell, [], lambda tokens: 0.0)[0]


def found(suite, device="cpu", flags="", monkeypatch=None, **options):
    monkeypatch.setattr(machine, "_read", lambda path: CPUINFO.format(flags=flags))
    return list(SUITES[suite](Scope(device, **options)))


@pytest.mark.parametrize(("device", "flags", "narrow"), [
    ("cpu", "avx2", ("fast+wide",)), ("cpu", "avx512_bf16", ("fast",)), ("cuda", "", ("fast",)),
])  # fmt: skip
def test_decoding_meets_itself_in_both_precisions(device, flags, narrow, monkeypatch):
    (cell,) = (cell for cell in found("decode", device, flags, monkeypatch) if cell.mixed)
    assert [(one.wing, one.mode, cell.dtype_of(one)) for one in cell.contenders] == [
        ("torch", "fast", "float32"),
        ("jax", "fast", "float32"),
        *(("torch", how, "bfloat16") for how in narrow),
        ("jax", "fast", "bfloat16"),
        *(("torch", "fast+graphs", own) for own in ("float32", "bfloat16") if device == "cuda"),
    ]
    assert (cell.model, cell.config.num_layers) == ("gpt2-124m", 12)
    assert cell.name.endswith("/both precisions")
    for one in cell.contenders:
        own = cell.dtype_of(one)
        assert choice(cell.of(one)).bound == 2 * gate.bounds(own, 12, 1)[1]
        assert (one.name in cell.line()["own"]) == (own == "bfloat16")
        if own == "bfloat16":
            assert (one.execution(cell.dtype, device, 1).dtype, cell.of(one).dtype) == ("bfloat16", "bfloat16")
            assert one.title.endswith(", bfloat16")
            assert cell.line()["own"][one.name]["bytes"] < 0.6 * cell.line()["bytes"]


@pytest.mark.parametrize(("device", "flags", "torch"), [
    ("cpu", "avx2", None),
    ("cpu", "avx512_bf16", ["default", "streamed", "wide"]),
    ("cuda", "", ["default", "streamed"]),
])  # fmt: skip
def test_what_streaming_alone_buys_in_decoding(device, flags, torch, monkeypatch):
    """In float32 by itself, and in the mode fast beside everybody else; in bfloat16 where the device multiplies it."""
    first, *_ = found("decode", device, flags, monkeypatch)
    assert {"torch", "torch fast"} < {one.name for one in first.contenders}
    cells = [cell for cell in found("ablation", device, flags, monkeypatch) if cell.task == "decode"]
    modes = {(cell.part, cell.dtype): [one.mode for one in cell.contenders] for cell in cells}
    due = {("torch", "bfloat16"): torch, ("jax", "bfloat16"): ["default", "streamed"]} if torch else {}
    assert modes == due | {(name, "float32"): ["default", "streamed"] for name in ("torch", "jax")}


def test_forms_of_kinds_meet_their_plain_ones(monkeypatch):
    """And neither stands alone: both wings, at the same work."""
    cells = {cell.model: cell for cell in found("ablation", monkeypatch=monkeypatch) if cell.model in KINDS}
    for name, (task, mode) in KINDS.items():
        assert cells[name].task == task
        modes = [(one.wing, one.mode) for one in cells[name].contenders]
        assert modes == [(wing, how) for wing in ("torch", "jax") for how in ("default", mode)]


def test_choosing_keys_meets_attention_to_all_of_them(monkeypatch):
    """Of as many heads, at texts far longer than what is chosen: fewer operations and bytes by the closed form."""
    cells = [cell for cell in found("ablation", monkeypatch=monkeypatch) if cell.model == "sparse"]
    assert [cell.length for cell in cells] == [1024, 4096]
    for cell in cells:
        lines = {one.name: {**cell.line(), **cell.line()["own"].get(one.name, {})} for one in cell.contenders}
        assert list(lines) == ["torch fast", "jax fast", "torch fast dense", "jax fast dense"]
        for who in ("torch", "jax"):
            some, dense = lines[f"{who} fast"], lines[f"{who} fast dense"]
            assert some["flops_full"] < dense["flops_full"]
            assert some["bytes"] < dense["bytes"]


@pytest.mark.parametrize("flags", ["avx2", "avx512_bf16"])
def test_decoding_over_contexts_and_batches_meets_transformers(flags, monkeypatch):
    swept = [cell for cell in found("decode", "cpu", flags, monkeypatch) if cell.axis]
    assert {cell.axis[0] for cell in swept} == {"context", "batch"}
    assert all("transformers" in [one.name for one in cell.contenders] for cell in swept)


@pytest.mark.parametrize("flags", ["avx2", "avx512_bf16"])
def test_prefill_meets_compiled_blocks_and_scans_in_every_precision_that_pays(flags, monkeypatch):
    cells = found("prefill", "cpu", flags, monkeypatch)
    assert [cell.dtype for cell in cells] == ["float32", "bfloat16"][: 2 if "bf16" in flags else 1]
    for cell, theirs in zip(cells, ("transformers", "transformers autocast"), strict=False):
        assert {"torch", "torch compiled", "jax", "jax scan", theirs} < {one.name for one in cell.contenders}


@pytest.mark.parametrize("suite", ["forward", "prefill", "train"])
def test_who_keeps_other_numbers_than_the_wings_is_not_timed_beside_them(suite, monkeypatch):
    """transformers in bfloat16 keeps parameters in it; by autocast it keeps float32, as the wings do."""
    for cell in found(suite, "cuda", monkeypatch=monkeypatch):
        theirs = {one.name for one in cell.contenders if one.wing == "transformers"}
        assert theirs == ({"transformers autocast" if cell.dtype == "bfloat16" else "transformers"} - absent(cell))


def absent(cell):
    """In cells of a large model's training that are for those who share its memory, `transformers` has no part."""
    return {"transformers", "transformers autocast"} if cell.suite == "train" and cell.part else set()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_training_a_large_model_meets_every_way_of_either_wing(device, monkeypatch):
    """Beside the fast modes: eager, compiled, loop and scan, and as few calls of the framework as do the work."""
    if device == "cpu":
        monkeypatch.setattr(allocator, "available", lambda: True)
    cells = [cell for cell in found("train", device, monkeypatch=monkeypatch) if cell.model == "gpt2-124m"]
    modes = {(cell.part, cell.dtype): [one.name for one in cell.contenders] for cell in cells}
    for dtype in {cell.dtype for cell in cells}:
        assert modes["as it is", dtype] == ["torch", "jax", "torch compiled", "jax scan"]
    best = {f"{name} {how}" for name, how in (("torch", "fast+fused+kept"), ("jax", "fast+kept"))}
    best = best if device == "cpu" else {"torch fast", "torch fast+graphs", "jax fast"}
    assert set(modes["lower bounds", "float32"]) == best | {"plain torch", "plain jax"}
    assert ("lower bounds", "bfloat16") not in modes
    (cell,) = (cell for cell in cells if cell.part == "lower bounds")
    allowed = {one.name: set(one.allowed) for one in cell.contenders if one.lower_bound}
    assert allowed == {"plain torch": {"grad_norm", "exp_avg"}, "plain jax": set()}  # clipping adds up 4e7 squares


def test_depth_is_measured_at_the_width_of_the_large_model(monkeypatch):
    cells = found("compile", monkeypatch=monkeypatch)
    large = [cell for cell in cells if cell.group == "gpt2-124m"]
    assert [cell.axis for cell in large] == [("layers", 12), ("layers", 48)]
    for cell in large:
        assert (cell.config.embed_dim, cell.config.num_heads, cell.config.ff_dim) == (768, 12, 3072)
        assert "jax scan" in [one.name for one in cell.contenders]
        assert need(cell) < 10e9
    assert {cell.axis[1] for cell in cells if cell.group == "nano"} == {2, 6, 12}


@pytest.mark.parametrize("quick", [True, False])
def test_cells_have_names_of_their_own(quick):
    names = [cell.name for suite in SUITES.values() for cell in suite(Scope(quick=quick))]
    assert len(set(names)) == len(names)


def stairs(scope, name):
    """The contenders of a ladder, each once, and the cells that they stand in, without those at twice the batch."""
    cells = [cell for cell in SUITES["ladder"](scope) if cell.part.partition(" ")[0] == name]
    cells = [cell for cell in cells if cell.batch == cells[0].batch]
    return list(dict.fromkeys(one for cell in cells for one in cell.contenders)), cells


@pytest.mark.parametrize("name", ["torch", "jax"])
@pytest.mark.parametrize(("free", "most"), [(78, 4), (139, 8), (400, 99), (40, 2), (1, 2)])
def test_on_a_gpu_a_large_ladder_has_the_whole_model_as_many_rungs_at_a_time_as_fit(name, free, most, monkeypatch):
    """All its layers, 4 × 1024 tokens, in that many GiB; each cell begins where the one before it ends."""
    monkeypatch.setattr(
        ladder, "room", lambda device: {"": 500 * 2**30, " in this container": None, device: free * 2**30}
    )
    rungs, cells = stairs(Scope("cuda"), name)
    for cell in cells:
        assert (cell.config.num_layers, cell.batch, cell.length, cell.model) == (12, 4, 1024, "gpt2-124m")
        assert len(cell.contenders) >= 2
        assert need(cell) < free * 2**30 or free == 1
    for before, after in itertools.pairwise(cells):
        assert before.contenders[-1] == after.contenders[0]
    assert len(cells) == math.ceil((len(rungs) - 1) / (most - 1))
    assert max(len(cell.contenders) for cell in cells) <= most
    twice = [cell for cell in SUITES["ladder"](Scope("cuda")) if cell.part == name]
    assert [cell.batch for cell in twice] == [8] * (free > 29)
    for cell in twice:
        assert cell.contenders == tuple(rungs[-len(cell.contenders) :])
        assert need(cell) < free * 2**30
        assert len(cell.contenders) == 3 or need(cell) * (1 + 1 / len(cell.contenders)) > 0.8 * free * 2**30
    assert stairs(Scope(), name)[1][0].config.num_layers == 3
    assert stairs(Scope("cuda", model="nano"), name)[1][0].contenders[0] == rungs[0]


@pytest.mark.parametrize("scope", [Scope(), Scope(quick=True), Scope("cuda")], ids=["cpu", "quick", "cuda"])
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_every_rung_of_the_ladder_is_one_thing_more(scope, name, monkeypatch):
    """Its fields of Execution, its model or its precision: one of them is another than on the rung before."""
    everybody, cells = stairs(scope, name)
    rungs = [one for one in everybody if "aside" not in one.name]
    told = [{**one.options, "model": one.config, "dtype": one.dtype} for one in rungs]
    for before, after in itertools.pairwise(told):
        own = {key for key in {*before, *after} if before.get(key) != after.get(key)}
        if after["dtype"]:  # 16 bits take the place of TF32, and are widened where nothing multiplies them
            own -= {"products"}
        assert len(own) == 1, (before, after)
    numbers = [int(one.name.split(":")[0].split()[1]) for one in rungs[1:]]
    assert numbers == list(range(1, len(rungs)))
    labels = [one.name.partition(": ")[2] for one in everybody]
    wanted = {
        "torch": ["PyTorch's GELU", "fused optimizer", "PyTorch's norm"],
        "jax": ["donated buffers", "JAX's GELU", "fused optimizer", "JAX's norm", "scan"],
    }[name]
    wanted += ["mask on the fly", "compiled", "fused attention", "checkpointed", "chunked loss", "bfloat16"]
    wanted += ["TF32"] if scope.device == "cuda" else []
    wanted += [] if scope.quick else ["padded vocabulary"]
    assert set(wanted) <= set(labels)
    assert ("TF32" in labels) == (scope.device == "cuda")
    monkeypatch.setattr(ladder, "room", lambda device: {device: 100 * 2**30})
    (twice,) = [one for one in SUITES["ladder"](scope) if one.part == name and one.batch == 2 * cells[0].batch]
    assert twice.contenders == tuple(everybody[-3:])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_attention_is_measured_at_the_books_size_too(device):
    """On a GPU beside the smaller one; on every device in parts, which a host's memory holds with their judge, each
    beside PyTorch's plain form, and nobody is in none of them."""
    sizes = {(cell.batch, cell.length) for cell in SUITES["attention"](Scope(device))}
    assert sizes == {(2, 512)} | ({(8, 1024)} if device == "cuda" else set())
    book = list(SUITES["attention-book"](Scope(device)))
    assert {(cell.batch, cell.length) for cell in book} == {(8, 1024)}
    for cell in SUITES["attention"](Scope(device)):
        parts = [one for one in book if (one.task, one.dtype) == (cell.task, cell.dtype)]
        assert len(parts) == 3
        assert all(one.contenders[0].name == "torch" and one.config == cell.config for one in parts)
        assert {one for part in parts for one in part.contenders} == set(cell.contenders)
    assert all(need(cell) < (16e9 if device == "cpu" else 20e9) and judges(cell) < 8e9 for cell in book)
    both = (cell for cell in book if cell.task == "gradients")
    assert all(judges(cell) > 3 * 8 * 8 * 12 * 1024**2 for cell in both)  # scores in float64, of which some are kept


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_weights_are_loaded_by_every_way_that_a_wing_has_there(device):
    """With the memory of each, in quick runs too; the wings' own way is the first."""
    (cell,) = SUITES["load"](Scope(device, quick=True))
    assert cell.memory
    ways = {name: [one for one in cell.contenders if one.wing == name] for name in ("torch", "jax")}
    assert [own[0].source for own in ways.values()] == ["torch", "jax"]
    kept = {("torch", "cpu"): 1}
    for name, own in ways.items():
        assert len(own) == len(loading.WAYS) - 1 + kept.get((name, device), 0)
        for one in own[1:]:
            wing = contenders.load(one.source)
            assert one.name == wing.name == f"{name} {wing.how}"
            assert wing.how in loading.WAYS
    with pytest.raises(AttributeError):
        contenders.load("benchmarks.outside.loading:torch all at last")
