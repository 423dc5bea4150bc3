"""What fine-tuning brings to C1: rows of data by the bit, adapters as they begin, and what is measured of answers.

Data are held against hashes of what they always were (`known.py`); what is measured is counted anew, number by number,
of a model whose scores are whole numbers.
"""

import math
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np

from common import adapters, params
from common.backend import IGNORED
from common.config import preset
from common.data import examples, instructions, labelled, preferences
from common.parity import known
from common.parity.known import sha256
from common.preference import Preference
from common.tokenizers import tokenizer
from common.tuning import answers, classes
from common.tuning import preferences as pairs

CLOSE = 1e-12  # relative: a sum of a dozen terms, in another order
SCORES = 11  # how many values a score of the model below can have


def counts() -> dict[str, int]:
    """By the name of a row: how many things are not what they must be."""
    return {name: count() for name, count in ROWS.items()}


# --- rows of data ----------------------------------------------------------------------------------------------------


def _labelled_texts() -> int:
    """Balanced, split and laid out in every way; both the texts that are kept and their order are part of the hash."""
    texts = [known.TEXT[: 3 + number % 11] + chr(97 + number) for number in range(23)]
    data = labelled.Labelled(texts, np.array([number % 7 % 3 for number in range(23)]), ("a", "b", "c"))
    even = labelled.balance(data, known.SEED)
    parts = labelled.split(even, (0.5, 0.2, 0.3), known.SEED)
    found = [" ".join([*one.texts, *map(str, one.labels)]) for one in (even, *parts)]
    ids = [tokenizer("bytes").encode(text) for text in parts.train.texts]
    for read in labelled.READ:
        for pad_to, length, multiple in (("length", None, 1), ("batch", 9, 4), ("batch", None, 3)):
            settings = {"length": length, "pad_id": 3, "read": read, "pad_to": pad_to, "multiple": multiple}
            rows = labelled.TextExamples(ids, parts.train.labels, **settings)
            found += [*rows.gather(np.arange(6).reshape(2, 3)), *rows.gather(np.array([[1], [0]])), str(rows.truncated)]
    return int(sha256(*found) != known.LABELLED)


def _instructions() -> int:
    """Every style, with and without the instruction, cut and whole."""
    found: list[str | np.ndarray] = [" ".join(map(str, instructions.split_in_order(range(20))))]
    for style in instructions.STYLES:
        found.append(instructions.answer(instructions.response(known.ROWS[0], style), style))
        for masked, length, multiple in ((False, None, 1), (True, None, 8), (True, 200, 1), (True, 90, 1)):
            settings = {"length": length, "multiple": multiple, "mask_instruction": masked, "pad_id": 5}
            rows = instructions.InstructionExamples(
                known.ROWS, tokenizer("bytes"), style=style, end_id=known.END, **settings
            )
            found += [*rows.gather(np.array([[2, 0], [1, 1]])), f"{rows.truncated} {rows.unanswered}"]
    return int(sha256(*found) != known.INSTRUCTIONS)


def _pairs_of_answers() -> int:
    """Every mask of the prompt, with and without the end, and what a reference says of each row."""
    found = []
    for mask in preferences.MASKS:
        for end_counts, length, multiple in ((False, None, 1), (True, None, 8), (False, 200, 1)):
            rows = _preferred(mask_prompt=mask, end_counts=end_counts, length=length, multiple=multiple)
            inputs, targets = rows.with_reference(-np.arange(6.0).reshape(3, 2)).gather(np.array([[2, 0], [1, 1]]))
            found += [inputs, targets.labels, targets.reference, str(rows.truncated)]
    return int(sha256(*found) != known.PAIRS_OF_ANSWERS)


def _preferred(**settings) -> preferences.PreferenceExamples:
    settings = {"preference": Preference(), **settings}
    return preferences.PreferenceExamples(known.ROWS, tokenizer("bytes"), end_id=known.END, **settings)


def _initial_adapters() -> int:
    """What is added to a model, with DoRA and without, keyed by name; everything else stays."""
    config = preset(known.PRESET)
    weights = params.initialise(config, known.SEED)
    plain = adapters.Adapter(rank=3, alpha=6.0)
    turned = plain.with_(name="turned", targets=("*.v_proj", "*.down_proj"), dora=True)
    grown, made = adapters.add(*adapters.add(config, weights, plain, known.SEED), turned, known.SEED)
    found = [part for name in adapters.names(grown) for part in (name, made[name])]
    return int(sha256(*found) != known.ADAPTERS) + int(not np.array_equal(made["model.norm.weight"], np.ones(128)))


# --- what is measured ------------------------------------------------------------------------------------------------


class Counted:
    """A model by its door, as far as measures need it: the score of class v after id i at position t is (7 i + 3 v + 5
    t) mod 11, and that of a token is minus its score, as if it were log p."""

    def forward(self, ids):
        ids = np.asarray(ids)
        places = 5 * np.arange(ids.shape[1])[None, :, None]
        return SimpleNamespace(logits=(7 * ids[..., None] + 3 * np.arange(3) + places) % SCORES * 1.0)

    def log_probs(self, ids, targets):
        found = -((7 * ids + 3 * targets + 5 * np.arange(ids.shape[1])) % SCORES * 1.0)
        counts = targets != IGNORED
        return np.where(counts, found, 0.0).sum(-1), counts.sum(-1)

    def loss(self, ids, targets):
        sums, counts = self.log_probs(ids, targets)
        return -sums.sum() / counts.sum()


def _classes() -> int:
    """The scores at the token that is read, of batches that do not divide the texts: classes, confusion and loss."""
    ids, labels = [np.arange(2 + 3 * number, 4 + 4 * number) for number in range(5)], np.array([0, 2, 1, 1, 0])
    rows = labelled.TextExamples(ids, labels, pad_id=1, read="flexible", pad_to="batch")
    found, wrong = classes.scores(Counted(), rows, 2), 0
    confusion, losses = np.zeros((3, 3), int), []
    for row, label in zip(ids, labels, strict=True):
        at = len(row) - 1
        scores = [float((7 * row[at] + 3 * v + 5 * at) % SCORES) for v in range(3)]
        confusion[label, int(np.argmax(scores))] += 1
        losses.append(math.log(math.fsum(map(math.exp, scores))) - scores[label])
    wrong += found.confusion() != confusion.tolist()
    wrong += not math.isclose(found.loss, math.fsum(losses) / len(losses), rel_tol=CLOSE)
    return wrong + (found.accuracy != np.trace(confusion) / len(labels))


def _answers() -> int:
    """The mean over tokens, not over batches: these count unequally."""
    rows = instructions.InstructionExamples(known.ROWS, tokenizer("bytes"), end_id=known.END, mask_instruction=True)
    each = [Counted().log_probs(*rows.gather(np.array([number]))) for number in range(len(rows))]
    want = -sum(float(sums[0]) for sums, _ in each) / sum(int(counts[0]) for _, counts in each)
    return int(not math.isclose(answers.loss(Counted(), rows, 2), want, rel_tol=CLOSE))


def _preferences() -> int:
    """Log-probabilities of both answers, a reference's beside them: loss, rewards, margin and accuracy."""
    wrong = 0
    for settings in (Preference(), Preference("ipo", beta=0.3), Preference("simpo", beta=2.0, gamma=0.5)):
        rows = _preferred(preference=settings, mask_prompt="exact").with_reference(-np.arange(6.0).reshape(3, 2))
        found, want = pairs.measured(Counted(), rows, Counted, 2), []
        for number in range(len(rows)):
            sides = []
            for side in range(2):
                tokens, labels = rows.tokens[2 * number + side], rows.labels[2 * number + side]
                terms = [-float((7 * tokens[t] + 3 * labels[t] + 5 * t) % SCORES) for t in _counted(labels)]
                held = sum(terms) / (len(terms) if settings.reduction == "mean" else 1)
                sides.append(held + (2.0 * number + side if settings.needs_reference else 0.0))
            want.append((*sides, sides[0] - sides[1], sides[0] > sides[1], _loss(sides[0] - sides[1], settings)))
        names = ("chosen", "rejected", "margin", "accuracy", "loss")
        columns = zip(*want, strict=True)
        means = {name: math.fsum(column) / len(want) for name, column in zip(names, columns, strict=True)}
        wrong += sum(not math.isclose(found[name], means[name], rel_tol=CLOSE) for name in names)
    return wrong


def _counted(labels: np.ndarray) -> Iterator[int]:
    return (t for t, label in enumerate(labels) if label != IGNORED)


def _loss(ahead: float, settings: Preference) -> float:
    if settings.loss == "ipo":
        return (ahead - 1 / (2 * settings.beta)) ** 2
    return math.log1p(math.exp(-(settings.beta * ahead - settings.gamma)))


def _rectangles() -> int:
    """Rows of unequal length counted by hand: what is shifted, filled up and left uncounted."""
    wrong = 0
    for given, (tokens, targets, cut) in known.SHIFTED:
        found = examples.shifted(*given[:-1], end_counts=given[-1])
        wrong += found[0].tolist() != list(tokens) or found[1].tolist() != list(targets) or found[2] is not cut
    rows = [np.array([1, 2, 3]), np.array([4, 5, 6, 7, 8])]
    inputs, targets = examples.collated(rows, [row[1:] for row in rows], np.array([0, 1]), 9)
    wrong += inputs.tolist() != [[1, 2, 3, 9], [4, 5, 6, 7]]
    return wrong + (targets.tolist() != [[2, 3, IGNORED, IGNORED], [5, 6, 7, 8]])


ROWS = {
    "rectangles": _rectangles,
    "labelled texts": _labelled_texts,
    "instructions": _instructions,
    "pairs of answers": _pairs_of_answers,
    "initial adapters": _initial_adapters,
    "measures of classes": _classes,
    "measures of answers": _answers,
    "measures of preferences": _preferences,
}
