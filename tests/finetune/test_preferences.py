"""Preferences: rows and their errors, what counts in a pair, and pairs as batches."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.backend import IGNORED
from common.data.instructions import prompt, split_in_order
from common.data.preferences import PreferenceExamples, fitting, read_preferences
from common.data.windows import Batches
from common.errors import UserError
from common.preference import Preference
from common.tokenizers import tokenizer

END = 50256
ROWS = [
    {"instruction": "Spell it.", "input": "freind", "chosen": "It is friend.", "rejected": "friend, you fool"},
    {"instruction": "Say no.", "input": "", "chosen": "No, thank you.", "rejected": "No!"},
    {
        "instruction": "Name a colour.",
        "input": "",
        "chosen": "Red.",
        "rejected": "Red, I have told you so, have I not?",
    },
]
BYTES = tokenizer("bytes")
DPO, ALONE = Preference("dpo"), Preference("simpo")


def examples(rows=ROWS, preference=ALONE, **settings):
    return PreferenceExamples(rows, BYTES, **{"end_id": 0, "preference": preference, **settings})


def learnt(labels):
    return [BYTES.decode(row[row != IGNORED]) for row in labels]


@pytest.fixture(scope="session")
def rows(data_dir):
    return read_preferences(data_dir / "instruction-data-with-preference.json")


def test_rows_of_the_book(rows, data_dir, monkeypatch):
    assert len(rows) == 1100
    assert {frozenset(row) for row in rows} == {frozenset(("instruction", "input", "output", "chosen", "rejected"))}
    assert [len(part) for part in split_in_order(rows)] == [935, 55, 110]
    monkeypatch.setenv("PARALLAX_DATA", str(data_dir))
    assert read_preferences("instruction-data-with-preference") == rows


def brute(rows, gpt2, width=None):
    """The book's collation of chosen and of rejected, whose labels are shifted afterwards: (inputs, labels)."""
    made = []
    texts = [
        prompt(row, "alpaca") + "\n\n### Response:\n" + row[side] for row in rows for side in ("chosen", "rejected")
    ]
    full = [gpt2.encode(text).tolist() for text in texts]
    most = max(len(ids) + 1 for ids in full)
    for place, ids in enumerate(full):
        padded, mask = ids + [END] * (most - len(ids)), [True] * most
        mask[len(ids) :] = [False] * (most - len(ids))
        asked = len(gpt2.encode(prompt(rows[place // 2], "alpaca"))) + 2
        mask[:asked] = [False] * asked
        shifted = [token if counts else IGNORED for token, counts in zip(padded, mask, strict=True)][1:]
        made.append((padded[:-1], shifted))
    return tuple(list(part) for part in zip(*made, strict=True))


def test_pairs_of_the_book(rows, data_dir):
    """`### Response:` counts, the empty line before it does not; nor does the end of an answer."""
    gpt2 = tokenizer("gpt2", data_dir / "gpt2")
    made = PreferenceExamples(rows[:40], gpt2, end_id=END, length=1024, preference=ALONE)
    for indices in (np.arange(8), np.array([3, 30]), np.array([17])):
        inputs, labels = made.rows(indices)
        assert (inputs.tolist(), labels.tolist()) == brute([rows[i] for i in indices], gpt2)
    for row, label in zip(rows[:8], made.rows(np.arange(8))[1][::2], strict=True):
        assert gpt2.decode(label[label != IGNORED]) == "### Response:\n" + row["chosen"]
    assert made.truncated == 0


@pytest.mark.parametrize(("mask_prompt", "start"), [("book", 2), ("exact", 0)])
@pytest.mark.parametrize("style", ["alpaca", "phi3"])
def test_what_counts_is_the_answer_with_its_heading(mask_prompt, start, style):
    heading = {"alpaca": "\n\n### Response:\n", "phi3": "\n<|assistant|>:\n"}[style]
    _, labels = examples(style=style, mask_prompt=mask_prompt).rows(np.arange(3))
    assert learnt(labels) == [(heading + row[side])[start:] for row in ROWS for side in ("chosen", "rejected")]


def test_the_end_of_an_answer_counts_if_asked_for():
    _, without = examples().rows(np.arange(3))
    inputs, labels = examples(end_counts=True).rows(np.arange(3))
    more = (labels != IGNORED) & (without == IGNORED)
    assert (more.sum(-1) == 1).all()
    assert (labels[more] == 0).all()
    np.testing.assert_array_equal(inputs, examples().rows(np.arange(3))[0])
    np.testing.assert_array_equal(labels[~more], without[~more])


def test_exact_masks_stop_where_an_answer_changes_the_last_token_of_a_prompt():
    class Merging:
        """Two newlines are one token, 300; else bytes."""

        def encode(self, text):
            parts = [BYTES.encode(part).tolist() for part in text.replace("\n\n", "\0").split("\0")]
            return np.array([t for i, part in enumerate(parts) for t in ([300] if i else []) + part], np.int32)

    row = {"instruction": "Go.\n", "input": "", "chosen": "yes", "rejected": "no"}
    ids = Merging().encode(prompt(row, "phi3"))
    made = PreferenceExamples([row], Merging(), style="phi3", end_id=0, mask_prompt="exact", preference=ALONE)
    _, labels = made.rows(np.array([0]))
    assert ids[-1] == ord("\n")
    assert labels[0, len(ids) - 2] == 300  # the prompt's last newline and the answer's first
    assert (labels[0, : len(ids) - 2] == IGNORED).all()


@given(st.permutations(range(3)), st.integers(1, 3), st.integers(1, 9))
def test_rows_are_interleaved_and_of_one_width(order, count, multiple):
    chosen = np.array(order[:count])
    inputs, pairs = examples(multiple=multiple).gather(chosen)
    assert inputs.shape == pairs.labels.shape
    assert inputs.shape[0] == 2 * count
    assert inputs.shape[1] % multiple == 0
    texts = [ROWS[i][side] for i in order[:count] for side in ("chosen", "rejected")]
    assert all(text.endswith(end) for text, end in zip(learnt(pairs.labels), texts, strict=True))
    lengths = [len((prompt(ROWS[i], "alpaca") + "\n\n### Response:\n").encode()) for i in order[:count]]
    for row, text, length in zip(inputs, texts, np.repeat(lengths, 2), strict=True):
        assert BYTES.decode(row[length : length + len(text)]) == text
        assert (row[length + len(text) :] == 0).all()


def test_references_stand_beside_their_rows():
    reference = np.arange(6.0).reshape(3, 2)
    inputs, pairs = examples(preference=DPO, reference=reference).gather(np.array([[2, 0], [1, 1]]))
    assert inputs.shape[:2] == (2, 4)
    assert pairs.reference.tolist() == [[4, 5, 0, 1], [2, 3, 2, 3]]
    assert pairs.reference.dtype == np.float64
    assert pairs.preference == DPO
    assert [one.reference.tolist() for one in pairs] == pairs.reference.tolist()
    assert examples().gather(np.array([0]))[1].reference.tolist() == [0, 0]


def test_a_loss_with_a_reference_is_not_learnt_without_one():
    made = examples(preference=DPO)
    with pytest.raises(UserError, match="The loss 'dpo' needs a reference's log-probabilities"):
        made.gather(np.array([0]))
    told = made.with_reference(-np.ones((3, 2)))
    np.testing.assert_array_equal(told.gather(np.array([0]))[0], made.rows(np.array([0]))[0])
    assert made.reference is None
    assert told.describe() == made.describe()
    with pytest.raises(UserError, match=r"are \[2, 2\]; 3 pairs need"):
        made.with_reference(np.ones((2, 2)))
    with pytest.raises(UserError, match=r"of pair 1 are \[nan, 0\.0\]"):
        made.with_reference(np.array([[0, 0], [np.nan, 0], [0, 0]]))


def test_longer_answers_are_cut_and_counted():
    sizes = [len(prompt(r, "phi3") + "\n<|assistant|>:\n" + r[s]) for r in ROWS for s in ("chosen", "rejected")]
    for length in (max(sizes), max(sizes) - 1, max(sizes) - 2, sorted(sizes)[2] - 1):
        for end_counts in (False, True):
            made = examples(style="phi3", length=length, end_counts=end_counts)
            assert made.truncated == sum(size + end_counts > length + 1 for size in sizes)
            assert made.rows(np.arange(3))[0].shape[1] == min(length, max(sizes))


def test_pairs_of_which_nothing_is_left_are_told_and_can_be_left_out():
    most = len(prompt(ROWS[0], "phi3")) + 1
    with pytest.raises(UserError, match=rf"Of 1 of 3 pairs .* in {most} tokens \(first: pair 0, chosen, whose prompt"):
        examples(style="phi3", length=most)
    kept = fitting(ROWS, BYTES, style="phi3", length=most)
    assert kept == [1, 2]
    assert len(examples([ROWS[i] for i in kept], style="phi3", length=most)) == 2


def test_batches_go_on_exactly_and_know_their_data():
    batches = Batches(examples(), 1, seed=4, accumulate=3)
    next(batches)
    state = json.loads(json.dumps(batches.state()))
    again = Batches.resume(examples(), state)
    for _ in range(3):
        (one, left), (two, right) = next(batches), next(again)
        assert one.shape[:2] == (3, 2)
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(left.labels, right.labels)
    for other, what in (
        (examples([ROWS[0], ROWS[2], ROWS[1]]), "sha256 was"),
        (examples(mask_prompt="exact"), "mask_prompt was book, is exact"),
        (examples(end_counts=True), "end_counts was False, is True"),
    ):
        with pytest.raises(UserError, match=f"another data set or other pairs: .*{what}"):
            Batches.resume(other, state)
    with pytest.raises(UserError, match=r"needs 4 pairs .* the data set gives 3"):
        Batches(examples(), 4, seed=0)


GOOD = {"instruction": "a", "input": "", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rejected": None}, "has null in the field 'rejected'"),
        ({"chosen": " "}, "has an empty field 'chosen'"),
        ({"output": 1}, "has the number 1 in the field 'output'"),
        ({"chosen": ..., "choosen": "b"}, "lacks the field 'chosen': is 'choosen' meant"),
        ({"rejected": ...}, "lacks the field 'rejected': it has instruction, input, chosen"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, change, told):
    row = {name: value for name, value in {**GOOD, **change}.items() if value is not ...}
    (tmp_path / "x.json").write_text(json.dumps([{**GOOD, "output": ""}, row]))
    with pytest.raises(UserError, match=rf"^Row 2 of x\.json {told}"):
        read_preferences(tmp_path / "x.json")


def test_good_rows_keep_their_fields(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({**GOOD, "more": 1}) + "\n" + json.dumps({**GOOD, "output": ""}))
    assert read_preferences(tmp_path / "x.jsonl") == [GOOD, {**GOOD, "output": ""}]


def test_wrong_settings():
    with pytest.raises(UserError, match="Unknown mask of the prompt 'exakt': did you mean 'exact'"):
        examples(mask_prompt="exakt")
    with pytest.raises(UserError, match="Unknown prompt style 'phi'"):
        examples(style="phi")
    with pytest.raises(UserError, match="There are no preferences"):
        examples([])
