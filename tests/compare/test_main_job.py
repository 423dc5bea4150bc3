"""`parallax compare` from end to end on a very small model, and the parts on which its verdicts rest."""

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from benchmarks.harness import timing
from benchmarks.harness.worker import Worker
from common import params
from common.config import GPTConfig
from common.errors import UserError
from reports.compare import page, plan, result, table
from reports.compare.settings import Settings
from reports.progress import Silent

TINY = GPTConfig(256, 32, 16, 1, 2)


def settings(folder, **changes):
    return Settings(**{"model": TINY, "quick": True, "threads": 1, "length": 16, "out": str(folder), **changes})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    return folder, result.produce(settings(folder), Silent())


def test_both_wings_pass_and_the_numbers_are_there(found):
    folder, numbers = found
    assert numbers["passed"]["all"]
    stored = json.loads((folder / "compare.json").read_text())
    assert stored == json.loads(result.as_json(numbers))
    assert stored["model"]["parameters"] == params.count(TINY)
    rows = stored["agreement"]["rows"]
    assert {row["dtype"] for row in rows} == {"float64", "float32"}
    assert all(row["errors"][k] <= b for row in rows for k, b in row["bounds"].items())
    for wing in ("torch", "jax"):
        assert len(stored["training"]["curves"][wing]["loss"]) == stored["training"]["config"]["steps"]
        for task in ("forward", "train", "decode"):
            assert stored["speed"][task]["seconds"][wing]["tokens_per_second"] > 0
        for task in ("train", "decode"):
            assert stored["memory"][task][wing]["steady"]["bytes"] > stored["memory"][task][wing]["import_only"] / 2
    same = stored["generation"]["same"]
    assert all(own["equal"] == own["count"] > 0 for own in same.values())
    counted = stored["flops"]["train"]["counted"]
    assert counted["torch"] == counted["jax"]
    assert len((folder / "loss.csv").read_text().splitlines()) == stored["training"]["config"]["steps"] + 1


def test_the_page_stands_alone(found):
    folder, _ = found
    html = (folder / "index.html").read_text()
    assert html == page.render(json.loads((folder / "compare.json").read_text()))
    for outside in (r'src="(?!data:)', r'href="(?!#)', r"@import", r"url\((?!#)", r"<script"):
        assert not re.search(outside, re.sub(r"xmlns(:\w+)?=\"[^\"]*\"", "", html)), outside
    assert "Both wings compute the same thing." in html
    assert html.count("<svg") == 3


def test_the_table_fits_into_80_columns(found):
    _, numbers = found
    screen = io.StringIO()
    Console(file=screen, width=80).print(table.build(numbers))
    assert "…" not in screen.getvalue()
    assert "Both wings compute the same thing." in screen.getvalue()


@pytest.mark.full
def test_a_wing_that_is_off_fails_the_job(tmp_path, monkeypatch):
    """One part in a million in one wing's float64 logits: the verdict turns, and no speed is published."""
    real = Worker.ask

    def off(self, method, *args, **options):
        answer = real(self, method, *args, **options)
        return answer * (1 + 1e-6) if method == "forward" and self.name == "jax" else answer

    monkeypatch.setattr(Worker, "ask", off)
    numbers = result.produce(settings(tmp_path), Silent())
    assert not numbers["passed"]["all"]
    assert numbers["speed"] is None
    html = (tmp_path / "index.html").read_text()
    assert "The wings do not agree." in html
    assert "FAILED" in html


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None, "preset": "nanno"}, "did you mean 'nano'"),
        ({"dtype": "float31"}, "Unknown dtype"),
        ({"device": "cdua"}, "Unknown device"),
        ({"length": 33}, "33 tokens do not fit in the context of 32"),
        ({"prompt": ""}, "The prompt is empty"),
        ({"prompt": "x" * 40}, "The prompt has 40 tokens"),
        ({"data": "no/such/file.txt"}, "file.txt"),
        ({"heads": 3}, "a divisor of embed_dim (16)"),
        ({"tokenizer": "gtp2"}, "did you mean 'gpt2'"),
        ({"threads": 4096}, "4096 threads"),
        ({"mode": "fats"}, "did you mean 'fast'"),
        ({"mode": "native rng"}, "nothing to compare"),
    ],
)
def test_mistakes_are_refused_before_any_work(tmp_path, changes, words):
    given = settings(tmp_path, **changes)
    if "heads" in changes:
        given = settings(tmp_path, model=None, preset="nano", heads=3)
        words = "a divisor of embed_dim (128)"
    with pytest.raises(UserError, match=re.escape(words)):
        plan.make(given)


def test_a_model_too_large_for_the_container_is_refused_with_both_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "room", lambda device: {"": 10**12, " in this container": 1_140_000_000})
    with pytest.raises(UserError, match=r"about 5\.0 GB .* and 1\.1 GB are free in this container; choose"):
        plan.make(settings(tmp_path, model=None, preset="gpt2-124m"))


def test_a_mode_and_what_is_said_beside_it(tmp_path):
    """What is said counts more; float64 runs plainly, and the page says so."""
    made = plan.make(settings(tmp_path, mode="fused", attention="plain", compile=True))
    assert (made.execution("jax").attention, made.execution("torch").compile) == ("plain", True)
    fast = plan.make(settings(tmp_path, mode="fast"))
    assert fast.execution("torch").optimizer == "fused"
    assert fast.execution("jax").layers == "checkpointed"
    assert fast.execution("torch", "float64").optimizer == "plain"
    assert any("loss" in row["what"] and "'fast'" in row["reason"] for row in fast.skipped)


def test_an_output_folder_that_is_a_file_is_refused_first(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr("reports.compare.job.run", lambda *_: pytest.fail("work began"))
    with pytest.raises(UserError, match="is a file"):
        result.produce(settings(tmp_path / "file"), Silent())
    assert (tmp_path / "file").read_text() == "kept"


def test_errors_cross_from_the_worker():
    with Worker("numpy", threads=1) as worker:
        assert worker.ask("start")["title"] == "NumPy oracle"
        with pytest.raises(UserError, match="did you mean 'jax'"), Worker("jaxx", threads=1) as other:
            other.ask("start")
        worker.process.kill()
        with pytest.raises(UserError, match="The process of numpy ended unexpectedly"):
            worker.ask("versions")


def drawn(ratio, blocks=40, noise=0.02, seed=0):
    """Blocks of two arms whose times differ by `ratio`, with a drift that both share."""
    rng, now = np.random.default_rng(seed), [0]

    def arm(factor):
        def turn(copy):
            now[0] += 1
            return factor * np.exp(noise * rng.standard_normal() + 1e-3 * now[0])

        return turn

    contest = timing.Contest({"torch": arm(ratio), "jax": arm(1.0)}, seed)
    for _ in range(blocks):
        contest.block()
    return timing.compare(contest.blocks, "torch", "jax")


@pytest.mark.parametrize("seed", range(5))
def test_equal_arms_have_no_winner_and_a_planted_difference_has_one(seed):
    equal = drawn(1.0, seed=seed)
    assert equal["faster"] is None
    assert equal["ratio"] == pytest.approx(1, abs=0.03)
    planted = drawn(1.3, seed=seed)
    assert planted["faster"] == "jax"
    assert planted["low"] < 1.3 < planted["high"] * 1.02
    assert drawn(1 / 1.3, seed=seed)["faster"] == "torch"


def test_a_difference_inside_the_floor_is_none():
    noisy = drawn(1.03, blocks=8, noise=0.2)
    assert noisy["faster"] is None
    assert noisy["noisy"]


def test_a_difference_of_several_floors_is_one_on_a_noisy_machine_too():
    clear = drawn(2.0, blocks=12, noise=0.15)
    assert clear["floor"] > 0.05
    assert not clear["noisy"]
    assert clear["faster"] == "jax"
    assert clear["low"] < 2.0 < clear["high"]
