"""`parallax estimate` as a person meets it: tables, files and plots of models nobody builds, and what is refused."""

import csv
import io
import json
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from xml.etree import ElementTree

import pytest

from common import cli, params
from common.accounting import activations, flops, memory
from common.config import COMPILED_KERNELS, model_to_dict, preset
from common.variants import GroupedQuery

POINT = EntryPoint("estimate", "reports.estimate.command:estimate", "parallax.commands")
GROUPS = "GQA: grouped_query num_kv_heads=4"
LOCAL = "local: 5*grouped_query num_kv_heads=4 window=1024 + grouped_query num_kv_heads=4"


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `parallax estimate …` in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(cli, "entry_points", lambda group: [POINT])

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["estimate", *map(str, arguments)])
        return stopped.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def rows(call):
    """rows(arguments …): the lines of the CSV as dictionaries, numbers as numbers."""

    def read(*arguments):
        code, out, err = call(*arguments, "--format", "csv")
        assert (code, err) == (0, "")
        found = list(csv.DictReader(io.StringIO(out)))
        return [{key: int(value) if value.isdecimal() else value for key, value in row.items()} for row in found]

    return read


def test_a_preset_is_what_the_closed_forms_say(rows):
    config = preset("gpt2-124m")
    (row,) = rows("gpt2-124m", "--batch", 4, "--dtype", "bfloat16")
    assert row == {
        "name": "gpt2-124m",
        "context": 1024,
        "batch": 4,
        "parameters": 124_439_808,
        "active": 124_439_808,
        "forward": flops.flops_full(config, "forward", 4, 1024),
        "forward_causal": flops.flops_causal(config, "forward", 4, 1024),
        "training": flops.flops_full(config, "train", 4, 1024),
        "training_causal": flops.flops_causal(config, "train", 4, 1024),
        "decode": flops.flops_full(config, "decode", 4, 1024),
        "decode_causal": flops.flops_causal(config, "decode", 4, 1024),
        "weights": 4 * 124_439_808,
        "state": 16 * 124_439_808,
        "kept": sum(activations.saved(config, 4, 1024, "bfloat16").values()),
        "cache": 2 * 4 * 1024 * 768 * 12 * 2,
        "states": 0,
        "moved": sum(memory.decode_bytes(config, 4, 1024, "bfloat16").values()),
        "dtype": "bfloat16",
        "attention": "plain",
    }


def test_a_kernel_of_multi_head_attention(rows):
    config = preset("book-124m")
    (plain,), (fused,) = rows("book-124m"), rows("book-124m", "--set", "dropout_attn=0", "--attention", "fused")
    assert plain["kept"] == sum(activations.saved(config, 1, 1024, dropout=True).values())
    config = config.with_(dropout_attn=0.0)
    assert fused["kept"] == sum(activations.saved(config, 1, 1024, attention="fused", dropout=True).values())
    assert fused["training"] == flops.flops_full(config, "train", 1, 1024, attention="fused")
    assert fused["forward"] == plain["forward"]


def test_sizes_are_a_grid(rows):
    found = rows("nano", "--context", "8:64:2", "--context", "48,16", "--batch", "1:9:3")
    contexts, batches = (8, 16, 32, 48, 64), (1, 3, 9)
    assert [(row["batch"], row["context"]) for row in found] == [(b, c) for b in batches for c in contexts]
    one = {(row["batch"], row["context"]): row for row in found}
    assert one[9, 64]["cache"] == 9 * 8 * one[1, 8]["cache"]
    assert one[9, 64]["forward"] == 9 * one[1, 64]["forward"]
    assert {row["parameters"] for row in found} == {params.count(preset("nano"))}


def test_variants_stand_beside_their_model(rows):
    found = rows("gpt2-124m", "--variant", GROUPS, "--variant", LOCAL, "--context", 4096)
    base, groups, local = found
    assert [row["name"] for row in found] == ["gpt2-124m", "GQA", "local"]
    assert groups["cache"] * 3 == base["cache"]
    assert local["cache"] * 12 == groups["cache"] * 2 + groups["cache"] * 10 // 4  # two layers see all, ten a quarter
    assert local["parameters"] == groups["parameters"] < base["parameters"]
    assert local["forward"] == groups["forward"]
    assert local["forward_causal"] < groups["forward_causal"]


def test_settings_reach_fields_of_model_pattern_and_settings(rows):
    said = ("attention=grouped_query", "attention.num_kv_heads=4", 'attention.rotary={"base":5e5}')
    said += ("attention.rotary.fraction=0.5", "embed_dim=1536")
    (row,) = rows("gpt2-124m", *(word for text in said for word in ("--set", text)))
    config = preset("gpt2-124m").with_(embed_dim=1536, ff_dim=6144)  # which follows
    entry = GroupedQuery(num_kv_heads=4, rotary={"base": 5e5, "fraction": 0.5})
    assert row["parameters"] == params.count(config.with_(attention=entry))
    (row,) = rows("gpt2-124m", "--set", "embed_dim=1536", "--set", "ff_dim=100", "--set", "tie_embeddings=false")
    assert row["parameters"] == params.count(config.with_(ff_dim=100, tie_embeddings=False))


def test_none_is_a_name_where_a_field_has_names_and_no_value_where_it_may_have_none(rows):
    said = ("positions=none", "ff_dim=none", "attention=grouped_query", "attention.qk_norm=none")
    said += ("attention.window=none", "attention.rotary.scaling=none", "attention.rotary.attention_factor=none")
    (row,) = rows("nano", *(word for text in said for word in ("--set", text)))
    config = preset("nano").with_(positions="none")
    assert row["parameters"] == params.count(config.with_(attention=GroupedQuery(rotary={})))
    told = "deaf: positions=none grouped_query rotary.base=5e5 rotary=none qk_norm=none + mixture_of_experts"
    _, row = rows("nano", "--variant", f"{told} expert_dim=none")
    config = config.with_(attention=GroupedQuery(), feed_forward="mixture_of_experts")
    assert row["parameters"] == params.count(config)


def test_published_estimates_of_latents(rows, call):
    """Raschka, *Build a Large Language Model (From Scratch)*, bonus material of chapter 4: 24 heads of 86 in a width of
    2048, that is, rounded up. In groups of 4 heads are 6 groups.
    """
    said = ("embed_dim=2048", "num_heads=24", "num_layers=48", "attention=grouped_query", "attention.num_kv_heads=24")
    asked = ["gpt2-124m", *(word for text in (*said, "attention.head_dim=86") for word in ("--set", text))]
    asked += ["--variant", "GQA: grouped_query num_kv_heads=6 head_dim=86"]
    asked += ["--variant", "MLA: latent rank=1024 head_dim=86", "--context", "8192", "--dtype", "bfloat16"]
    assert [f"{row['cache'] / 1e9:.2f}" for row in rows(*asked)] == ["3.25", "0.81", "0.81"]
    assert "| 805.3 MB | 4.03 × (75.19 %) |" in call(*asked, "--format", "markdown")[1]


def test_published_estimates_of_states(rows, call):
    """The same, which counts states in 2 bytes: 51.54, 0.025 and 12.90 GB. Two rows have twice as many."""
    said = ("embed_dim=2048", "num_heads=16", "num_layers=48")
    asked = ["gpt2-124m", *(word for text in said for word in ("--set", text))]
    asked += ["--variant", "DeltaNet: gated_deltanet kernel=1"]
    asked += ["--variant", "3 to 1: 3*gated_deltanet kernel=1 + multi_head"]
    asked += ["--context", "131072", "--batch", "2", "--dtype"]
    found = rows(*asked, "bfloat16")
    assert [f"{row['cache'] / 2e9:.3f}" for row in found] == ["51.540", "0.050", "12.923"]
    narrow = [(row["cache"] - row["states"] // 2) / 2e9 for row in found]
    assert [f"{narrow[0]:.2f}", f"{narrow[1]:.3f}", f"{narrow[2]:.2f}"] == ["51.54", "0.025", "12.90"]
    told = " ".join(call(*asked, "bfloat16")[1].split())
    for name, wide, small in (("DeltaNet", "50.33 MB", "25.17 MB"), ("3 to 1", "37.75 MB", "18.87 MB")):
        note = f"cache of {name}: of every row {wide} are states in float32, at any context"
        assert f"{note} (as published estimates count, in bfloat16, {small})." in told
        assert f"{note}." in " ".join(call(*asked, "float32")[1].split())
    assert "cache of gpt2-124m:" not in told


def test_fields_of_a_variant_come_before_its_kinds(rows):
    _, row = rows("nano", "--variant", "deep and gated: num_layers=6 activation=silu gated_mlp bias=true grouped_query")
    config = preset("nano").with_(num_layers=6, activation="silu")
    config = config.with_(feed_forward={"kind": "gated_mlp", "bias": True}, attention="grouped_query")
    assert row["name"] == "deep and gated"
    assert row["parameters"] == params.count(config)


def test_experts_that_match_a_dense_layer(rows, call):
    asked = ("gpt2-124m", "--set", "feed_forward=gated_mlp", "--set", "activation=silu")
    asked += ("--variant", "MoE: mixture_of_experts num_experts=8 top_k=2 expert_dim=match_dense")
    dense, experts = rows(*asked)
    assert experts["parameters"] == dense["parameters"] + 12 * 768 * 8  # 3072 / 8 wide, and a router
    assert experts["active"] == experts["parameters"] - 12 * 6 * 3 * 768 * 384
    assert experts["forward"] < dense["forward"]
    assert f"{experts['active']:,}" in call(*asked)[1]


@pytest.mark.parametrize("form", ["fields", "checkpoint"])
def test_a_config_from_a_file(rows, tmp_path, form):
    config = preset("nano").with_(num_layers=5, attention=[{"kind": "grouped_query", "window": 7}, "multi_head"])
    values = model_to_dict(config)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values if form == "fields" else {"format": "parallax", "version": 1, "model": values}))
    (row,) = rows("--config", path)
    assert row["name"] == "mine"
    assert row["parameters"] == params.count(config)
    assert row["cache"] == memory.kv_cache(config, 1, config.context_length)


def test_the_text_fits_a_terminal_and_says_what_it_means(call):
    asked = ("gpt2-124m", "--variant", GROUPS, "--variant", LOCAL, "--context", "1024,131072")
    code, out, err = call(*asked, "--dtype", "bfloat16")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    told = " ".join(out.split())
    assert "124,439,808" in out
    assert re.search(r"131,072 tokens × 1\n", out)
    assert re.search(r"gpt2-124m .* 4\.832 GB\n", out)  # the cache of 131,072 tokens
    assert re.search(r"GQA .* 1\.611 GB +3\.00 ×\n", out)
    assert "gpt2-124m, GQA, local: the context of 1,024 is longer here, and as many more learned positions." in told
    assert "no closed form" not in out


def test_what_has_no_closed_form_is_said(call, rows, monkeypatch):
    def silent(*_):
        raise NotImplementedError

    monkeypatch.setattr(GroupedQuery, "kept", silent)
    asked = ("nano", "--variant", "GQA: grouped_query")
    assert [row["kept"] == "" for row in rows(*asked)] == [False, True]
    assert "—: what GQA keeps has no closed form." in " ".join(call(*asked)[1].split())


def test_markdown_is_one_table(call):
    code, out, _ = call("nano", "--variant", "a|b: grouped_query", "--context", "64,128", "--format", "markdown")
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert code == 0
    assert len(table) == 2 + 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {14}
    assert table[-1].startswith(r"| a\|b | 128 | 1 | ")
    assert table[-1].endswith(" 4.00 × (75.00 %) |")


def test_files_and_plots(call, tmp_path):
    out = tmp_path / "here"
    asked = ("nano", "--variant", "one group: grouped_query", "--context", "16:128", "--batch", "1,8", "--out", out)
    code, text, err = call(*asked)
    assert code == 0
    assert str(out) in err
    names = {"table.txt", "table.csv", "table.md"}
    names |= {f"by_{axis}.{kind}" for axis in ("context", "batch") for kind in ("svg", "png")}
    assert {path.name for path in out.iterdir()} == names
    assert (out / "table.txt").read_text(encoding="utf-8") == text
    for name in names:
        data = (out / name).read_bytes()
        if name.endswith(".svg"):
            drawn = "".join(ElementTree.fromstring(data).itertext())
            assert "one group" in drawn
            assert "bytes of cache" in drawn
        elif name.endswith(".png"):
            assert data.startswith(b"\x89PNG")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert call(*asked)[0] == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before  # the same again, to the byte


def test_a_single_size_is_drawn_too(call, tmp_path):
    assert call("nano", "--out", tmp_path / "one")[0] == 0
    assert {path.name for path in (tmp_path / "one").iterdir()} >= {"by_context.svg", "by_context.png"}
    assert not (tmp_path / "one" / "by_batch.svg").exists()


def test_no_framework_is_imported():
    code = (
        "import sys\nfrom common.cli import main\n"
        "try:\n    main(['estimate', 'gpt2-124m', '--variant', 'grouped_query num_kv_heads=4'])\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        "heavy = {'torch', 'jax', 'flax', 'matplotlib', 'transformers'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def bad(tmp_path):
    """Broken things by name."""
    made = {name: tmp_path / name for name in ("file", "list.json", "broken.json", "unknown.json", "wrong.json")}
    made["file"].write_text("a file")
    made["list.json"].write_text("[1]")
    made["broken.json"].write_text("{")
    made["unknown.json"].write_text(json.dumps({**model_to_dict(preset("nano")), "num_layer": 3}))
    made["wrong.json"].write_text(json.dumps({**model_to_dict(preset("nano")), "num_layers": "many"}))
    return {name.partition(".")[0]: path for name, path in made.items()} | {"missing": tmp_path / "missing"}


REFUSED = {
    "no model": ("", "Name a model"),
    "two models": ("nano --config {file}", "give one of them"),
    "unknown preset": ("gpt2-125m", "Unknown preset 'gpt2-125m': did you mean 'gpt2-124m'"),
    "missing file": ("--config {missing}", "There is no model config at"),
    "no object": ("--config {list}", "is a list"),
    "no JSON": ("--config {broken}", "not valid JSON"),
    "unknown field in a file": (
        "--config {unknown}",
        "Unknown field of GPTConfig 'num_layer': did you mean 'num_layers'",
    ),
    "wrong value in a file": ("--config {wrong}", "num_layers is 'many'; allowed is a whole number > 0"),
    "unknown option": ("nano --contxt 3", "No such option"),
    "unknown dtype": ("nano --dtype float33", "Unknown dtype 'float33'"),
    "unknown kernel": ("nano --attention fuzed", "Unknown attention kernel 'fuzed': did you mean 'fused'"),
    **{
        f"no closed form of {kernel}": (
            f"nano --attention {kernel}",
            f"What the attention kernel '{kernel}' keeps has no closed form; plain, loop, blockwise, fused, masked",
        )
        for kernel in ("module", "module_weights", *COMPILED_KERNELS)
    },
    "a kernel that draws no dropout": (
        "book-124m --attention fused",
        "book-124m cannot be trained with the attention kernel 'fused', which draws no dropout on the weights: set"
        " dropout_attn=0, or take plain or loop.",
    ),
    "a kind as kernel": ("nano --attention grouped_query", "is a kind of layer; write --variant grouped_query"),
    "a kernel for others": ("nano --attention fused --variant grouped_query", "which has no kernel 'fused'"),
    "unknown format": ("nano --format cvs", "Unknown format 'cvs': did you mean 'csv'"),
    "no size": ("nano --context many", "--context many is no size"),
    "no rows": ("nano --batch 0", "--batch 0 is no size"),
    "negative": ("nano --context=-5", "--context -5 is no size"),
    "backwards": ("nano --context 64:8", "--context 64:8 is no size"),
    "a factor of one": ("nano --context 8:64:1", "--context 8:64:1 is no size"),
    "four numbers": ("nano --context 8:64:2:2", "is no size"),
    "too long": ("nano --context 99999999999", "1 to 1,073,741,824"),
    "nothing in between": ("nano --context 8,,16", "is no size"),
    "no value": ("nano --set embed_dim", "--set embed_dim gives no value"),
    "unknown field": ("nano --set embed_dims=3", "Unknown field of GPTConfig 'embed_dims': did you mean 'embed_dim'"),
    "no settings": ("nano --set attention.window=3", "MultiHead has no settings of its own, but 'window' is given"),
    "none where there must be a number": ("nano --set embed_dim=none", "embed_dim is 'none'; allowed is"),
    "another kind within a kind": (
        "nano --variant grouped_query\u00a0kind=latent",
        "kind=latent would make another kind of 'grouped_query'; write latent in its place",
    ),
    "a pattern and kinds": (
        "nano --variant attention=foo\u00a02*grouped_query",
        "attention=… and grouped_query both say what attention is; leave one of them out",
    ),
    "a setting before its kind": (
        "nano --variant attention.window=3\u00a0grouped_query",
        "attention.window=… and grouped_query both say what attention is",
    ),
    "a kind by another word": ("nano --variant mqa", "did you mean 'grouped_query' with num_kv_heads=1?"),
    "a feed-forward by another word": ("nano --set feed_forward=moe", "did you mean 'mixture_of_experts'?"),
    "no such pattern": ("nano --set attentoin.window=3", "did you mean 'attention'"),
    "heads that do not divide": ("nano --set num_heads=3", "a divisor of embed_dim (128)"),
    "unknown kind": ("nano --variant group_query", "did you mean 'grouped_query'"),
    "unknown setting": (
        "nano --variant grouped_query\u00a0num_kv_head=2",
        "Unknown field of GroupedQuery 'num_kv_head': did you mean 'num_kv_heads'",
    ),
    "groups that do not divide": ("nano --variant grouped_query\u00a0num_kv_heads=3", "a divisor of num_heads (4)"),
    "an empty variant": ("nano --variant=", "A variant says nothing"),
    "a name alone": ("nano --variant=GQA:\u00a0", "A variant says nothing"),
    "the same name twice": (
        "nano --variant grouped_query --variant grouped_query",
        "Two models are named 'grouped_query'",
    ),
    "the name of the model": ("nano --variant nano:\u00a0grouped_query", "Two models are named 'nano'"),
    "a pattern that does not fit": (
        "nano --variant 5*grouped_query",
        "5 layers of attention do not fit in a model of 4",
    ),
    "nothing to match": (
        "nano --variant gated_mlp\u00a0expert_dim=match_dense",
        "Unknown field of GatedMLP 'expert_dim'",
    ),
    "no number of times": ("nano --variant x*grouped_query", "repeats a kind 'x' times"),
    "too many layers": ("nano --set num_layers=2000000000", "2,000,000,000 layers; up to 1,024 are estimated"),
    "too many estimates": (
        "nano --context 1:1073741824:2 --batch 1:1048576:2 --variant grouped_query --variant gated_mlp",
        "up to 1,000 are made at once",
    ),
    "output is a file": ("nano --out {file}", "is a file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_get_one_sentence_and_exit_code_2(call, bad, name):
    command, sentence = REFUSED[name]
    words = [word.format(**bad).replace("\u00a0", " ") for word in command.split(" ") if word]
    code, out, err = call(*words)
    assert code == 2, err
    assert sentence in err
    assert out == ""
    assert err.startswith("parallax: ")
    assert err.count("\n") == 1, err
