"""A certificate of claims that compute nothing: two implementations, two cases, errors that are written down here."""

from types import SimpleNamespace

import pytest

from common.errors import UserError
from common.parity import certificate, thresholds
from common.parity.rows import Exhibit, Row, exact
from common.parity.run import run
from common.parity.trial import Session

CASES = ("mlp", "gpt")


FIVE = thresholds.Rule("five times", "For these tests.", lambda errors, inputs: dict.fromkeys(errors, 5 * inputs["x"]))


@pytest.fixture(autouse=True, scope="session")
def rule():
    """A rule of our own, so that these tests do not move with the real ones."""
    thresholds.RULES[FIVE.name] = FIVE
    yield
    del thresholds.RULES[FIVE.name]


class Subject:
    """A backend as far as a certificate asks one."""

    def __init__(self, title):
        self.title = title

    def versions(self):
        return {self.title.lower(): "1.2.3"}

    def threads(self):
        return 2

    def build(self, config, weights, execution):
        if execution.device != "cpu":
            raise UserError(f"{self.title} sees no device {execution.device!r}; it sees cpu.")


def rows_of(case):
    """Rows under three rules: bits, float64, and one that needs another number."""
    errors = {"torch": 3e-16, "jax": 5e-16, "torch/jax": 4e-16}
    yield Row("C2", case, "logits", "float64", "float64", errors, size=40, where="jax [1, 2]")
    yield Row("C2", case, "loss", "float64", "float64", {"torch": 0.0, "jax": 1e-16, "torch/jax": 1e-16})
    yield Row("C2", case, "after", "float32", "five times", {"torch": 2e-7, "jax": 3e-7}, {"x": 1e-7}, note="moved")


LISTED = [{"name": "a", "value": 1.5}, {"name": "b", "value": float("nan")}]
CLAIMS = [
    SimpleNamespace(
        NAME="C1",
        TITLE="bits",
        SENTENCE="Random words are equal.",
        for_case=lambda trial: iter([exact("C1", trial.case.name, "words", {"torch": 0, "jax": 0}, size=64)]),
        declared=lambda trial: {("words", "exact")},
        once=lambda session: iter([exact("C1", "", "known answers", {"torch": 0, "jax": 0})]),
        declared_once=lambda session: {("known answers", "exact")},
    ),
    SimpleNamespace(
        NAME="C2",
        TITLE="float64 semantics",
        SENTENCE="In float64 all agree.",
        for_case=lambda trial: rows_of(trial.case.name),
        declared=lambda trial: {("logits", "float64"), ("loss", "float64"), ("after", "float32")},
        once=lambda session: iter([Exhibit("list", LISTED)]),
        declared_once=lambda session: set(),
    ),
]


@pytest.fixture
def claims():
    return list(CLAIMS)


@pytest.fixture(scope="session")
def session():
    return Session({"torch": Subject("PyTorch"), "jax": Subject("JAX")}, cases=CASES)


@pytest.fixture
def made(session):
    """The certificate of these claims."""
    return certificate.make(run(session, CLAIMS), session, CLAIMS, {"cpu": "a processor"}, {"elsewhere.json": "0" * 64})


@pytest.fixture
def failing(session):
    """The certificate of the same claims with 25 rows too many that fail."""
    wrong = [Row("C2", "gpt", f"tap {i}", "float64", "float64", {"torch": 1e-3, "jax": 1e-16}) for i in range(25)]
    findings = run(session, CLAIMS)
    findings.rows += [*wrong[:-1], Row("C2", "gpt", "raised", "exact", "exact", {"run": 1.0}, note="KeyError: 'x'")]
    return certificate.make(findings, session, CLAIMS)


@pytest.fixture
def bugs():
    """What C6 shows: a bug that was noticed, one that was not, and one that changes nothing."""
    noticed = {"claim": "C2", "case": "gpt", "row": "logits", "tier": "float64", "error": 0.02, "bound": 1e-12}
    nothing = {"claim": "", "case": "", "row": "", "tier": "", "error": 0.0, "bound": 0.0}
    about = {"component": "attention", "what": "scale by the width", "equivalent": ""}
    return [
        {"id": "scale", **about, "place": "torch", "killed": True, **noticed},
        {"id": "mask", **about, "place": "jax", "killed": False, **nothing},
        {"id": "order", **about, "place": "jax", "killed": False, **nothing, "equivalent": "sums commute"},
    ]


@pytest.fixture
def subjects():
    return {"torch": Subject("PyTorch"), "jax": Subject("JAX")}


@pytest.fixture
def stored(made, tmp_path):
    path = tmp_path / "certificate.json"
    certificate.write(made, path)
    return path
