"""The command: exit codes, sides by path and by attribute, and one clear sentence for every mistake in the call."""

import json
import sys

import pytest


def test_exit_codes_and_json(port, run):
    wrong = port("torch", "masks.py", "(key <= query)", "(key < query)")
    code, out, err = run(wrong, "torch", "--case", "gpt", "--json")
    found = json.loads(out)
    assert code == 1
    assert (found["agree"], found["first"]) == (False, "model.layers.0.self_attn.scores")
    assert [row["mark"] for row in found["rows"]].count("PARTS") == 1
    assert "Asking the oracle" in err, "progress is for stderr"
    code, out, _ = run("torch", "numpy", "--case", "gpt")
    assert code == 0
    assert "They agree: 25 values" in out


def test_a_port_by_module_and_attribute(port, run, monkeypatch):
    folder = port("torch", "masks.py", "(key <= query)", "(key < query)")
    monkeypatch.syspath_prepend(str(folder.parent))
    code, out, _ = run("my_port.backend:backend", "torch", "--case", "gpt", "--json")
    assert (code, json.loads(out)["first"]) == (1, "model.layers.0.self_attn.scores")


def test_taps_narrow_what_is_looked_at(port, run):
    wrong = port("torch", "masks.py", "(key <= query)", "(key < query)")
    code, out, _ = run(wrong, "torch", "--case", "gpt", "--taps", "mlp.*", "--json")
    names = [row["name"] for row in json.loads(out)["rows"] if row["stage"] == "forward"]
    assert code == 1
    assert names == [f"model.layers.{i}.mlp.{leaf}" for i in range(2) for leaf in ("hidden", "output")]


def test_a_bound_of_ones_own(port, run):
    wrong = port("torch", "layers.py", "variance + self.eps", "variance + 1.001 * self.eps")
    assert run(wrong, "torch", "--case", "gpt")[0] == 1
    assert run(wrong, "torch", "--case", "gpt", "--bound", "1e-3")[0] == 0


MISTAKES = {
    "a name nearly right": (["torhc", "jax"], "Unknown implementation 'torhc': did you mean 'torch'?"),
    "no such path": (["torch", "./nowhere"], "There is nothing at ./nowhere"),
    "ids outside the vocabulary": (["torch", "jax", "--ids", "1,2,999"], "Token id 999 at [2]"),
    "ids that are no numbers": (["torch", "jax", "--ids", "1,two"], "'1,two' is no list of token ids"),
    "too long": (["torch", "jax", "--length", "5000"], "5000 tokens do not fit in the context of 300."),
    "weights missing": (["torch", "jax", "--weights", "nowhere.pth"], "There is nothing at nowhere.pth"),
    "an unknown case": (["torch", "jax", "--case", "gtp"], "Unknown case 'gtp': did you mean 'gpt'"),
    "an unknown preset": (["torch", "jax", "--preset", "gpt2-124"], "did you mean 'gpt2-124m'"),
    "two models": (["torch", "jax", "--case", "gpt", "--preset", "nano"], "give one at most"),
    "two inputs": (["torch", "jax", "--ids", "1,2", "--prompt", "a"], "give one of them"),
    "ids and a length": (["torch", "jax", "--ids", "1,2", "--length", "7"], "leave them out"),
    "an unknown dtype": (["torch", "jax", "--dtype", "f64"], "Unknown dtype 'f64'"),
    "no bound": (["torch", "jax", "--bound", "0"], "--bound 0 is no bound"),
    "no such tap": (["torch", "numpy", "--case", "gpt", "--taps", "scroes"], "Unknown name in --taps 'scroes'"),
    "padding in gradients": (["torch", "jax", "--ids", "1,2", "--ids", "3", "--gradients"], "take no padding"),
    "no such module": (["torch", "nowhere.port:backend"], "ModuleNotFoundError: No module named 'nowhere'"),
    "no such attribute": (["torch", "torch_impl.backend:backnd"], "did you mean 'backend'"),
    "no backend": (["torch", "common.cases:CASES"], "has no build(config, weights, execution)"),
    "no tokenizer": (["torch", "jax", "--prompt", "hello"], "No tokenizer has 211 tokens"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_told_in_one_sentence(what, run):
    arguments, words = MISTAKES[what]
    code, out, err = run(*arguments)
    said = err.strip().splitlines()[-1]
    assert (code, out) == (2, "")
    assert said.startswith("parallax: ")
    assert words in said
    assert said.endswith((".", "?"))


def test_folders_that_are_no_side(tmp_path, run):
    (tmp_path / "empty").mkdir()
    assert "has neither a backend.py" in run("torch", tmp_path / "empty")[2]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "backend.py").write_text("import nowhere_at_all\n")
    assert "broken cannot be imported: ModuleNotFoundError" in run("torch", tmp_path / "broken")[2]
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "backend.py").write_text("x = 1\n")
    assert "bare/backend.py has no `backend`" in run("torch", tmp_path / "bare")[2]
    (tmp_path / "file.pth").write_text("")
    assert "is a file; give weights with --weights" in run("torch", tmp_path / "file.pth")[2]


def test_a_port_that_raises_is_told_with_its_line(port, run):
    wrong = port("torch", "masks.py", "return (key", "raise IndexError('no such key')\n    return (key")
    code, _, err = run(wrong, "torch", "--case", "gpt")
    assert code == 2
    assert "my_port failed in forward: IndexError: no such key (masks.py, line 13)." in err


def test_without_transformers_the_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # what Python does for a package that is not there
    monkeypatch.delitem(sys.modules, "torch_impl.transformers_gpt2", raising=False)
    code, _, err = run("torch", "transformers")
    assert code == 2
    assert "pip install 'parallax[test]'" in err
