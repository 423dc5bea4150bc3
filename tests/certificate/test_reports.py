"""The certificate as people meet it: table, page and command, with claims that compute nothing."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from common import cli, vectors
from common.cases import CASES, case
from common.errors import UserError
from common.parity import certificate, trial
from common.parity.rows import Exhibit
from reports.parity import job, matrix, page, table


def shown(found):
    screen = io.StringIO()
    Console(file=screen, width=80).print(table.build(found))
    assert all(len(line) <= 80 for line in screen.getvalue().splitlines())
    return screen.getvalue()


def test_the_table_fits_into_80_columns(made):
    text = shown(made)
    assert "All that was tried holds." in text
    assert re.search(r"C2 float64 semantics +16 +3\.0e-07 +mlp after +60 % +holds", text)
    assert "…" not in text


def test_failures_are_listed_and_the_rest_counted(failing):
    text = " ".join(shown(failing).split())
    assert "C2 does not hold." in text
    assert "What fails (25)" in text
    assert "C2 gpt tap 3 float64 torch 1.0e-03, allowed 1.0e-12" in text
    assert "and 5 more" in text


def test_the_page_stands_alone(made):
    html = page.render(made)
    for outside in (r'src="(?!data:)', r'href="(?!#)', r"@import", r"url\((?!#)", r"<script", r"https?://"):
        assert not re.search(outside, re.sub(r"xmlns(:\w+)?=\"[^\"]*\"", "", html)), outside
    assert "All that was tried holds." in html
    assert html.count("<svg") == 1
    for number in ("3.0e-07", "5.0e-07", "60 %", made["head"]["thresholds"]):
        assert number in html
    assert html == page.render(json.loads(certificate.dumps(made)))


def test_the_page_says_what_fails(failing):
    html = page.render(failing)
    assert "C2 does not hold." in html
    assert "KeyError: &#39;x&#39;" in html


def test_planted_bugs_are_told(made, bugs):
    made["exhibits"]["mutants"] = bugs
    assert "1 of 2 planted bugs noticed, first by: C2 1." in " ".join(shown(made).split())
    html = page.render(made)
    assert "bugs noticed by C2 float64" in html
    assert "2.0e-02" in html
    assert "by nothing, rightly: sums commute" in html
    lines = matrix.csv(made).splitlines()
    assert lines[0].startswith("id,component,what,equivalent,place,killed,claim,case,row,tier,error,bound")
    assert len(lines) == 4


def test_curves_are_drawn(made):
    curves = {"control": [5e-8, 1e-7], "torch/jax": [1e-8, 9e-8]}
    made["exhibits"] |= {
        "trajectories": {"gpt": curves},
        "switch": {"gpt": {"control": [1e-7] * 6, "a, b, a": [0] * 6}},
    }
    html = page.render(made)
    assert html.count("<svg") == 3
    assert "a → b → a" in html


@pytest.fixture
def call(capsys, monkeypatch, claims, subjects, tmp_path):
    """Run `parallax parity …` on these claims and backends, in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(job, "claims_of", lambda names: claims)
    monkeypatch.setattr(trial.door, "load", lambda name: subjects[name])

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["parity", "--processes", "1", *map(str, arguments)])
        return stopped.value.code, *capsys.readouterr()

    return run


def test_a_run_writes_all_and_says_where(call, tmp_path):
    code, out, err = call("--out", tmp_path / "new", "--case", "mlp", "--case", "gpt", "--quick")
    assert code == 0
    assert "All that was tried holds." in out
    found = json.loads((tmp_path / "new" / "certificate.json").read_text())
    assert found["passed"]
    assert found["head"]["quick"]
    assert found["head"]["command"] == "parallax parity --case mlp --case gpt --quick"
    assert set(found["vectors"]) == {
        f"{name}.{ending}" for name in ("mlp", "gpt") for ending in ("json", "safetensors")
    }
    assert (tmp_path / "new" / "index.html").read_text() == page.render(found)
    assert "certificate.json" in err.splitlines()[-1]
    code, out, _ = call("verify", tmp_path / "new" / "certificate.json")
    assert code == 0
    assert "All verdicts follow" in out


def test_mutants_writes_the_matrix_alone(call, claims, bugs, tmp_path):
    exhibited = SimpleNamespace(**{**vars(claims[1]), "once": lambda session: iter([Exhibit("mutants", bugs)])})
    claims[1] = exhibited
    code, _, err = call("mutants", "--case", "mlp", "--out", tmp_path)
    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mutants.csv"]
    assert "mutants.csv" in err.splitlines()[-1]
    assert call("--case", "mlp", "--out", tmp_path)[0] == 0
    code, out, _ = call("mutants", tmp_path / "certificate.json")
    assert (code, out) == (0, (tmp_path / "mutants.csv").read_text())


def test_json_is_the_certificate(call, tmp_path):
    code, out, _ = call("--out", tmp_path, "--case", "mlp", "--json")
    assert code == 0
    assert out == (tmp_path / "certificate.json").read_text()


def test_a_claim_that_fails_exits_with_1(call, claims, tmp_path):
    claims[0].for_case, kept = lambda trial: iter(()), claims[0].for_case
    try:
        code, out, _ = call("--out", tmp_path, "--case", "mlp")
    finally:
        claims[0].for_case = kept
    assert code == 1
    assert "missing: this was to be compared and was not" in out
    assert call("verify", tmp_path / "certificate.json")[0] == 1


def test_an_edited_certificate_exits_with_1(call, stored):
    stored.write_text(stored.read_text().replace("3e-07", "3e-08", 1))
    code, out, _ = call("verify", stored)
    assert code == 1
    assert "3e-08" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--case", "gtp"], "Unknown case 'gtp': did you mean 'gpt'"),
        (["--tier", "float46"], "Unknown tier 'float46': did you mean 'float64'"),
        (["--mode", "jax=scam"], "Unknown mode 'scam': did you mean 'scan'"),
        (["--mode", "scan"], "--mode scan names no backend"),
        (["--mode", "jacks=scan"], "Unknown backend in --mode 'jacks'"),
        (["--mode", "jax=scan", "--mode", "jax=eager"], "two modes"),
        (["--backends", "torch,numpy"], "the oracle, which judges the others"),
        (["--backends", ""], "No backend is named"),
        (["--backends", "torch,torch"], "named twice"),
        (["--device", "cuda:7"], "PyTorch sees no device 'cuda:7'"),
        (["--threads", "0"], "threads"),
        (["--processes", "0"], "--processes is 0; allowed is a whole number > 0"),
        (["--processes", "-2"], "--processes is -2; allowed"),
        (["--processes", "x"], "Invalid value for '--processes'"),
        (["verfy"], "did you mean 'verify'"),
        (["verify"], "Name the certificate"),
        (["verify", "no.json"], "Cannot read no.json"),
        (["run", "some.json"], "takes no file"),
    ],
)
def test_mistakes_get_one_sentence(call, tmp_path, arguments, words):
    code, out, err = call(*arguments, "--out", tmp_path)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_claim_is_refused(tmp_path):
    with pytest.raises(UserError, match="Unknown claim 'c2': did you mean 'C2'"):
        job.prepare(job.Settings(claims=("c2",), out=tmp_path))


def test_a_backend_that_is_unknown_or_not_installed(monkeypatch):
    with pytest.raises(UserError, match="did you mean 'jax'"):
        job._subjects(("jaxx",))

    def missing(name):
        raise UserError("not usable") from ModuleNotFoundError("No module named 'jax'")

    monkeypatch.setattr(trial.door, "load", missing)
    with pytest.raises(UserError, match=r"Backend 'jax' is not installed .*pip install 'parallax\[jax\]'"):
        job._subjects(("jax",))


def test_damaged_vectors_are_refused_before_any_work(tmp_path, monkeypatch):
    assert certificate.check_vectors(("mlp",), tmp_path) == {}
    for ending in ("json", "safetensors"):
        shutil.copy(certificate.VECTORS / f"mlp.{ending}", tmp_path)
    hashes = certificate.check_vectors(("mlp", "gpt"), tmp_path)
    assert set(hashes) == {"mlp.json", "mlp.safetensors"}
    data = bytearray((tmp_path / "mlp.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "mlp.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"mlp\.safetensors is damaged"):
        certificate.check_vectors(("mlp",), tmp_path)
    (tmp_path / "mlp.safetensors").unlink()
    with pytest.raises(UserError, match=r"lack mlp\.safetensors"):
        certificate.check_vectors(("mlp",), tmp_path)


def test_every_registered_case_has_its_vectors_hashed():
    hashes = certificate.check_vectors(tuple(CASES))
    assert len(hashes) == 2 * len(CASES)
    assert vectors.read(case("mlp"), certificate.VECTORS)


def test_an_interruption_loses_nothing(call, tmp_path, monkeypatch):
    (tmp_path / "certificate.json").write_text("kept")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run", interrupted)
    code, _, err = call("--out", tmp_path, "--case", "mlp")
    assert code == 130
    assert "Traceback" not in err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("certificate.json", "kept")]


@pytest.mark.full
def test_a_real_control_c_ends_the_command(tmp_path):
    words = [sys.executable, "-m", "common.cli", "parity", "--claim", "C2", "--out", str(tmp_path / "out")]
    done = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True)
    try:
        for line in done.stderr:  # the first comparisons are done
            if "C2" in line:
                break
        done.send_signal(signal.SIGINT)
        _, said = done.communicate(timeout=60)
    finally:
        done.kill()
    assert done.returncode == 130
    assert "Traceback" not in said
    assert list((tmp_path / "out").iterdir()) == []


def test_what_an_interrupted_run_has_tried_is_kept_beside_its_folder(tmp_path, monkeypatch):
    """It takes the place of nothing, and what was not reached counts as failed."""
    asked = job.Settings(("mlp",), ("float64",), ("C0", "C2"), ("torch",), quick=True, out=tmp_path / "out")
    work = job.prepare(asked)

    def stops(trial):
        raise KeyboardInterrupt

    monkeypatch.setattr(work.claims[1], "for_case", stops)
    with pytest.raises(KeyboardInterrupt) as stopped:
        job.produce(work, lambda what, share: None)
    kept = tmp_path / "out-interrupted"
    assert str(kept) in stopped.value.__notes__[0]
    assert not list((tmp_path / "out").iterdir())
    found = json.loads((kept / job.NUMBERS).read_text())
    assert not found["passed"]
    reached = {row["claim"] for row in found["rows"] if row["what"] != "interrupted"}
    left = {row["claim"] for row in found["rows"] if row["what"] == "interrupted"}
    assert (reached, left) == ({"C0"}, {"C0", "C2"})  # of C0 what belongs to no case
    assert (kept / job.PAGE).exists()
    with pytest.raises(KeyboardInterrupt) as again:  # an earlier one stays as it is
        job.produce(work, lambda what, share: None)
    assert str(tmp_path / "out-interrupted-2") in again.value.__notes__[0]
