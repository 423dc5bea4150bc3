"""Shared by the tests of weights: the check that a refusal is one sentence, and byte-wise comparison of folders."""

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest

from common import params
from common.config import GPTConfig
from common.errors import UserError


@contextlib.contextmanager
def _refused(*words: str):
    with pytest.raises(UserError) as caught:
        yield
    text = str(caught.value)
    assert text.endswith((".", "?")), text
    assert "\n" not in text, text
    assert not re.search(r"[.!?] +[A-Z]", text), f"more than one sentence: {text}"
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"


@pytest.fixture
def refused():
    """A context in which a UserError of exactly one sentence with the given words must be raised."""
    return _refused


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def contents():
    """Every file of a folder, hidden ones included, by name."""
    return _contents


@pytest.fixture(scope="session")
def tiny() -> GPTConfig:
    """No two dimensions equal, except that the heads share the width."""
    return GPTConfig(53, 11, 12, 2, 3, ff_dim=20)


@pytest.fixture
def weights(tiny) -> dict[str, np.ndarray]:
    return params.randomise(tiny, 7)


def _same(one, other) -> bool:
    return list(one) == list(other) and all(
        one[n].dtype == other[n].dtype and np.array_equal(one[n], other[n]) for n in one
    )


@pytest.fixture
def same():
    """Whether two sets of weights have equal names, order, dtypes and values."""
    return _same
