"""Every rule by which an error is judged, in one file, each with its derivation. The file's hash is in the certificate.

A rule turns the errors of one row and a few numbers beside them into the bound of every error. Nothing else in the
project decides whether a claim holds, so `verify` can recompute each verdict with nothing but the numbers.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Numbers = Mapping[str, float]
ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "tf32": 2.0**-11, "bfloat16": 2.0**-8}
NOISE = {"float32": 5.0, "tf32": 5.0, "bfloat16": 2.0}  # rules "noise" and "noise, 16 bits"
ULPS = {  # the larger one of PyTorch and XLA as measured, by function
    "peak": {"exp": 1.0, "log": 1.1, "tanh": 4.6, "erf": 5.3, "rsqrt": 1.6, "gelu_tanh": 2.3, "gelu": 5.1},
    "p99": {"exp": 0.7, "log": 0.5, "tanh": 3.2, "erf": 2.8, "rsqrt": 1.1, "gelu_tanh": 1.2, "gelu": 2.2},
}
EXACT = 1e-12  # rule "float64"
GUMBEL = 2e-6  # float32 noise of the shared generator: measured 9.5e-7 off at most
HEADROOM = 1e5  # a rule whose every error stays this far below its bound is too loose to prove anything


STUDENT = {8: 7.12}  # by degrees of freedom: Student's |t| is larger once in 1e4


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
        best = min(error for other, error in errors.items() if other != name)
        return 2 * inputs["spread"] * best + inputs["unit"] + ULPS["p99"]["tanh"] * inputs["sums"]

    return {name: bound(name) for name in errors}


def _field(errors: Numbers, inputs: Numbers) -> dict[str, float]:
    return {name: 2e-12 / inputs["change"] if name.endswith(" change") else 1e-12 for name in errors}


def _steps(unit: float, depth: float = 1) -> float:
    """The error of that many steps of a tier: a rounding of bfloat16 is large beside the float32 sums behind it."""
    if unit == ROUNDOFF["float64"]:
        return 1e-12
    return (8 if unit == ROUNDOFF["bfloat16"] else 32) * unit * depth**0.5


def _tap(inputs: Numbers) -> float:
    return 0.9 * inputs["unit"] + math.sqrt(inputs["terms"]) * inputs["sums"]


def _adapted(errors: Numbers, inputs: Numbers) -> dict[str, float]:
    return {name: math.hypot(_tap(inputs), inputs[f"within {name}"]) for name in errors}


def _nats(errors: Numbers, inputs: Numbers) -> dict[str, float]:
    return dict.fromkeys(errors, 1e-2 * max(1.0, inputs.get("logits", 0.0) / 4) ** 2)


def _trajectory(errors: Numbers, inputs: Numbers) -> dict[str, float]:
    walk = inputs["unit"] * math.sqrt(inputs["steps"]) / 2
    return dict.fromkeys(errors, 2 * STUDENT[int(inputs["coins"])] * inputs["control"] + walk)


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
            "Neither wing may be more than twice as far from the oracle as the other, times the spread of luck, plus"
            " one unit roundoff and the worst elementwise function, XLA's float32 tanh (99 % within 3.2 ulps,"
            " PyTorch's within 0.5). The spread is measured on the case: the largest over the smallest error of runs of"
            " one float64 program that differ only in their noise. Measured: up to 0.8 of the bound.",
            _two_sided,
        ),
        Rule(
            "trajectory",
            "What grows in training grows along a few directions, in the worst case along one: then a distance is the"
            " absolute value of one normal number, and of runs that part by nothing but one ulp in every weight some"
            " end ten times farther than others (measured: 2e-5 to 5e-4 after 201 steps). The control is the RMS of"
            " eight such runs; a distance over it is Student's t with 8 degrees of freedom, beyond 7.1 once in 1e4."
            " Twice that, because a wing rounds at every step and not once (measured: 1.1 to 2.5 times from a change of"
            " framework), plus u sqrt(steps) / 2: each update is rounded too, a walk at random that the control does"
            " not take, for it rounds as its original does. Bugs were measured at 53 to 4,935 times the control.",
            _trajectory,
        ),
        Rule(
            "noise",
            "5 times the RMS error of the oracle with noise of one unit roundoff at every tap and in every weight (8"
            " runs): it knows the conditioning, and rounds once where sums round often. Measured in float32: 0.3 to 1.6"
            " of it.",
            _of_input(NOISE["float32"], "noise"),
        ),
        Rule(
            "noise, 16 bits",
            "The same, 2 times: in bfloat16 sums are kept in float32, so that taps are nearly all that rounds."
            " Measured: 0.26 to 0.55.",
            _of_input(NOISE["bfloat16"], "noise"),
        ),
        Rule(
            "own rounding",
            "From the values at the taps before it, the oracle computes each tap; what an implementation is off from"
            " that is its own. One to three roundings of u (relative RMS 0.42 sqrt(n) u; measured 0.35 to 0.78 over 15"
            " models) and sums of n terms, whose roundings add like a random walk (in float32 measured up to 0.3 of"
            " sqrt(n) u_sums): 0.9 u + sqrt(n) u_sums. A LayerNorm that reduces in bfloat16 has 0.95 to 1.3 u.",
            lambda errors, inputs: dict.fromkeys(errors, _tap(inputs)),
        ),
        Rule(
            "own rounding, adapters",
            "A linear map with adapters rounds several times between two taps: W x, A x, B A x, its scale, the sum, and"
            " with magnitudes three times more. What that comes to the oracle knows, from the same values at the taps"
            " before, by rounding each of these: added to the bound of any tap as errors of either sign add up, in"
            " squares. Measured: 0.8 to 1.1 times the oracle's in bfloat16.",
            _adapted,
        ),
        Rule(
            "matmul",
            "abs(error) <= (2 sqrt(n) u_sums + 2 u) (abs(x) abs(W)^T + abs(b)) for every element of a linear layer with"
            " sums of n terms: the worst case grows like n, a random walk like sqrt(n), the largest of many like twice"
            " that; then the product and the bias are each rounded to u.",
            lambda errors, inputs: dict.fromkeys(
                errors, 2 * math.sqrt(inputs["terms"]) * inputs["sums"] + 2 * inputs["unit"]
            ),
        ),
        Rule(
            "loss",
            "5 times the RMS of what the noise does to the loss (one number, so luck: five deviations), plus 16 float32"
            " roundoffs of the largest logit for its sums.",
            lambda errors, inputs: dict.fromkeys(errors, 5 * inputs["noise"] + 16 * inputs["sums"]),
        ),
        Rule(
            "loss of own logits",
            "A loss is summed in float32 in every tier: from the logits that an implementation itself gives, 16"
            " roundoffs (exp, log, division and short sums: measured up to 3.2). A loss in bfloat16 is off by"
            " thousands.",
            lambda errors, inputs: dict.fromkeys(errors, 16 * inputs["sums"]),
        ),
        Rule(
            "nats",
            "KL(oracle || own) at the worst position, in nats. Relative errors of e in logits of size s cost"
            " (e s)^2 / 2; 3 % of logits of size 4 make 0.007, so 1e-2, and (s / 4)^2 times that where logits are"
            " larger (s: the RMS about their mean at the position where it is largest). Measured: 8e-5 to 9.4e-3, and"
            " 1.05e-2 at size 6.4, where it is 2.6e-2 (noise of one roundoff at every tap: 0.6 to 15e-2).",
            _nats,
        ),
        Rule(
            "ulps",
            "Twice the larger of what PyTorch and XLA on CPU were measured at: the two are built on other polynomials,"
            " so the ratio rule does not apply.",
            _of_input(2.0, "measured"),
        ),
        Rule(
            "control",
            "The error of a float64 run whose weights were each moved by one rounding of the tier, times 5: that run"
            " knows the conditioning. It rounds once where the tier rounds after every operation; measured: 2.9.",
            _of_input(5.0, "control"),
        ),
        Rule(
            "gradients",
            "5 times the RMS error of float64 gradients with every weight (and a component's input) moved by one"
            " rounding of the tier, plus the worst elementwise function, as above. Measured: 0.2 to 3.7 times these"
            " runs; up to 0.8 of the bound.",
            lambda errors, inputs: dict.fromkeys(errors, 5 * inputs["control"] + ULPS["p99"]["tanh"] * inputs["sums"]),
        ),
        Rule(
            "edge float32",
            "The edges that run in float32 are made of numbers that float32 holds exactly, so that only exp, tanh,"
            " divisions and sums round: measured 8.4 unit roundoffs (XLA's tanh), so 64; a wrong mask moves 1e-1.",
            _constant(64 * ROUNDOFF["float32"]),
        ),
        Rule(
            "edge bfloat16",
            "As many unit roundoffs of bfloat16 as the edge says for each output: two to four times what the wings were"
            " measured at in any mode on a CPU. Every bug for which an edge is there lies at twice the bound or more in"
            " one of the outputs.",
            lambda errors, inputs: dict.fromkeys(errors, inputs["roundings"] * inputs["unit"]),
        ),
        Rule(
            "field",
            "Outputs before and after the change of a field: 1e-12 as for float64. The change itself is a difference of"
            " two such outputs, so it is known to 2e-12 of them, which is 2e-12/change of the change.",
            _field,
        ),
        Rule(
            "diverge own",
            "One named value made from the one before, against float64: 32 roundings in float32 (measured 7.5, sums"
            " of 3,072 terms), 8 in bfloat16, whose sums are in float32 (measured 0.9); in float64 1e-12, as"
            " elsewhere (measured 2e-15).",
            lambda errors, inputs: dict.fromkeys(errors, _steps(inputs["unit"])),
        ),
        Rule(
            "diverge gap",
            "Between two implementations after n named values: the own error of each, times sqrt(n), as errors of"
            " either sign add up. Measured over 12 layers: 5.9 sqrt(n) roundings in float32, 3.1 sqrt(n) in bfloat16;"
            " in float64 1e-12, as elsewhere.",
            lambda errors, inputs: dict.fromkeys(errors, _steps(inputs["unit"], inputs["depth"])),
        ),
    )
}


FORMER = {  # files before this one, by digest, whose rows this one judges as they did: what has changed since
    "7096dc4d6e608593cf56bdcdba5cfe61d465cb3160ad5115be723e18af813a9b": "nats were 1e-2 for logits of any size",
    "d8c5d325518d6520c578b0eec0aae3e30f94aa3ccb54db888666b595a7c8992a": "rows without that size were not read",
}


def bounds(rule: str, errors: Numbers, inputs: Numbers) -> dict[str, float]:
    """The bound of every error of a row."""
    return RULES[rule].bounds(errors, inputs)


def digest() -> str:
    """SHA-256 of this file: a certificate names the thresholds that it was made with."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
