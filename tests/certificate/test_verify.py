"""A certificate answers for itself: an honest one verifies, every edit is named, nothing but NumPy is needed."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import UserError
from common.parity import certificate, verify
from common.parity.rows import Row
from common.parity.run import Findings
from common.parity.summary import digest, entry, row_digest, summarise
from common.parity.thresholds import RULES, Rule

C5 = SimpleNamespace(NAME="C5", TITLE="trajectories", SENTENCE="Runs stay together.")


def told(found):
    """The sentences of `verify` about this certificate after it has been to disk and back."""
    return [str(fault) for fault in verify.faults(json.loads(certificate.dumps(found)))]


def row_of(found, case, what):
    return next(row for row in found["rows"] if (row["case"], row["what"]) == (case, what))


def test_an_honest_certificate_verifies(made, stored):
    assert made["passed"]
    assert verify.verify(stored) == []
    loaded = verify.load(stored)
    assert loaded == made
    assert [claim["comparisons"] for claim in loaded["claims"]] == [6, 16]
    assert loaded["claims"][1]["worst"] | {"where": ""} == {
        "case": "mlp", "what": "after", "tier": "float32", "where": "", "rule": "five times",
        "used": 0.6, "who": "jax", "error": 3e-7, "bound": 5e-7,
    }  # fmt: skip


def test_one_row_stands_on_one_line(made):
    text = certificate.dumps(made)
    assert sum(line.startswith('{"claim"') for line in text.splitlines()) == len(made["rows"]) == 9
    assert text == certificate.dumps(json.loads(text))


def test_an_edited_error_is_named(made):
    row_of(made, "gpt", "logits")["errors"]["torch"] = 2e-16
    sentences = told(made)
    assert any(
        "row C2 gpt logits float64: errors torch is written as 2e-16, but by the row's digest another" in s
        for s in sentences
    )
    assert any("claim C2: sum_of_errors" in sentence for sentence in sentences)


def test_an_error_whose_row_digest_was_mended_still_breaks_the_claim(made):
    row = row_of(made, "gpt", "logits")
    row["errors"]["torch"] = 2e-16
    row["digest"] = row_digest(row)
    assert any(sentence.startswith("claim C2: sum_of_errors") for sentence in told(made))


def test_an_error_above_its_bound_turns_the_verdict(made):
    row_of(made, "mlp", "logits")["errors"]["jax"] = 1e-9
    sentences = told(made)
    assert any(s == "row C2 mlp logits float64: passed is written as true, but false follows." for s in sentences), (
        sentences
    )
    assert any(s.startswith("row C2 mlp logits float64: used is written as 0.0005, but 1000") for s in sentences)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda f: row_of(f, "gpt", "loss").update(passed=False), "row C2 gpt loss float64: passed is written as"),
        (
            lambda f: row_of(f, "gpt", "after")["bounds"].update(jax=1e-3),
            "row C2 gpt after float32: bounds jax is written as 0.001, but 5e-07 follows.",
        ),
        (lambda f: row_of(f, "gpt", "after")["inputs"].update(x=1.0), "inputs x is written as 1.0"),
        (lambda f: row_of(f, "gpt", "after").update(note="nothing"), "row C2 gpt after float32: digest"),
        (lambda f: row_of(f, "gpt", "after").update(rule="six times"), "row 8: form"),
        (lambda f: row_of(f, "gpt", "after").pop("size"), "row 8: form"),
        (lambda f: f["rows"].pop(3), "claim C2: comparisons is written as 16, but 13 follows."),
        (lambda f: f["rows"].append(f["rows"][0]), "row C1 mlp words exact: times is written as 2, but 1 follows."),
        (lambda f: f["rows"].append(f["rows"][0] | {"claim": "C9"}), "rows of C9"),
        (lambda f: f["claims"][0].update(comparisons=600), "claim C1: comparisons is written as 600, but 6 follows."),
        (lambda f: f["claims"][1]["worst"].update(error=1e-18), "claim C2: worst error is written as 1e-18"),
        (lambda f: f["claims"][1].update(passed=False), "claim C2: passed is written as false, but true follows."),
        (lambda f: f["claims"].pop(0), "claims: C1 is written as nothing"),
        (lambda f: f.update(passed=False), "the certificate: passed is written as false, but true follows."),
        (lambda f: f["rules"]["five times"].update(largest_share=0.1), "rule five times: largest_share is written"),
        (lambda f: f["rules"]["five times"].update(why="because"), "rule five times: why is written as because"),
        (lambda f: f["head"].update(thresholds="0" * 64), "made with other thresholds"),
        (lambda f: f["head"].update(device="cuda"), "head: digest"),
        (lambda f: f["vectors"].update({"elsewhere.json": "1" * 64}), "vectors: digest"),
        (lambda f: f["exhibits"]["list"][0].update(value=2.5), "exhibit list: digest"),
        (lambda f: f["exhibits"].pop("list"), "exhibits: list is written as nothing"),
        (lambda f: f["head"].pop("claims"), "damaged (KeyError"),
    ],
)  # fmt: skip
def test_edits_are_named(made, edit, words):
    assert told(made) == []
    edit(made)
    assert any(words in sentence for sentence in told(made)), told(made)


def test_other_vectors_are_named(made):
    made["vectors"] = {"mlp.json": "0" * 64}
    made["digests"]["vectors"] = digest(made["vectors"])
    assert ["made with other vectors" in sentence for sentence in told(made)] == [True]


def with_exhibit(found, name, data):
    found["exhibits"][name] = data
    found["digests"][f"exhibits/{name}"] = digest(data)


def test_a_hidden_survivor_is_named(made, bugs):
    with_exhibit(made, "mutants", bugs)
    assert told(made) == []
    bugs[1]["killed"] = True
    assert any(s == "mutant mask in jax: killed is written as true, but false follows." for s in told(made)), told(made)
    bugs[1]["killed"] = False
    made["claims"].append({"name": "C6", **summarise([], False), "passed": True})
    assert any(
        "claim C6: passed is written as true, but false, by mutant mask in jax, follows." in s for s in told(made)
    )


def test_rows_follow_from_their_curves(session, monkeypatch):
    """Training runs are judged by the last step of the curve that is shown."""
    rule = Rule("trajectory", "For this test.", lambda errors, inputs: dict.fromkeys(errors, 3 * inputs["control"]))
    monkeypatch.setitem(RULES, rule.name, rule)
    row = Row("C5", "gpt", "wing from wing", "float32", "trajectory", {"torch/jax": 1.23456e-7}, {"control": 1e-7})
    curves = {"control": [5e-8, 1e-7], "torch/jax": [1e-8, 1.235e-7]}
    found = certificate.make(Findings([row], {"trajectories": {"gpt": curves}}), session, [C5])
    assert told(found) == []
    found["exhibits"]["trajectories"]["gpt"]["torch/jax"][-1] = 1.1e-7
    sentence = "row C5 gpt wing from wing float32: errors torch/jax is written as 1.23456e-07, but 1.1e-07, the end of"
    assert any(s.startswith(sentence) for s in told(found)), told(found)
    del found["exhibits"]["trajectories"]["gpt"]["control"]
    assert any("inputs control is written as 1e-07, but a curve in the exhibit" in s for s in told(found))


def test_a_rule_far_from_every_error_is_loose(session, made):
    """Judged on complete runs only; the verdict of the whole turns, though every row passes."""
    rows = [Row("C2", "mlp", "x", "float64", "float64", {"torch": 1e-18})]
    found = certificate.make(Findings(rows), session, [])
    assert found["rules"]["float64"]["loose"]
    assert not found["rules"]["float64"]["judged"]
    from common.parity.summary import passed

    claims = [summarise([entry(row) for row in rows], True)]
    assert passed(claims, found["rules"])
    assert not passed(claims, {"float64": found["rules"]["float64"] | {"judged": True}})
    assert not made["rules"]["five times"]["loose"]


def test_a_claim_without_rows_fails_a_complete_run_only():
    assert summarise([], True)["passed"] is False
    assert summarise([], False)["passed"] is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema": "parallax-certificate/1", "rows": [', "is damaged: it is no JSON"),
        ("\0\1", "is damaged"),
        ("[1, 2]", "is no certificate of this version: it names no schema"),
        ('{"schema": "parallax-vectors/1"}', "its schema is 'parallax-vectors/1'"),
        ('{"schema": "parallax-certificate/1"}', "its part 'head' is missing"),
        ("[" * 100_000, "is damaged"),
    ],
)
def test_what_is_no_certificate_is_refused(tmp_path, text, words):
    path = tmp_path / "certificate.json"
    path.write_text(text)
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        verify.load(path)
    assert verify.main([str(path)]) == 2


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="Cannot read"):
        verify.load(tmp_path / "no.json")


def test_numpy_is_enough(made, tmp_path):
    """With everything else that is installed blocked, in a fresh interpreter."""
    path = tmp_path / "certificate.json"
    certificate.write(made, path)
    code = (
        "import sys, runpy\n"
        "blocked = {'torch', 'jax', 'flax', 'optax', 'typer', 'rich', 'jinja2', 'matplotlib', 'safetensors', 'psutil',"
        " 'ml_dtypes', 'tiktoken'}\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in blocked: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from common.parity.thresholds import RULES, Rule\n"
        "RULES['five times'] = Rule('five times', 'For these tests.', lambda e, i: dict.fromkeys(e, 5 * i['x']))\n"
        f"sys.argv = ['verify', {str(path)!r}]\n"
        "runpy.run_module('common.parity.verify', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "All verdicts follow from the numbers: 22 errors in 9 rows." in done.stdout
    made["claims"][0]["passed"] = False
    path.write_text(certificate.dumps(made))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "claim C1: passed is written as false, but true follows." in done.stdout


PLACES = sorted((Path(__file__).parents[2] / "reports" / "parity").glob("*/certificate.json"))
KEPT = [path for path in PLACES if not path.parent.name.endswith("-interrupted")]


def test_a_certificate_is_kept():
    assert KEPT


def drawn_from(found, folder):
    from reports.parity import page

    own, drawn = (folder / "index.html").read_text(encoding="utf-8"), re.compile("<svg.*?</svg>", re.DOTALL)
    return drawn.sub("", own) == drawn.sub("", page.render(found))  # another matplotlib may draw otherwise


@pytest.mark.parametrize("path", [path for path in PLACES if path not in KEPT], ids=lambda path: path.parent.name)
def test_what_was_interrupted_is_kept_as_such(path):
    """It cannot be made again without its device: rules and vectors may have changed since."""
    from common.parity import thresholds

    found = verify.load(path)
    assert not found["passed"]
    assert not found["head"]["complete"]
    if found["head"]["thresholds"] == thresholds.digest():
        assert [str(fault) for fault in verify.faults(found) if fault.place != "vectors"] == []
    assert drawn_from(found, path.parent)


def test_rules_that_judge_as_they_did_are_named_and_others_refused(made, monkeypatch):
    """A reworded or an added rule leaves a certificate as good as it was; a bound that moved does not."""
    made["head"]["thresholds"] = "0" * 64
    made["digests"]["head"] = digest(made["head"])
    made["rules"]["five times"]["why"] = "In other words."
    assert any("made with other thresholds" in sentence for sentence in told(made))
    monkeypatch.setattr(verify.thresholds, "FORMER", {"0" * 64: "words"})
    assert told(made) == []
    assert "by rules before today's (words), which judge its rows as those did" in verify.told(made, [])
    monkeypatch.setitem(RULES, "five times", Rule("five times", "Six.", lambda e, i: dict.fromkeys(e, 6 * i["x"])))
    assert any("bounds" in sentence for sentence in told(made))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.parent.name)
def test_what_is_committed_follows_and_is_complete(path):
    """Made with today's rules and vectors, on a CPU everything tried; the page and the table beside it are drawn from
    it. On a GPU `make gpu-report` tries what minutes allow, and the certificate says so."""
    from reports.parity import matrix

    found = verify.load(path)
    assert [str(fault) for fault in verify.faults(found)] == []
    assert found["passed"]
    assert found["head"]["complete"] is (found["head"]["device"] == "cpu")
    if found["head"]["complete"]:
        assert (path.parent / "mutants.csv").read_text(encoding="utf-8") == matrix.csv(found)
    assert drawn_from(found, path.parent)
