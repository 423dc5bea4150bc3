"""Labelled texts as batches: padding, the position that is read, and going on after a stop."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import params
from common.backend import IGNORED, load
from common.config import Execution, GPTConfig
from common.data.labelled import Labelled, TextExamples
from common.data.windows import Batches
from common.errors import UserError
from common.tokenizers import tokenizer

PAD = 99
IDS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11]]
LABELS = [1, 0, 2, 1]


def examples(ids=IDS, labels=LABELS, **settings):
    return TextExamples([np.array(row) for row in ids], np.array(labels), **{"pad_id": PAD, **settings})


def read_at(targets):
    """(positions, labels) of the targets that count, one a row."""
    counts = targets != IGNORED
    assert (counts.sum(-1) == 1).all()
    return counts.argmax(-1).tolist(), targets[counts].reshape(targets.shape[:-1]).tolist()


@pytest.mark.parametrize(("read", "places"), [("last", [4, 4, 4]), ("first", [0, 0, 0]), ("flexible", [2, 0, 4])])
def test_texts_are_padded_to_the_longest_of_all(read, places):
    made = examples(read=read)
    inputs, targets = made.gather(np.array([0, 1, 2]))
    assert inputs.tolist() == [[1, 2, 3, PAD, PAD], [4, PAD, PAD, PAD, PAD], [5, 6, 7, 8, 9]]
    assert read_at(targets) == (places, [1, 0, 2])
    assert (made.length, made.truncated, inputs.dtype, targets.dtype) == (5, 0, np.int32, np.int32)


def test_longer_texts_are_cut_and_counted():
    made = examples(length=2, read="flexible")
    inputs, targets = made.gather(np.arange(4))
    assert inputs.tolist() == [[1, 2], [4, PAD], [5, 6], [10, 11]]
    assert read_at(targets)[0] == [1, 0, 1, 1]
    assert made.truncated == 2
    assert examples(length=7).gather(np.array([1]))[0].tolist() == [[4] + [PAD] * 6]


@pytest.mark.parametrize(("read", "places"), [("last", [[2, 2], [1, 1]]), ("flexible", [[2, 0], [0, 1]])])
def test_every_micro_batch_is_padded_to_its_own_longest(read, places):
    inputs, targets = examples(read=read, pad_to="batch").gather(np.array([[0, 1], [1, 3]]))
    assert inputs.tolist() == [[[1, 2, 3], [4, PAD, PAD]], [[4, PAD, PAD], [10, 11, PAD]]]
    assert read_at(targets) == (places, [[1, 0], [0, 1]])


def test_batches_of_one_read_the_last_token_whatever_the_step_needs():
    """No padding, as in the bonus experiments: filling behind a row changes nothing for a causal model."""
    inputs, targets = examples(pad_to="batch").gather(np.arange(4)[:, None])
    assert inputs.shape == (4, 1, 5)
    assert read_at(targets)[0] == [[2], [0], [4], [1]]
    assert examples(pad_to="batch").gather(np.array([[1]]))[0].tolist() == [[[4]]]


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("wing", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("how", [{}, {"causal": False}, {"pooling": "mean"}], ids=["causal", "all", "mean"])
def test_more_padding_is_seen_by_who_looks_behind_a_text_alone(how, wing):
    """A batch by itself, and as one of a step whose other one is longer: the reason for what commands refuse."""
    config = GPTConfig(100, 8, 8, 1, 2, num_labels=3, **how)
    model = load(wing).build(config, params.randomise(config, 1), Execution("float64"))
    made = examples(pad_to="batch")
    alone, step = made.gather(np.array([0])), made.gather(np.array([[0], [2]]))
    assert (alone[0].shape, step[0].shape) == ((1, 3), (2, 1, 5))
    losses = model.loss(*alone), model.loss(step[0][0], step[1][0])
    assert (losses[0] == pytest.approx(losses[1], rel=1e-12)) == (how == {})


def test_widths_are_multiples_but_never_beyond_the_length():
    made = examples(pad_to="batch", multiple=4, length=6)
    assert [made.gather(np.array([i]))[0].shape for i in range(4)] == [(1, 4), (1, 4), (1, 6), (1, 4)]
    assert read_at(made.gather(np.array([0]))[1])[0] == [2]


def test_a_single_index_gives_a_single_row():
    inputs, targets = examples().gather(2)
    assert (inputs.shape, targets.tolist()) == ((5,), [IGNORED] * 4 + [2])


@given(
    st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=9), min_size=2, max_size=8),
    st.integers(1, 10),
    st.sampled_from(["last", "first", "flexible"]),
    st.sampled_from(["length", "batch"]),
    st.integers(1, 4),
)
def test_every_row_is_its_text_and_reads_one_label(ids, length, read, pad_to, multiple):
    labels = np.arange(len(ids))
    made = examples(ids, labels, length=length, read=read, pad_to=pad_to, multiple=multiple)
    inputs, targets = made.gather(labels[None])
    assert inputs.shape == targets.shape
    assert inputs.shape[-1] <= length
    places, learnt = read_at(targets)
    assert learnt == [labels.tolist()]
    for row, own, place in zip(inputs[0], ids, places[0], strict=True):
        text = own[:length]
        assert row.tolist() == text + [PAD] * (len(row) - len(text))
        if read == "flexible":
            assert place == len(text) - 1
        elif read == "first":
            assert place == 0
        else:
            assert place == (length if pad_to == "length" else min(length, max(map(len, ids)))) - 1
    assert made.truncated == sum(len(row) > length for row in ids)


def test_batches_go_on_exactly():
    made = examples(pad_to="batch")
    batches = Batches(made, 1, seed=3, accumulate=2)
    next(batches), next(batches), next(batches)
    again = Batches.resume(examples(pad_to="batch"), json.loads(json.dumps(batches.state())))
    for _ in range(5):
        for one, two in zip(next(batches), next(again), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (examples(ids=[[1, 2, 4], *IDS[1:]]), "sha256 was"),
        (examples(ids=[[1, 2], [3, 4], *IDS[2:]]), "sha256 was"),
        (examples(labels=[0, 1, 2, 1]), "sha256 was"),
        (examples(length=6), "length was 5, is 6"),
        (examples(read="first"), "read was last, is first"),
        (examples(pad_to="batch"), "pad_to was length, is batch"),
        (examples(pad_id=0), "pad_id was 99, is 0"),
    ],
)
def test_state_of_other_texts_is_refused(other, what):
    state = Batches(examples(), 2, seed=0).state()
    with pytest.raises(UserError, match=f"another data set or other texts: .*{what}"):
        Batches.resume(other, state)


def test_too_few_texts_and_wrong_settings():
    with pytest.raises(UserError, match=r"needs 8 texts .* but the data set gives 4; use a larger data set"):
        Batches(examples(), 8, seed=0)
    for settings, told in {
        "read": ("flexibel", "Unknown position to read 'flexibel': did you mean 'flexible'"),
        "pad_to": ("bach", "Unknown padding 'bach': did you mean 'batch'"),
        "length": (0, "length is 0; allowed is a whole number > 0"),
        "multiple": (True, "multiple is True"),
        "labels": ([0, 1], r"4 texts with labels of shape \[2\]"),
        "ids": ([[1], [], [2], [3]], "Text 1 has no tokens"),
    }.items():
        with pytest.raises(UserError, match=told[1]):
            examples(**{settings: told[0]})


def test_texts_of_the_book_have_its_lengths(data_dir):
    """Raschka 2024, section 6.3: 120 tokens are the longest text of its training part; 130, 19 and 38 batches of 8.

    Its choice is pandas's (`sample` with the seed 123, of the messages as pandas reads them), made here by NumPy.
    """
    with (data_dir / "sms_spam" / "SMSSpamCollection").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    kinds = {name: [text for label, text in rows if label == name] for name in ("ham", "spam")}
    assert {name: len(texts) for name, texts in kinds.items()} == {"ham": 4825, "spam": 747}

    def sample(count, size):
        return np.random.RandomState(123).choice(count, size=size, replace=False)

    texts = [kinds["ham"][i] for i in sample(4825, 747)] + kinds["spam"]
    both = Labelled(texts, np.repeat([0, 1], 747), ("ham", "spam")).take(sample(1494, 1494))
    gpt2 = tokenizer("gpt2", data_dir / "gpt2")
    parts = [both.take(part) for part in np.split(np.arange(1494), [1045, 1194])]
    made = [TextExamples.of(part, gpt2, pad_id=50256) for part in parts]
    assert [part.length for part in made] == [120, 71, 92]
    fixed = [TextExamples.of(part, gpt2, pad_id=50256, length=made[0].length) for part in parts]
    assert [part.truncated for part in fixed] == [0, 0, 0]
    assert Batches(fixed[0], 8, seed=0).steps_per_epoch == 130
    assert [-(-len(part) // 8) for part in fixed[1:]] == [19, 38]
    assert fixed[1].gather(np.arange(8))[0].shape == (8, 120)
