"""Instructions: rows and their errors, both prompt styles, the book's collation and its mask."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import params
from common.backend import IGNORED, load
from common.config import Execution, GPTConfig, SamplingConfig
from common.data.examples import collated, shifted
from common.data.instructions import (
    InstructionExamples,
    answer,
    prompt,
    read_instructions,
    response,
    split_in_order,
)
from common.data.windows import Batches
from common.errors import UserError
from common.oracle.loss import token_loss
from common.tokenizers import tokenizer
from common.tuning import answers

END = 50256
ROWS = [
    {"instruction": "Spell it.", "input": "freind", "output": "friend"},
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
    {"instruction": "Say no.", "input": "", "output": "No, I would rather not say anything at all."},
]
BYTES = tokenizer("bytes")


@pytest.fixture(scope="session")
def gpt2(data_dir):
    return tokenizer("gpt2", data_dir / "gpt2")


@pytest.fixture(scope="session")
def rows(data_dir):
    return read_instructions(data_dir / "instruction-data.json")


def examples(rows=ROWS, **settings):
    return InstructionExamples(rows, BYTES, **{"end_id": 0, **settings})


def learnt(targets):
    """The text of the targets that count, and how many ends there are among them."""
    ids = targets[targets != IGNORED]
    return BYTES.decode(ids[ids != 0]), int((ids == 0).sum())


def test_rows_of_the_book(rows, data_dir, monkeypatch):
    assert len(rows) == 1100
    assert sum(not row["input"] for row in rows) == 775
    assert {tuple(row) for row in rows} == {("instruction", "input", "output")}
    monkeypatch.setenv("PARALLAX_DATA", str(data_dir))
    assert read_instructions("instruction-data") == rows
    assert read_instructions(data_dir / "instruction-data-with-preference.json") == rows


def test_alpaca_prompts_of_the_book(rows):
    """Raschka 2024, section 7.2: rows 50 and 999."""
    assert prompt(rows[50], "alpaca") + response(rows[50], "alpaca") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nIdentify the correct spelling of the following word."
        "\n\n### Input:\nOcassion"
        "\n\n### Response:\nThe correct spelling is 'Occasion.'"
    )
    assert prompt(rows[999], "alpaca").endswith("\n\n### Instruction:\nWhat is an antonym of 'complicated'?")
    assert response(rows[999], "alpaca") == "\n\n### Response:\nAn antonym of 'complicated' is 'simple'."


def test_phi3_prompts(rows):
    assert prompt(ROWS[0], "phi3") == "<|user|>\nSpell it.\nfreind"
    assert prompt(ROWS[1], "phi3") == "<|user|>\nName a colour."
    assert response(ROWS[0], "phi3") == "\n<|assistant|>:\nfriend"


def test_styles_by_name():
    with pytest.raises(UserError, match="Unknown prompt style 'alpacca': did you mean 'alpaca'"):
        prompt(ROWS[0], "alpacca")


@pytest.mark.parametrize("style", ["alpaca", "phi3"])
@pytest.mark.parametrize("row", ROWS)
def test_generated_text_becomes_an_answer(style, row):
    assert answer(response(row, style) + "\n", style) == row["output"]
    assert answer(row["output"], style) == row["output"]


def test_split_in_the_order_of_the_file(rows):
    """Raschka 2024, section 7.2: 935, 110 and 55 rows."""
    parts = split_in_order(rows)
    assert [len(part) for part in (parts.train, parts.test, parts.validation)] == [935, 110, 55]
    assert parts.train + parts.test + parts.validation == rows
    with pytest.raises(UserError, match=r"5 rows cannot .* empty \(train 4, test 0, validation 1\)"):
        split_in_order(rows[:5])
    with pytest.raises(UserError, match=r"whose sum is below 1"):
        split_in_order(rows, 0.9, 0.1)


BATCH = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]


def collate(rows, uncounted=0, length=None, pad_id=END, multiple=1):
    made = [shifted(np.array(row), END, uncounted, length) for row in rows]
    return collated([m[0] for m in made], [m[1] for m in made], np.arange(len(rows)), pad_id, multiple, length)


def test_collation_of_the_book():
    """Raschka 2024, section 7.3."""
    inputs, targets = collate(BATCH)
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, END, END, END], [7, 8, 9, END, END]]
    assert targets.tolist() == [
        [1, 2, 3, 4, END],
        [6, END, IGNORED, IGNORED, IGNORED],
        [8, 9, END, IGNORED, IGNORED],
    ]


def test_collation_cut_and_widened():
    inputs, targets = collate(BATCH, length=3)
    assert inputs.tolist() == [[0, 1, 2], [5, 6, END], [7, 8, 9]]
    assert targets.tolist() == [[1, 2, 3], [6, END, IGNORED], [8, 9, END]]
    wide, more = collate(BATCH, multiple=4)
    assert wide.shape == (3, 8)
    assert (more[:, 5:] == IGNORED).all()
    assert collate(BATCH, multiple=4, length=6)[0].shape == (3, 6)
    assert collate(BATCH, pad_id=7)[0][1].tolist() == [5, 6, END, 7, 7]


def test_ignored_targets_do_not_count_in_the_loss():
    """Raschka 2024, section 7.3: 1.1269, 0.7936 with a third row, and 1.1269 again if that is ignored."""
    logits = np.array([[[-1.0, 1.0], [-0.5, 1.5], [-0.5, 1.5]]])

    def mean(targets):
        total, count = token_loss(logits[:, : len(targets)], np.array([targets]))
        return total / count

    assert [round(float(mean(t)), 4) for t in ([0, 1], [0, 1, 1], [0, 1, IGNORED])] == [1.1269, 0.7936, 1.1269]


def brute(rows, length):
    """Collation as the book has it, an id at a time."""
    most = max(len(row) + 1 for row in rows)
    inputs, targets = [], []
    for row in rows:
        full = row + [END] + [END] * (most - len(row) - 1)
        left, right, seen = full[:-1], full[1:], 0
        for place, token in enumerate(right):
            seen += token == END
            if token == END and seen > 1:
                right[place] = IGNORED
        inputs.append(left[:length])
        targets.append(right[:length])
    return inputs, targets


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8), min_size=1, max_size=5), st.integers(1, 10))
def test_collation_is_that_of_the_book(rows, length):
    inputs, targets = collate(rows, length=length)
    assert (inputs.tolist(), targets.tolist()) == brute(rows, length)


@pytest.mark.parametrize("style", ["alpaca", "phi3"])
def test_all_text_but_its_first_token_is_learnt(style):
    inputs, targets = examples(style=style).gather(np.arange(3))
    for row, ids, target in zip(ROWS, inputs, targets, strict=True):
        whole = prompt(row, style) + response(row, style)
        assert learnt(target) == (whole[1:], 1)
        assert BYTES.decode(ids[: len(whole)]) == whole


@pytest.mark.parametrize("style", ["alpaca", "phi3"])
def test_masked_instructions_leave_the_answer(style):
    _, targets = examples(style=style, mask_instruction=True).gather(np.arange(3))
    assert [learnt(target) for target in targets] == [(response(row, style), 1) for row in ROWS]


def test_masked_instructions_with_the_vocabulary_of_gpt2(rows, gpt2):
    """First len(prompt) - 1 targets, by the book; what is left is the answer wherever tokens end with the prompt."""
    for style in ("alpaca", "phi3"):
        made = InstructionExamples(rows[:60], gpt2, style=style, end_id=END, mask_instruction=True)
        _, targets = made.gather(np.arange(60))
        for row, target in zip(rows, targets, strict=False):
            assert (target == IGNORED).argmin() == len(gpt2.encode(prompt(row, style))) - 1
            assert gpt2.decode(target[target != IGNORED]) == response(row, style) + "<|endoftext|>"


def test_the_books_batches(rows, gpt2):
    """116 whole batches of 8 of 935 rows; no row is longer than the 1024 tokens that are allowed."""
    train = split_in_order(rows).train
    made = InstructionExamples(train, gpt2, end_id=END, length=1024)
    assert Batches(made, 8, seed=0).steps_per_epoch == 116
    assert (made.truncated, made.unanswered) == (0, 0)
    inputs, targets = made.gather(np.arange(8).reshape(2, 4))
    assert inputs.shape == targets.shape
    assert inputs.shape[:2] == (2, 4)
    assert inputs[0, 0, :3].tolist() == [21106, 318, 281]


def test_answers_longer_than_the_context_are_counted():
    sizes = [len(prompt(row, "phi3") + response(row, "phi3")) for row in ROWS]
    asked = len(prompt(ROWS[2], "phi3"))
    assert sizes[2] > max(sizes[:2])
    for length, truncated, unanswered in (
        (sizes[2], 0, 0),
        (sizes[2] - 1, 1, 0),
        (asked, 3, 0 + sum(len(prompt(row, "phi3")) > asked for row in ROWS)),
        (5, 3, 3),
    ):
        made = examples(style="phi3", length=length, mask_instruction=True)
        assert (made.truncated, made.unanswered) == (truncated, unanswered)
        _, targets = made.gather(np.arange(3))
        assert int((targets == IGNORED).all(-1).sum()) == unanswered


def test_a_loss_is_of_rows_that_have_answers():
    """Also where the first ones have none within the length; nothing counted is no loss of zero."""
    config = GPTConfig(256, 80, 16, 2, 2, ff_dim=32)
    model = load("torch").build(config, params.randomise(config, 0, 0.5), Execution("float64", compile=False))
    lost = {"instruction": "x" * 99, "input": "", "output": "y"}
    settings = {"style": "phi3", "mask_instruction": True, "length": 80}
    want = answers.loss(model, examples([ROWS[1]], **settings), 1)
    assert want > 1
    assert answers.loss(model, examples([lost, ROWS[1], ROWS[2]], **settings), 1, 1) == pytest.approx(want, rel=1e-12)
    with pytest.raises(UserError, match="None of 2 instructions has a token that counts"):
        answers.loss(model, examples([lost, lost], **settings), 1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_has_the_room_behind_its_own_prompt(temperature):
    """Whatever stands beside it: a prompt that is longer, or that fills the context."""
    config = GPTConfig(256, 80, 16, 2, 2, ff_dim=32)
    model = load("torch").build(config, params.randomise(config, 0, 0.5), Execution("float64", compile=False))
    sampling = SamplingConfig(30, temperature=temperature, end_token=0, seed=3)
    asked = [{"instruction": "Say it.", "input": "", "output": "x"} for _ in range(4)]

    def said(length, chosen=slice(None), batch=4):
        rows = [*asked[:2], {**asked[2], "instruction": "x" * length}, asked[3]]
        found = answers.answers(model, BYTES, rows[chosen], "phi3", sampling, batch)
        told = answers.rooms(80, BYTES, rows, "phi3", 30)
        assert told == [min(30, max(0, 80 - len(prompt(row, "phi3")))) for row in rows]
        return [one["model_response"] for one in found]

    around = len(prompt({**asked[2], "instruction": ""}, "phi3"))
    beside, longer, full = said(7), said(64 - around), said(90)
    assert all(len(one) > 20 for one in beside)
    assert [longer[:2], longer[3]] == [full[:2], full[3]] == [beside[:2], beside[3]]
    assert 0 < len(longer[2]) <= 16
    assert full[2] == ""
    if not temperature:
        assert said(64 - around, slice(2, 3), 1) == longer[2:3]


def test_batches_go_on_exactly_and_know_their_data():
    batches = Batches(examples(), 1, seed=4, accumulate=2)
    next(batches)
    state = json.loads(json.dumps(batches.state()))
    again = Batches.resume(examples(), state)
    for _ in range(4):
        for one, two in zip(next(batches), next(again), strict=True):
            np.testing.assert_array_equal(one, two)
    for other, what in (
        (examples(ROWS[::-1]), "sha256 was"),
        (examples(style="phi3"), "style was alpaca, is phi3"),
        (examples(mask_instruction=True), "mask_instruction was False, is True"),
        (examples(length=50), "length was None, is 50"),
    ):
        with pytest.raises(UserError, match=f"another data set or other instructions: .*{what}"):
            Batches.resume(other, state)


GOOD = {"instruction": "a", "input": "", "output": "b", "more": 1}
WRONG = [
    ({"instruction": "a", "input": ""}, "lacks the field 'output': it has instruction, input"),
    ({"instuction": "a", "input": "", "output": "b"}, "lacks the field 'instruction': is 'instuction' meant"),
    ({"instruction": "a", "output": "b"}, "lacks the field 'input'"),
    ({"instruction": "", "input": "", "output": "b"}, "has an empty field 'instruction'"),
    ({"instruction": "a", "input": "", "output": " \n"}, "has an empty field 'output'"),
    ({"instruction": "a", "input": None, "output": "b"}, "has null in the field 'input'; it must be a text"),
    ({"instruction": "a", "input": "", "output": ["b"]}, "has a list in the field 'output'"),
    ({"instruction": "a", "input": "", "output": "\ud800"}, r"field 'output': Character 0 .* U\+D800"),
    ("a", "is a text; it must be an object"),
    ({}, "lacks the field 'instruction': it has none at all"),
]


@pytest.mark.parametrize(("row", "told"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_row_is_named(tmp_path, row, told):
    (tmp_path / "x.json").write_text(json.dumps([GOOD, GOOD, row]))
    with pytest.raises(UserError, match=rf"^Row 3 of x\.json,? {told}"):
        read_instructions(tmp_path / "x.json")
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, [GOOD, row])))
    with pytest.raises(UserError, match=rf"^Line 2 of x\.jsonl,? {told}"):
        read_instructions(tmp_path / "x.jsonl")


def test_files_without_rows(tmp_path):
    for name, content, told in (
        ("a.json", "{}", r"a\.json holds an object; it must be a list"),
        ("a.json", "[]", r"a\.json has no rows"),
        ("a.json", "[{},", r"a\.json is no JSON \(line 1, column"),
        ("a.csv", "instruction,input,output\n", r"a\.csv is of no known form; .* \.json or \.jsonl"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=told):
            read_instructions(tmp_path / name)
    with pytest.raises(UserError, match="did you mean 'instruction-data'"):
        read_instructions("instruction_data")
    with pytest.raises(UserError, match="There are no instructions"):
        examples([])
