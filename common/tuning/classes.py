"""How well a classifier does: losses and classes of texts, what it confuses, and simpler classifiers beside it."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from common import backend as door
from common.backend import IGNORED
from common.data.labelled import Labelled, Parts, TextExamples

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
    def right(self) -> np.ndarray:
        """Which texts were taken for what they are, [n]."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

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


def unseen(parts: Parts) -> np.ndarray:
    """Which test texts do not also stand among those trained on, [n]; some sets have texts that occur twice."""
    known = set(parts.train.texts)
    return np.array([text not in known for text in parts.test.texts])


def baselines(parts: Parts) -> dict[str, dict[str, float]]:
    """Accuracy on each part of what a language model has to beat: the most frequent class, and a logistic regression on
    bags of words; both learn from the first part. Texts without words, and Python without scikit-learn, have no bag.
    Source: Raschka, bonus material of chapter 6."""
    most = int(np.bincount(parts.train.labels).argmax())
    found = {"majority class": {name: float((one.labels == most).mean()) for name, one in parts._asdict().items()}}
    words = _bag_of_words(parts.train) if find_spec("sklearn") else None
    if words is not None:
        right = {name: words.predict(one.texts) == one.labels for name, one in parts._asdict().items()}
        found["bag of words"] = {name: float(one.mean()) for name, one in right.items()}
    return found


def _bag_of_words(train: Labelled) -> Any:
    """Counts of words, and a logistic regression on them; None where there are no words."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    try:
        return make_pipeline(CountVectorizer(), LogisticRegression(max_iter=ROUNDS)).fit(train.texts, train.labels)
    except ValueError:
        return None


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
