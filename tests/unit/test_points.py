"""Entry points are found with and without an installation."""

from importlib import metadata
from importlib.metadata import EntryPoint

import pytest

from common import cli, points
from common.errors import UserError

GROUP = "parallax.backends"


def test_a_checkout_runs_uninstalled(monkeypatch):
    monkeypatch.setattr(metadata, "entry_points", lambda group: ())
    assert {point.name for point in points.entry_points(GROUP)} == {"numpy", "torch", "jax"}
    assert points.entry_points("parallax.nothing") == ()
    assert "bench" in {point.name for point in points.entry_points("parallax.commands")}


def test_what_is_installed_comes_first_and_once(monkeypatch):
    theirs = (EntryPoint("mlx", "another.wing:backend", GROUP), EntryPoint("jax", "another.jax:backend", GROUP))
    monkeypatch.setattr(metadata, "entry_points", lambda group: theirs)
    found = points.entry_points(GROUP)
    assert found[:2] == theirs
    assert sorted(point.name for point in found) == ["jax", "mlx", "numpy", "torch"]


def test_a_wheel_has_no_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(metadata, "entry_points", lambda group: ())
    monkeypatch.setattr(points, "CHECKOUT", tmp_path / "pyproject.toml")
    points._declared.cache_clear()
    try:
        assert points.entry_points(GROUP) == ()
        with pytest.raises(UserError, match="Unknown command 'bench'"):
            cli.app(["bench"])
    finally:
        points._declared.cache_clear()
