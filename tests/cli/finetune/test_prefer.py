"""What a reference says of pairs: precomputed and kept, or asked online."""

import json

import numpy as np
import pytest
from small import log_of


def test_what_the_reference_said_is_kept_and_held_against_the_run(call, tmp_path, asked, monkeypatch):
    """Precomputed and online references train the same model; the file is not computed again, and must be the one."""
    from common.tuning import preferences

    one, two = tmp_path / "precomputed", tmp_path / "online"
    assert call("finetune", "prefer", *asked["prefer"], "--until", 2, "--out", one)[0] == 0
    again = call("finetune", "prefer", *asked["prefer"], "--reference", "online", "--out", two)
    assert again[0] == 0
    reference = one / preferences.FILE
    before = reference.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(preferences, "write", None)
        assert call("finetune", "prefer", "--resume", one)[0] == 0
    for line, other in zip(log_of(one), log_of(two), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert log_of(two)[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)
    found = json.loads((two / "results.json").read_text())
    assert found["train"]["margin"] > found["before"]["train_margin"]
    assert call("finetune", "prefer", *asked["prefer"], "--until", 2, "--out", tmp_path / "x")[0] == 0
    (tmp_path / "x" / preferences.FILE).write_bytes(before + b" ")
    code, _, err = call("finetune", "prefer", "--resume", tmp_path / "x")
    assert (code, "is not what this run wrote there" in err) == (2, True)
    (tmp_path / "x" / preferences.FILE).unlink()
    code, _, err = call("finetune", "prefer", "--resume", tmp_path / "x")
    assert (code, "is missing" in err) == (2, True)
