"""The book's own training run: its random numbers in its order, and its loss curve."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common import backend as door
from common import run as runs
from common.config import PRESETS, Execution, SamplingConfig, TrainConfig, dumps, mode, model_to_dict, preset
from common.data.corpora import corpus, split
from common.run import perplexity
from common.tokenizers import tokenizer
from torch_impl import book
from torch_impl.backend import TorchModel
from torch_impl.layers import dropout, layer_key
from torch_impl.sampling import filter_logits

CURVE = {0: "9.781 9.933", 5: "8.111 8.339", 10: "6.661 7.048", 15: "5.961 6.616", 20: "5.726 6.600", 25: "5.201 6.348"}
CURVE |= {30: "4.417 6.278", 35: "4.069 6.226", 40: "3.732 6.160", 45: "2.850 6.179", 50: "2.427 6.141"}
CURVE |= {55: "2.104 6.134", 60: "1.882 6.233", 65: "1.320 6.238", 70: "0.985 6.242", 75: "0.717 6.293"}
CURVE |= {80: "0.541 6.393", 85: "0.391 6.452"}  # Raschka 2024, section 5.2
AGAIN = {0: "0.271 6.545", 5: "0.244 6.614"}  # exercise 5.4
TEXT = "Every effort moves you"
TRAIN = TrainConfig(weight_decay=0.1, schedule="constant", clip_norm=None)
DROPPED = dict.fromkeys(("dropout_embed", "dropout_attn", "dropout_shortcut"), 0.1)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_masks_are_those_of_pytorchs_dropout(rate):
    x = torch.randn(3, 5, 7)
    torch.manual_seed(5)
    want = [F.dropout(x, rate, True) for _ in range(3)]
    torch.manual_seed(5)
    got = [dropout(x, rate, layer_key(book.Stream(), layer), 1) for layer in range(3)]
    torch.testing.assert_close(torch.stack(got), torch.stack(want))
    assert not torch.equal(got[0], got[1])


def test_weights_are_drawn_in_the_books_order():
    """Embeddings, then block by block attention and feed-forward, then the head."""
    config = preset("book-124m").with_(vocab_size=50, embed_dim=12, num_heads=2, ff_dim=20, num_layers=2)
    torch.manual_seed(3)
    found = book.initial_weights(config)
    torch.manual_seed(3)
    width = config.embed_dim
    want = [torch.nn.Embedding(50, width), torch.nn.Embedding(config.context_length, width)]
    for _ in range(2):
        want += [torch.nn.Linear(width, width, bias=False) for _ in "qkv"]
        want += [torch.nn.Linear(width, width), torch.nn.Linear(width, 20), torch.nn.Linear(20, width)]
    want.append(torch.nn.Linear(width, 50, bias=False))
    matrices = [array for array in found.values() if array.ndim > 1]
    assert len(matrices) == len(want)
    for array, module in zip(matrices, want, strict=True):
        torch.testing.assert_close(torch.from_numpy(array), module.weight.detach())


def test_the_loader_draws_as_the_books_does():
    """A second pass has another order; evaluation in between takes numbers of its own."""
    ids = torch.arange(300).numpy()
    torch.manual_seed(1)
    loader = book._loader(ids, 8, 4, True)
    first, second = ([int(x[0, 0]) for x, _ in loader] for _ in range(2))
    assert first != second
    assert len(first) == (300 - 8) // 8 // 4
    assert all(x.shape == (4, 8) for x, _ in loader)


RATES = {0: 1e-5, 1: 4.6667e-5, 13: 4.86667e-4, 26: 9.63333e-4, 27: 1e-3, 28: 9.99791e-4}
RATES |= {54: 8.55018e-4, 81: 5.05e-4, 108: 1.54982e-4, 134: 1.0209e-5}  # F-090


def test_a_run_of_appendix_d_has_its_rates_and_clips_once_it_is_warmed_up(call, tmp_path, monkeypatch):
    """Nine batches, fifteen times: the rate of every step, and what is clipped; a text after every epoch."""
    small = PRESETS["book-124m"].with_(embed_dim=12, num_heads=2, ff_dim=20, num_layers=1)
    monkeypatch.setitem(PRESETS, "book-124m", small)
    rates, clipped, step = [], [], torch.optim.AdamW.step

    def stepped(self, *rest):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *rest)

    def clip(weights, limit, real=torch.nn.utils.clip_grad_norm_):
        clipped.append((len(rates), limit))
        return real(weights, limit)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    (tmp_path / "text.txt").write_text("abcdefghij" * 33)  # 297 characters to train on: 18 windows of 16
    asked = [
        "--data",
        tmp_path / "text.txt",
        "--tokenizer",
        "bytes",
        "--length",
        16,
        "--batch-size",
        2,
        "--prompt",
        "ab",
    ]
    how = ["--epochs", 15, "--schedule", "cosine", "--learning-rate", 1e-3, "--warmup-steps", 27, "--clip-norm", 1]
    code, out, err = call("book", *asked, *how, "--more-epochs", 1, "--no-shuffle", "--eval-every", 50)
    assert code == 0, err
    assert {number: rates[number] for number in RATES} == pytest.approx(RATES, rel=5e-5)
    assert clipped == [(number, 1.0) for number in range(27, 135)]  # the epoch more begins anew, with the warm-up
    assert sum(line.startswith("ab") for line in out.splitlines()) == 16


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The words of a run of two epochs of seven steps, by a model as small as can be."""
    config = PRESETS["book-124m"].with_(embed_dim=12, num_heads=2, ff_dim=20, num_layers=1)
    monkeypatch.setitem(PRESETS, "book-124m", config)
    (tmp_path / "text.txt").write_text("She sells sea shells by the sea shore. " * 7)  # 245 to train on: 15 windows
    asked = ["--data", tmp_path / "text.txt", "--tokenizer", "bytes", "--length", 16, "--batch-size", 2]
    return ["book", *asked, "--prompt", "She", "--epochs", 2, "--eval-every", 3]


def test_the_log_of_a_run_that_goes_on_has_every_step_once(call, tmp_path, small):
    """What is printed counts anew, as exercise 5.4 does; the log counts on, so its curve is one line."""
    assert call(*small, "--out", tmp_path / "short")[0] == 0
    short = runs.read_log(tmp_path / "short" / "log.jsonl")
    assert [line["step"] for line in short] == [0, 3, 6, 9, 12]
    for _ in range(2):  # who begins again in that folder does not find the lines of before
        code, out, err = call(*small, "--more-epochs", 2, "--out", tmp_path / "long")
        assert code == 0, err
        log = runs.read_log(tmp_path / "long" / "log.jsonl")
        assert [line["step"] for line in log] == [0, 3, 6, 9, 12, 14, 17, 20, 23, 26]
        assert [line["epoch"] for line in log] == [1, 1, 1, 2, 2, 3, 3, 3, 4, 4]
        assert log[:5] == short
    printed = [line.split(":")[0] for line in out.splitlines() if line.startswith("Ep ")]
    counted = [f"Ep {1 + step // 7} (Step {step:06d})" for step in range(0, 14, 3)]
    assert printed == 2 * counted
    code, said, _ = call("curves", tmp_path / "long")
    assert (code, "long: 27 steps" in said) == (0, True)


def test_a_run_that_is_interrupted_leaves_its_log(call, tmp_path, small, monkeypatch):
    real, asked = book._mean, []

    def mean(*rest):
        asked.append(rest)
        if len(asked) == 2 * 6 + 1:  # of two parts each time: the second line of the epoch more
            raise KeyboardInterrupt
        return real(*rest)

    monkeypatch.setattr(book, "_mean", mean)
    code, _, err = call(*small, "--more-epochs", 1, "--out", tmp_path / "run")
    assert (code, f"parallax curves {tmp_path / 'run'}" in err) == (130, True)
    assert [line["step"] for line in runs.read_log(tmp_path / "run" / "log.jsonl")] == [0, 3, 6, 9, 12, 14]


def test_the_log_of_another_run_is_not_written_over(call, tmp_path, small):
    asked = ["--preset", "nano", "--length", 16, "--batch-size", 2, "--steps", 2, "--eval-every", 2]
    assert call("train", *asked, "--out", tmp_path / "run")[0] == 0
    before = (tmp_path / "run" / "log.jsonl").read_bytes()
    code, out, err = call(*small, "--out", tmp_path / "run")
    assert (code, out, "already holds a run, whose log is its own" in err) == (2, "", True)
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == before


def test_what_is_no_run_of_the_books_is_refused(call, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("She sells sea shells by the sea shore. " * 30)
    small = (
        "--data",
        file,
        "--length",
        16,
        "--epochs",
        2,
        "--eval-every",
        10,
        "--tokenizer",
        "bytes",
        "--batch-size",
        4,
    )
    code, _, err = call("book", *small, "--preset", "nano", "--out", tmp_path / "log")
    assert code == 2
    assert "no model of the book's" in err
    code, _, err = call("book", *small, "--epochs", 0)
    assert (code, "--epochs is 0" in err) == (2, True)
    code, _, err = call("book", *small, "--more-epochs", -1)
    assert (code, "--more-epochs is -1" in err) == (2, True)
    code, _, err = call("book", *small, "--warmup-steps", 3)
    assert (code, "A constant rate has no warm-up" in err) == (2, True)


def lines_of(run):
    """What a run prints of losses."""
    return [line for line in run[1] if line is not None]


def test_a_run_is_reproduced():
    config = preset("book-124m").with_(
        vocab_size=256, context_length=16, embed_dim=24, num_heads=2, ff_dim=48, num_layers=2,
        dropout_embed=0.1, dropout_attn=0.1, dropout_shortcut=0.1,
    )  # fmt: skip
    ids = torch.frombuffer(bytearray(corpus("pydoc").text[:2000].encode()), dtype=torch.uint8).int().numpy()
    settings = {"epochs": 2, "every": 10, "batches": 3}
    train = TRAIN.with_(seed=3, batch_size=4, learning_rate=1e-2)
    both = [lines_of(book.run(config, Execution(), ids, ids[:200], train, **settings)) for _ in range(2)]
    assert both[0] == both[1]
    assert both[0][-1].loss < both[0][0].loss - 1
    assert [line.step for line in both[0]] == list(range(0, 2 * (2000 - 16) // 16 // 4, 10))
    other = lines_of(book.run(config, Execution(), ids, ids[:200], train.with_(seed=4), **settings))
    assert other != both[0]
    more = lines_of(book.run(config, Execution(), ids, ids[:200], train, **settings | {"more": 1}))
    assert more[: len(both[0])] == both[0]
    assert [line.at for line in more] == sorted({line.at for line in more})
    assert [line.step for line in more[len(both[0]) :]] == list(range(0, (2000 - 16) // 16 // 4, 10))
    assert more[-1].loss < both[0][-1].loss


def test_rows_of_a_count_to_thousand():
    """F-018: of 0 to 1000 in windows of four, the last two rows after `torch.manual_seed(123)`."""
    torch.manual_seed(123)
    *_, (inputs, targets) = book._loader(torch.arange(1001).numpy(), 4, 2, True)
    assert inputs.tolist() == [[880, 881, 882, 883], [112, 113, 114, 115]]
    assert (targets == inputs + 1).all()


TOY = torch.tensor([[4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79]])


@pytest.mark.parametrize(
    ("temperature", "counts"),
    [
        (1, [73, 0, 0, 582, 2, 0, 0, 343, 0]),
        (0.1, [0, 0, 0, 985, 0, 0, 0, 15, 0]),
        (5, [165, 75, 42, 239, 71, 46, 32, 227, 103]),
    ],
)
def test_a_thousand_draws(temperature, counts):
    """F-083: from our probabilities, one after the other after `torch.manual_seed(123)`."""
    probabilities = torch.softmax(filter_logits(TOY, temperature, None, None)[0], -1)
    torch.manual_seed(123)
    drawn = [torch.multinomial(probabilities, 1).item() for _ in range(1000)]
    assert torch.bincount(torch.tensor(drawn), minlength=9).tolist() == counts


SMALL = {"embed_dim": 32, "num_heads": 4, "ff_dim": 128, "num_layers": 2, "context_length": 12}  # F-086


@pytest.mark.full
def test_how_often_the_script_evaluates(data_dir):
    """F-086: 39 losses in an epoch of windows of 12, two a step, every fifth step."""
    rates = dict.fromkeys(("dropout_embed", "dropout_attn", "dropout_shortcut"), 0.1)
    config = preset("book-124m").with_(**SMALL, **rates)
    gpt2, text = tokenizer("gpt2", data_dir / "gpt2"), (data_dir / "the-verdict.txt").read_text()
    parts = [gpt2.encode(part) for part in split(text, 0.1)]
    train = TRAIN.with_(seed=123, batch_size=2, learning_rate=5e-4)
    lines = lines_of(book.run(config, Execution(), *parts, train, epochs=1, every=5, batches=1))
    assert len(lines) == 39
    assert lines[-1].loss < lines[0].loss - 1


@pytest.mark.full
@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_how_often_a_run_like_the_scripts_evaluates(call, data_dir, tmp_path, wing):
    """F-086 by `parallax train`, which also evaluates after the last step, and not after the first."""
    config = preset("book-124m").with_(**SMALL)
    (tmp_path / "model.json").write_text(dumps(model_to_dict(config)))
    code, _, err = call(
        "train", "--backend", wing, "--config", tmp_path / "model.json", "--data", data_dir / "the-verdict.txt",
        "--tokenizer", "gpt2", "--vocab", data_dir / "gpt2", "--batch-size", 2, "--epochs", 1, "--eval-every", 5,
        "--eval-windows", 2, "--learning-rate", 5e-4, "--schedule", "constant", "--decay", "all", "--clip-norm", 0,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert code == 0, err
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert (len(log), sum("held_out" in line for line in log)) == (192, 39)


@pytest.fixture(scope="module")
def untrained():
    """The book's model of 124M with a context of 256, as it is after `torch.manual_seed(123)`."""
    config = preset("book-124m").with_(context_length=256)
    torch.manual_seed(123)
    return TorchModel(config, book.initial_weights(config), Execution())


@pytest.mark.full
def test_the_first_losses_are_the_books(untrained, data_dir):
    """F-080: of two rows of three tokens; F-081: of all batches of the story, in its loader's order."""
    inputs = np.array([[16833, 3626, 6100], [40, 1107, 588]])
    targets = np.array([[3626, 6100, 345], [1107, 588, 11311]])
    loss = untrained.loss(inputs, targets)
    assert loss == pytest.approx(10.7940, abs=5e-5)
    assert perplexity(loss) == pytest.approx(48725.8203, rel=1e-5)
    gpt2, text = tokenizer("gpt2", data_dir / "gpt2"), (data_dir / "the-verdict.txt").read_text()
    torch.manual_seed(123)
    for part, first, want in zip(split(text, 0.1), (True, False), (10.98758347829183, 10.98110580444336), strict=True):
        loader = book._loader(gpt2.encode(part), 256, 2, first)
        assert book._mean(untrained, loader, len(loader)) == pytest.approx(want, abs=2e-6)


@pytest.mark.full_for("fast", "jax")
@pytest.mark.parametrize("how", ["torch", "torch fast", "jax"])
def test_what_nobody_has_trained_writes_is_the_books(how):
    """F-055, F-058: ten tokens of "Hello, I am", by the model of 124M after `torch.manual_seed(123)`."""
    wing, _, chosen = how.partition(" ")
    config = preset("book-124m")
    torch.manual_seed(123)
    model = door.load(wing).build(config, book.initial_weights(config), Execution(**mode(chosen or "default", wing)))
    (row,) = model.generate([[15496, 11, 314, 716]], SamplingConfig(10))
    assert list(row) == [27018, 24086, 47843, 30961, 42348, 7267, 49706, 43231, 47062, 34657]


@pytest.mark.full
def test_the_curve_is_the_books(call, data_dir):
    """All pairs that it prints, those of an epoch more among them, and the text with which it ends: ten minutes of a
    CPU's core."""
    code, out, err = call(
        "book", "--data", data_dir / "the-verdict.txt", "--vocab", data_dir / "gpt2", "--prompt", TEXT,
        "--more-epochs", 1,
    )  # fmt: skip
    assert code == 0, err
    lines = [line for line in out.splitlines() if line.startswith("Ep ")]
    got = [(int(line.split("Step ")[1][:6]), f"{line.split()[6].rstrip(',')} {line.split()[9]}") for line in lines]
    assert got == [*CURVE.items(), *AGAIN.items()]
    samples = [line for line in out.splitlines() if not line.startswith("Ep ")]
    assert len(samples) == 11
    assert samples[9].startswith(f'{TEXT} know," was one of the axioms he laid down')
    assert samples[10].startswith(f'{TEXT}?"  "Yes--quite insensible to the irony.')


@pytest.mark.full
@pytest.mark.parametrize(
    ("train", "epochs", "every", "want"),
    [
        ({"learning_rate": 5e-4}, 2, 1, ["7.641 10.073", "4.935 10.550"]),  # F-082
        (
            {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 1, "initial_rate": 1e-5, "final_rate": 1e-5}
            | {"clip_norm": 1.0, "clip_from": 1},
            6, 5, ["10.871 10.959"],
        ),  # F-170
    ],
    ids=["chapter 5", "appendix D"],
)  # fmt: skip
def test_losses_on_a_single_window_are_the_books(data_dir, train, epochs, every, want):
    """The model of 124M on the first 256 tokens, in the order of the text."""
    config = preset("book-124m").with_(context_length=256, **DROPPED)
    gpt2, text = tokenizer("gpt2", data_dir / "gpt2"), (data_dir / "the-verdict.txt").read_text()
    parts = [gpt2.encode(part)[:257] for part in split(text, 0.1)]
    train = TRAIN.with_(seed=123, batch_size=1, **train)
    lines = lines_of(book.run(config, Execution(), *parts, train, epochs=epochs, every=every, batches=1, shuffle=False))
    got = [f"{line.loss:.3f} {line.held_out:.3f}" for line in lines]
    assert got[: len(want)] == want
    assert lines[-1].loss < lines[0].loss
