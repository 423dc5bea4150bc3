"""How well a classifier does: losses and classes of texts, what it confuses, and simpler classifiers beside it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from common import backend as door
from common.backend import IGNORED
from common.data.labelled import Labelled, Parts, TextExamples
from common.errors import UserError

ROUNDS = 1000  # of the logistic regression, at most


class Scores(NamedTuple):
    """Log-probabilities of the classes [n, C] in nats, and the right classes [n], of n texts."""

    log_probs: np.ndarray
    labels: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The likeliest class of every text, [n]."""
        return self.log_probs.argmax(-1)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return float(-self.log_probs[np.arange(len(self.labels)), self.labels].mean())

    @property
    def accuracy(self) -> float:
        return float((self.predicted == self.labels).mean())

    def confusion(self) -> list[list[int]]:
        """How many texts of a class (row) were taken for which (column)."""
        classes = self.log_probs.shape[1]
        pairs = self.labels * classes + self.predicted
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).tolist()


def scores(model: door.Model, examples: TextExamples, batch: int, count: int | None = None) -> Scores:
    """Those of the first `count` texts (None: all), of which `batch` are computed at once; the last ones are filled up
    with copies, so that all batches have one size."""
    count = len(examples) if count is None else min(count, len(examples))
    logits, labels = [], []
    for start in range(0, count, batch):
        chosen = np.minimum(np.arange(start, start + batch), count - 1)
        inputs, targets = examples.gather(chosen)
        kept, place = min(batch, count - start), (targets != IGNORED).argmax(-1)[:, None]
        found = model.forward(inputs).logits
        logits.append(np.take_along_axis(found, place[..., None], 1)[:kept, 0].astype(np.float64))
        labels.append(np.take_along_axis(targets, place, 1)[:kept, 0])
    logits = np.concatenate(logits)
    peak = logits.max(-1, keepdims=True)
    log_probs = logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))
    return Scores(log_probs, np.concatenate(labels).astype(np.int64))


def baselines(parts: Parts) -> dict[str, dict[str, float]]:
    """Accuracy on each part of what a language model has to beat: the most frequent class, and a logistic regression on
    bags of words; both learn from the first part. Source: Raschka, bonus material of chapter 6."""
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise UserError("The baseline needs the package scikit-learn; install it, or say --no-baseline.") from error
    train: Labelled = parts.train
    most = int(np.bincount(train.labels).argmax())
    words = CountVectorizer()
    try:
        learnt = LogisticRegression(max_iter=ROUNDS).fit(words.fit_transform(train.texts), train.labels)
    except ValueError:  # texts without a single word
        learnt = None
    found: dict[str, dict[str, float]] = {"majority class": {}, "bag of words": {}}
    for name, part in parts._asdict().items():
        found["majority class"][name] = float((part.labels == most).mean())
        if learnt is not None:
            right = learnt.predict(words.transform(part.texts)) == part.labels
            found["bag of words"][name] = float(right.mean())
    return {name: one for name, one in found.items() if one}


def table(accuracies: Mapping[str, Mapping[str, float]]) -> str:
    """Accuracies by part, a line for every classifier."""
    wide = max(map(len, accuracies))
    lines = [" " * wide + "".join(f"{name:>12}" for name in Parts._fields)]
    lines += [
        f"{name:<{wide}}" + "".join(f"{one[part]:>12.2%}" for part in Parts._fields) for name, one in accuracies.items()
    ]
    return "\n".join(lines)


def confusion_table(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Right classes down, predicted ones across."""
    wide = max(8, *(len(name) + 2 for name in names))
    lines = [f"{'is / said':<{wide + 2}}" + "".join(f"{name:>{wide}}" for name in names)]
    lines += [
        f"{name:<{wide + 2}}" + "".join(f"{count:>{wide}}" for count in row)
        for name, row in zip(names, counts, strict=True)
    ]
    return "\n".join(lines)


def probabilities(model: door.Model, examples: TextExamples, batch: int) -> np.ndarray:
    """Those of the classes [n, C] of all texts."""
    found: Any = np.exp(scores(model, examples, batch).log_probs)
    return found
