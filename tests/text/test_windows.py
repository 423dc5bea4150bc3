"""Windows and batches: where they start, which order they come in, and that a resumed run goes on exactly."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import params
from common.backend import load
from common.config import Execution, GPTConfig
from common.data.corpora import split
from common.data.windows import Batches, Windows
from common.errors import UserError
from common.tokenizers import tokenizer


def batches(count=40, batch_size=3, **options):
    return Batches(Windows(np.arange(count), 4, 2), batch_size, **{"seed": 7, **options})


def take(iterator, steps):
    return [next(iterator) for _ in range(steps)]


def same(left, right):
    return all(
        np.array_equal(a, b) for one, two in zip(left, right, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_first_windows_of_the_verdict(data_dir):
    """Raschka 2024, section 2.6."""
    text = (data_dir / "the-verdict.txt").read_text()
    windows = Windows(tokenizer("gpt2", data_dir / "gpt2").encode(text), 4, 1)
    assert [[part.tolist() for part in windows[i]] for i in (0, 1)] == [
        [[40, 367, 2885, 1464], [367, 2885, 1464, 1807]],
        [[367, 2885, 1464, 1807], [2885, 1464, 1807, 3619]],
    ]
    assert len(windows) == 5145 - 4


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_windows_as_they_enter_a_model(data_dir, name):
    """F-014: eight windows of four tokens, each token and its place as 256 numbers that are added."""
    config = GPTConfig(50257, 4, 256, 1, 4, ff_dim=8)
    weights = params.initialise(config, 0)
    ids = tokenizer("gpt2", data_dir / "gpt2").encode((data_dir / "the-verdict.txt").read_text())
    inputs, _ = Windows(ids, 4).gather(np.arange(8))
    (embedded,) = load(name).build(config, weights, Execution()).forward(inputs, taps=("model.embed",)).taps.values()
    assert embedded.shape == (8, 4, 256)
    want = weights["model.embed_tokens.weight"][inputs] + weights["model.embed_positions.weight"]
    np.testing.assert_array_equal(embedded, want)


def test_verdict_parts_of_chapter_five(data_dir):
    """Raschka 2024, section 5.1: 4612 and 534 tokens give 9 and 1 batches of 2 windows of 256."""
    gpt2 = tokenizer("gpt2", data_dir / "gpt2")
    parts = [gpt2.encode(part) for part in split((data_dir / "the-verdict.txt").read_text(), 0.1)]
    assert [len(part) for part in parts] == [4612, 534]
    assert [Batches(Windows(part, 256), 2, seed=0).steps_per_epoch for part in parts] == [9, 1]


def test_last_unshuffled_batch_of_a_count_to_thousand():
    loader = Batches(Windows(np.arange(1001), 4, 1), 1, seed=0, shuffle=False)
    inputs, targets = take(loader, loader.steps_per_epoch)[-1]
    assert inputs.tolist() == [[[996, 997, 998, 999]]]
    assert targets.tolist() == [[[997, 998, 999, 1000]]]
    assert next(loader)[0].tolist() == [[[0, 1, 2, 3]]]


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 12))
def test_starts_are_the_multiples_of_the_stride_below_n_minus_length(count, length, stride):
    starts = list(range(0, count - length, stride))
    if not starts:
        with pytest.raises(UserError, match="too short"):
            Windows(np.arange(count), length, stride)
        return
    windows = Windows(np.arange(count), length, stride)
    assert len(windows) == len(starts)
    assert [window[0][0] for window in windows] == starts
    for inputs, targets in windows:
        assert inputs.shape == targets.shape == (length,)
        np.testing.assert_array_equal(inputs + 1, targets)


def test_windows_index_like_a_sequence():
    windows = Windows(np.arange(10), 3, 3)
    assert windows[-1][0].tolist() == windows[2][0].tolist() == [6, 7, 8]
    for index in (3, -4):
        with pytest.raises(IndexError):
            windows[index]


def test_corpus_shorter_than_a_window_says_the_numbers():
    with pytest.raises(UserError, match=r"4 tokens is too short for windows of 4: it needs at least 5"):
        Windows([1, 2, 3, 4], 4)


@pytest.mark.parametrize(("length", "stride"), [(0, 1), (4, 0), (-1, 1), (2.5, 1), (True, 1)])
def test_window_sizes_are_checked(length, stride):
    with pytest.raises(UserError, match="whole number > 0"):
        Windows(np.arange(10), length, stride)


@pytest.mark.parametrize("ids", [np.zeros((4, 4), int), np.zeros(9)])
def test_ids_are_one_row_of_whole_numbers(ids):
    with pytest.raises(UserError, match="one row of whole numbers"):
        Windows(ids, 2)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_windows_do_not_follow_later_changes_of_the_ids(dtype):
    ids = np.arange(10, dtype=dtype)
    windows = Windows(ids, 4)
    ids[:] = 0
    assert windows[1][0].tolist() == [4, 5, 6, 7]


def test_shapes_and_types():
    inputs, targets = next(batches(accumulate=2))
    assert inputs.shape == targets.shape == (2, 3, 4)
    assert inputs.dtype == targets.dtype == np.int32


def test_order_is_pinned():
    """The lists come from jax.random: argsort of bits(fold_in(fold_in(key(5), 3), epoch), (10,), uint64)."""
    loader = Batches(Windows(np.arange(11), 1), 1, seed=5)
    assert loader.order(0).tolist() == [5, 9, 8, 4, 7, 1, 0, 2, 3, 6]
    assert loader.order(1).tolist() == [2, 5, 9, 8, 4, 3, 6, 7, 1, 0]


def test_every_epoch_is_a_new_permutation_without_the_incomplete_step():
    loader = batches()  # 18 windows, 6 steps of 3
    epochs = [np.concatenate([x[0, :, 0] for x, _ in take(loader, 6)]).tolist() for _ in range(3)]
    for starts in epochs:
        assert sorted(starts) == list(range(0, 36, 2))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    uneven = batches(batch_size=4)  # 18 windows, 4 steps of 4
    first = np.concatenate([x[0, :, 0] for x, _ in take(uneven, 4)]).tolist()
    assert len(set(first)) == 16
    assert uneven.epoch == 1


def test_accumulated_batches_are_the_same_windows_in_the_same_order():
    flat = [x.reshape(-1, 4) for x, _ in take(batches(batch_size=6), 5)]
    parts = [x.reshape(-1, 4) for x, _ in take(batches(batch_size=2, accumulate=3), 5)]
    np.testing.assert_array_equal(flat, parts)


def test_seed_decides_the_order():
    assert same(take(batches(), 8), take(batches(), 8))
    assert not same(take(batches(), 8), take(batches(seed=8), 8))


@pytest.mark.parametrize("steps", [0, 1, 5, 6, 7, 13])
@pytest.mark.parametrize("shuffle", [True, False])
def test_resumed_run_goes_on_exactly(steps, shuffle):
    loader = batches(shuffle=shuffle)
    take(loader, steps)
    state = json.loads(json.dumps(loader.state()))
    again = Batches.resume(Windows(np.arange(40), 4, 2), state)
    assert again.state() == state
    assert same(take(loader, 15), take(again, 15))


@pytest.mark.parametrize(
    ("windows", "what"),
    [
        (Windows(np.arange(1, 41), 4, 2), "sha256 was"),
        (Windows(np.arange(41), 4, 2), "tokens was 40, is 41"),
        (Windows(np.arange(40), 5, 2), "length was 4, is 5"),
        (Windows(np.arange(40), 4, 3), "stride was 2, is 3"),
    ],
)
def test_state_of_another_corpus_is_refused(windows, what):
    with pytest.raises(UserError, match=f"another corpus or other windows: .*{what}"):
        Batches.resume(windows, batches().state())


@pytest.mark.parametrize(
    "change", [{"position": 6}, {"position": -1}, {"epoch": None}, {"batch_size": 0}, {"seed": "x"}]
)
def test_damaged_state_is_refused(change):
    loader = batches()
    with pytest.raises(UserError):
        Batches.resume(loader.windows, {**loader.state(), **change})


@pytest.mark.parametrize("name", ["epoch", "position", "seed", "windows"])
def test_incomplete_state_is_refused(name):
    state = batches().state()
    del state[name]
    with pytest.raises(UserError, match=f"it lacks {name}"):
        Batches.resume(batches().windows, state)


def test_fewer_windows_than_a_step_needs():
    with pytest.raises(
        UserError, match=r"needs 20 windows \(batch size 10 times 2 accumulated\), but the corpus gives 18"
    ):
        batches(batch_size=10, accumulate=2)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5])
def test_seed_is_checked(seed):
    with pytest.raises(UserError, match=r"Seed is .* in \[0, 2\^32\)"):
        batches(seed=seed)
