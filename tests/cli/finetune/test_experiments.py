"""The book's experiments on classification, the report on fine-tuning, and what curves draw of a classifier."""

import json
from pathlib import Path

import pytest

from common.weights.checkpoint import load_checkpoint
from reports.finetune import experiments, page

FEW = ["--steps", 4, "--batch-size", 4, "--learning-rate", 0.01, "--eval-every", 2]
PUBLISHED = {1: 95.0, 3: 72.0, 8: 98.33, 10: 93.67, 14: 98.0, 17: 95.33, 19: 96.33}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.json"
    words = ["see you at home", "are you there", "on my way now"]
    rows = [{"text": f"{words[i % 3]} {i}", "label": "ham"} for i in range(20)]
    rows += [{"text": f"WIN cash {i % 8} now!!", "label": "spam"} for i in range(20)]
    path.write_text(json.dumps(rows))
    return path


def test_the_table_of_experiments_is_whole():
    table = experiments.table()
    assert [one.number for one in table] == list(range(1, 20))
    assert len({one.name for one in table}) == 19
    for number, test in PUBLISHED.items():
        assert table[number - 1].published["test"] == test
    assert {one.number for one in table if one.size != "small"} == {6, 7, 8, 9, 12}
    assert [one.number for one in table if not one.options and one.size == "small"] == [1, 18]
    assert table[17].same == 1


def test_every_experiment_is_settings_that_the_command_knows(call, tmp_path, weights):
    """The files of all 19 are read by `parallax finetune classify`, which then finds no texts."""
    sizes = dict.fromkeys(("small", "medium", "large", "xl"), weights)
    asked = experiments.Settings(tmp_path, sizes, {"data": str(tmp_path / "none.json")})
    for one in experiments.table():
        file = tmp_path / "asked.toml"
        file.write_text(experiments._settings(one, asked, tmp_path))
        code, _, err = call("finetune", "classify", "--settings", file, "--out", tmp_path / "run")
        assert code == 2
        assert "none.json" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.full  # six processes; the next test has one of them
def test_experiments_end_in_one_table_and_are_not_run_twice(call, tmp_path, weights, texts, monkeypatch):
    asked = ["--weights", weights, "--data", texts, *FEW, "--threads", 1, "--out", tmp_path / "out"]
    code, out, err = call("finetune", "experiments", *asked, "--only", "1,6,10,18")
    assert code == 0, err
    assert "6: left out, it needs --weights-medium" in out
    found = json.loads((tmp_path / "out" / "experiments.json").read_text())
    rows = {row["number"]: row for row in found["experiments"]}
    assert list(rows) == [1, 6, 10, 18]
    assert rows[18]["accuracy"] == rows[1]["accuracy"]
    assert rows[6]["accuracy"] == {}
    assert rows[10]["learn"] == rows[10]["parameters"] > rows[1]["learn"] > 0
    results = json.loads((tmp_path / "out" / "experiment-01" / "results.json").read_text())
    assert rows[1]["accuracy"] == results["accuracy"]["model"]
    first = load_checkpoint(tmp_path / "out" / "experiment-01" / "checkpoint")
    assert first.training["train"]["trained"] == ["model.layers.1.*", "model.norm.*", "score.*"]
    markdown = (tmp_path / "out" / "experiments.md").read_text()
    assert f"{rows[1]['accuracy']['test']:.2%}" in markdown
    assert "87.50 / 91.28 / 84.67, 0.75 min" in markdown
    assert all((tmp_path / "out" / f"experiments.{kind}").stat().st_size > 5000 for kind in ("png", "svg"))

    def never(*_: object, **__: object):
        raise AssertionError("an experiment was run again")

    with monkeypatch.context() as patched:
        patched.setattr(experiments, "_call", never)
        code, again, err = call("finetune", "experiments", *asked, "--only", "1,6,10,18")
        assert (code, again) == (0, out), err
        code, _, err = call("finetune", "experiments", *asked, "--seed", 1, "--only", "1")
        assert (code, "holds experiment 1 with other settings" in err) == (2, True)


@pytest.mark.full
def test_an_interrupted_experiment_goes_on(call, tmp_path, weights, texts):
    asked = ["--weights", weights, "--data", texts, *FEW, "--threads", 1, "--out", tmp_path / "out", "--only", "5"]
    one = experiments.table()[4]
    shared = {"data": str(texts), "backend": "torch", "steps": 4, "batch-size": 4, "learning-rate": 0.01}
    shared |= {"eval-every": 2, "save-every": 200, "seed": 0, "device": "cpu", "mode": "default", "threads": 1}
    settings = experiments.Settings(tmp_path / "out", {"small": weights}, shared)
    folder = tmp_path / "out" / "experiment-05"
    folder.mkdir(parents=True)
    (folder / "asked.toml").write_text(experiments._settings(one, settings, tmp_path / "out"))
    words = ["finetune", "classify", "--settings", folder / "asked.toml", "--out", folder, "--until", 2]
    assert call(*words)[0] == 0
    code, _, err = call("finetune", "experiments", *asked)
    assert (code, "experiment 5 (all layers): goes on" in err) == (0, True), err
    log = [json.loads(line) for line in (folder / "log.jsonl").open()]
    assert [line["step"] for line in log] == [0, 1, 2, 3]


def test_a_layout_leaves_out_what_it_cannot_deal_out_and_has_its_processes(tmp_path, weights):
    def asked(**shared):
        return experiments.Settings(tmp_path, {"small": weights, "xl": None}, shared)

    table, two = experiments.table(), asked(layout="data=2,tensor=2", backend="torch")
    small = [one for one in table if one.size == "small"]
    found = {one.number: experiments.left_out(one, two) for one in small}
    told = "has batches of 1, which data x shard = 2 cannot deal out"
    assert {number: why for number, why in found.items() if why} == {14: told, 15: told}
    assert experiments.left_out(table[8], two) == "needs --weights-xl"
    for one in small:
        assert not experiments.left_out(one, asked()) + experiments.left_out(one, asked(layout="tensor=2"))
    start = ["-m", "common.cli", "finetune", "classify"]
    assert experiments.command(asked())[1:] == start
    assert experiments.command(asked(layout="data=4", backend="jax"))[1:] == start
    engine = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    assert experiments.command(two)[1:] == [*engine, *start]


@pytest.mark.full  # six processes
def test_experiments_are_spread_over_devices(call, tmp_path, weights, texts):
    """To the same losses, in PyTorch's processes and on JAX's devices; what a run refuses is told in its words."""
    asked = ["--weights", weights, "--data", texts, *FEW, "--threads", 1, "--dtype", "float64", "--only", "1,14"]
    losses = []
    for name, words in {"one": [], "torch": ["--layout", "data=2"], "jax": ["--layout", "tensor=2"]}.items():
        only = ["--only", "1"] if name != "torch" else []
        backend = ["--backend", "jax"] if name == "jax" else []
        code, out, err = call("finetune", "experiments", *asked, *words, *only, *backend, "--out", tmp_path / name)
        assert code == 0, err
        assert ("14: left out, it has batches of 1" in out) is (name == "torch")
        log = (tmp_path / name / "experiment-01" / "log.jsonl").open()
        losses.append([json.loads(line)["loss"] for line in log])
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    assert losses[2] == pytest.approx(losses[0], rel=1e-10)
    wrong = ["--layout", "data=3", "--only", "1", "--out", tmp_path / "wrong"]
    code, _, err = call("finetune", "experiments", *asked, *wrong)
    assert (code, "Experiment 1 failed: 4 windows of a batch cannot be dealt out equally" in err) == (2, True), err


def test_processes_are_started_by_the_experiments(call, tmp_path, weights, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for words in ([], ["--layout", "data=2"]):
        code, _, err = call("finetune", "experiments", "--weights", weights, "--out", tmp_path / "out", *words)
        assert (code, "call this once, without torchrun" in err, err.count("\n")) == (2, True, 1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--layout", "dat=2"], "did you mean 'data'"),
        (["--only", "1,20"], "--only names experiment '20'; there are 1 to 19"),
        (["--only", "1", "--backend", "torhc"], "did you mean 'torch'"),
        (["--only", "1", "--data", "sms-spamm"], "did you mean 'sms-spam'"),
    ],
)
def test_mistakes_get_one_sentence(call, tmp_path, weights, texts, words, sentence):
    own = ["--weights", weights, "--data", texts, "--out", tmp_path / "out"]
    code, out, err = call("finetune", "experiments", *own, *words)
    assert (code, out) == (2, "")
    assert sentence in err
    assert "Traceback" not in err


def test_a_page_follows_from_its_numbers(call, tmp_path, weights, texts):
    own = ["--weights", weights, "--data", texts, "--steps", 4, "--batch-size", 4, "--learning-rate", 0.01]
    own += ["--eval-every", 2, "--eval-batches", 1, "--dropout", 0.1]
    runs = [tmp_path / name for name in ("torch", "jax")]
    for run in runs:
        again = ["--dtype", "float64", "--backend", run.name, "--length", 24, "--out", run]
        assert call("finetune", "classify", *own, *again)[0] == 0
    results = json.loads((runs[0] / "results.json").read_text())
    assert 0 < results["unseen"]["texts"] < sum(results["texts"]["test"].values())
    code, _, err = call("curves", *runs, "--out", tmp_path / "curves")
    assert code == 0, err
    text = (tmp_path / "curves" / "curves.svg").read_text()
    for words in ("what is confused, on test data (torch)", "examples seen"):
        assert words in text
    code, _, err = call("finetune", "report", *runs, "--out", tmp_path / "page", "--about", "A test.")
    assert code == 0, err
    found = json.loads((tmp_path / "page" / "runs.json").read_text())
    (pair,) = found["pairs"]
    assert pair["runs"] == ["torch", "jax"]
    assert pair["steps"] == 4
    assert 0 <= pair["apart"]["loss"] < 1e-10
    before = (tmp_path / "page" / page.PAGE).read_text()
    assert f"{results['accuracy']['model']['test']:.2%}" in before
    assert f"{results['unseen']['texts']} |" in before
    picture = (tmp_path / "page" / "finetune.svg").read_text()
    assert "what torch confuses" in picture
    assert "what jax confuses" in picture
    (tmp_path / "page" / page.PAGE).unlink()
    assert call("finetune", "report", tmp_path / "page" / "runs.json")[0] == 0
    assert (tmp_path / "page" / page.PAGE).read_text() == before


def test_a_page_of_pretraining_shows_what_was_held_out_and_written(call, tmp_path, weights):
    text = tmp_path / "text.txt"
    text.write_text("She sells sea shells by the sea shore. " * 30)
    asked = ["--length", 16, "--batch-size", 2, "--steps", 4, "--eval-every", 2, "--sample-every", 4, "--prompt", "She"]
    assert call("train", "--weights", weights, "--data", text, *asked, "--out", tmp_path / "run")[0] == 0
    made = ["parallax corpus prepare books", "parallax corpus tokens out/shards"]
    own = [word for command in made for word in ("--prepared", command)]
    code, _, err = call("finetune", "report", tmp_path / "run", "--out", tmp_path / "page", *own)
    assert code == 0, err
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    told = (tmp_path / "page" / page.PAGE).read_text()
    assert told.startswith("# Pretraining on real data")
    assert f"{log[1]['held_out']:.4f} (step 2) | {log[3]['held_out']:.4f} (step 4)" in told
    assert log[3]["sample"].split()[0] in told.split("writes after 4 steps")[1]
    assert (tmp_path / "page" / "finetune.png").stat().st_size > 5000
    assert "```\n{}\n{}\nparallax train --out ".format(*made) in told
    code, _, err = call("finetune", "report", tmp_path / "page" / "runs.json", *own)
    assert (code, "is a page's numbers already" in err) == (2, True)


def test_numbers_that_no_report_has_kept_are_refused(call, tmp_path):
    whole = json.loads((Path(page.__file__).parent / "cpu-intel-xeon" / "runs.json").read_text())
    run = next(iter(whole["runs"].values()))
    without = {name: value for name, value in run.items() if name != "losses"}
    for found in ({}, [1], {**whole, "runs": {"x": 1}}, {**whole, "runs": {"x": without}}, {**whole, "pairs": [{}]}):
        (tmp_path / "runs.json").write_text(json.dumps(found))
        code, out, err = call("finetune", "report", tmp_path / "runs.json")
        assert (code, out, "does not hold what a report keeps" in err, err.count("\n")) == (2, "", True, 1), err
        assert [one.name for one in tmp_path.iterdir()] == ["runs.json"]


def test_committed_pages_follow_from_their_numbers():
    reports = Path(page.__file__).parents[1]
    folders = [file for name in ("finetune", "curves") for file in (reports / name).glob("*/runs.json")]
    assert folders
    for file in folders:
        assert (file.parent / page.PAGE).read_text() == page.markdown(json.loads(file.read_text()))
