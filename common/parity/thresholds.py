"""Every rule by which an error is judged, in one file, each with its derivation. The file's hash is in the certificate.

A rule turns the errors of one row and a few numbers beside them into the bound of every error. Nothing else in the
project decides whether a claim holds, so `verify` can recompute each verdict with nothing but the numbers.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Numbers = Mapping[str, float]
ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "tf32": 2.0**-11, "bfloat16": 2.0**-8}
HEADROOM = 1e5  # a rule whose every error stays this far below its bound is too loose to prove anything


@dataclass(frozen=True)
class Rule:
    """`bounds(errors, inputs)` gives the bound of every error by name; `why` derives it in a sentence or two."""

    name: str
    why: str
    bounds: Callable[[Numbers, Numbers], dict[str, float]]


def _constant(bound: float) -> Callable[[Numbers, Numbers], dict[str, float]]:
    return lambda errors, inputs: dict.fromkeys(errors, bound)


def _of_input(factor: float, name: str) -> Callable[[Numbers, Numbers], dict[str, float]]:
    return lambda errors, inputs: dict.fromkeys(errors, factor * inputs[name])


def _two_sided(errors: Numbers, inputs: Numbers) -> dict[str, float]:
    def bound(name: str) -> float:
        return 2 * min(error for other, error in errors.items() if other != name) + 2 * inputs["unit"]

    return {name: bound(name) for name in errors}


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("exact", "Bits, names, counts and decisions are equal or they are not.", _constant(0.0)),
        Rule(
            "float64",
            "1e-12 relative: rounding at these depths was measured at 4e-16 to 8e-15, planted bugs at 1e-7 and more;"
            " a thousand times the rounding, a hundred-thousandth of a bug.",
            _constant(1e-12),
        ),
        Rule(
            "dead",
            "A gradient that is zero in theory, as a share of the RMS of all gradients: rounding was measured at 3e-16,"
            " so 1e-13 leaves the same room as elsewhere.",
            _constant(1e-13),
        ),
        Rule(
            "two-sided",
            "Neither wing may be more than twice as far from the oracle as the other, plus two unit roundoffs for"
            " errors so small that luck decides. Measured over all cases: at most 2.02 without the roundoffs (XLA's"
            " tanh).",
            _two_sided,
        ),
        Rule(
            "control",
            "The error of a float64 run whose weights were each moved by one rounding of the tier, times 5: that run"
            " knows the conditioning. It rounds once where the tier rounds after every operation; measured: 2.9.",
            _of_input(5.0, "control"),
        ),
    )
}


def bounds(rule: str, errors: Numbers, inputs: Numbers) -> dict[str, float]:
    """The bound of every error of a row."""
    return RULES[rule].bounds(errors, inputs)


def digest() -> str:
    """SHA-256 of this file: a certificate names the thresholds that it was made with."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
