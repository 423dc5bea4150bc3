"""OpenAI's released weights give the book's numbers: its losses on the story, its greedy text.

They are looked for where `parallax fetch` puts them ($PARALLAX_HOME), and nothing is downloaded here: without them
these tests skip. What they do is done with small weights as well, made by transformers, which is the judge then.
"""

import shutil

import pytest
import torch
from torch.nn import functional as F

from common import backend, run
from common.config import Execution, SamplingConfig, preset
from common.data.corpora import split
from common.data.windows import Windows
from common.tokenizers import tokenizer
from common.weights import formats
from common.weights.fetch import place_of

WINGS = ("torch", "jax")
PROMPT = "Every effort moves you"
LOSSES = {  # F-087: of the story's first nine tenths and of its last, in windows of 256
    "gpt2-124m": (3.7547486888037787, 3.5596182346343994),
    "gpt2-1558m": (3.3046312861972384, 3.1195147037506104),
}
GREEDY = """ forward, but it's not enough.

"I'm not going to sit here and say, 'I'm not going to do this,'"""  # F-088: 30 tokens after PROMPT
FIRST = -0.11010301  # F-085: of all numbers of the token embedding


def released(name):
    """What `formats.load` finds of a download, and GPT-2's tokenizer from the vocabulary beside it."""
    folder = place_of(name)
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"needs OpenAI's weights, which are not there (`parallax fetch {name}`, $PARALLAX_HOME)")
    return formats.load(folder), tokenizer("gpt2", folder)


def built(wing, found):
    return backend.load(wing).build(found.config, found.weights, Execution())


def losses(model, encoder, text, length):
    """Mean losses of the book's two parts of a text, of which every window counts once."""
    parts = [Windows(encoder.encode(part), length) for part in split(text, 0.1)]
    return [run.held_out_loss(model, part, len(part)) for part in parts]


def written(model, encoder, prompt, count):
    (row,) = model.generate([encoder.encode(prompt).tolist()], SamplingConfig(count))
    return encoder.decode(row)


@pytest.fixture(scope="module")
def story(data_dir):
    return (data_dir / "the-verdict.txt").read_text(encoding="utf-8")


def test_the_first_number_is_the_books():
    found, _ = released("gpt2-124m")
    assert found.config == preset("gpt2-124m")
    assert float(found.weights["model.embed_tokens.weight"][0, 0]) == pytest.approx(FIRST, abs=5e-9)


@pytest.mark.full
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("wing", WINGS)
def test_losses_are_the_books(wing, name, story):
    """In float32, of logits that reach 100: on two machines the book's own differ by 5e-7."""
    found, encoder = released(name)
    assert losses(built(wing, found), encoder, story, 256) == pytest.approx(LOSSES[name], abs=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("wing", WINGS)
def test_the_greedy_text_is_the_books(wing):
    found, encoder = released("gpt2-124m")
    assert written(built(wing, found), encoder, PROMPT, 30) == GREEDY


@pytest.fixture(scope="module")
def small(tmp_path_factory, data_dir):
    """A home with small weights under the name of GPT-2's, and transformers' model of them."""
    transformers = pytest.importorskip("transformers")
    home = tmp_path_factory.mktemp("home")
    folder = home / "weights" / "gpt2-124m"
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=12, n_head=2, n_layer=2, n_positions=64, initializer_range=0.5)
    ).eval()
    theirs.save_pretrained(folder)
    for ours, openais in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        shutil.copy(data_dir / "gpt2" / openais, folder / ours)
    return home, theirs


@pytest.mark.parametrize("wing", WINGS)
def test_small_weights_give_what_transformers_gives(monkeypatch, small, story, wing):
    """By the same functions: the mean of batches of two windows, as in the book; greedy text; the first number."""
    home, theirs = small
    monkeypatch.setenv("PARALLAX_HOME", str(home))
    found, encoder = released("gpt2-124m")
    assert found.weights["model.embed_tokens.weight"][0, 0] == theirs.transformer.wte.weight[0, 0].item()
    model, text, length = built(wing, found), story[:4000], 32
    want = []
    for part in split(text, 0.1):
        ids = torch.from_numpy(encoder.encode(part)).long()
        starts = range(0, len(ids) - length, length)
        assert len(starts) % 2 == 0  # so that the book's loader leaves none out
        inputs = torch.stack([ids[at : at + length] for at in starts])
        targets = torch.stack([ids[at + 1 : at + length + 1] for at in starts])
        with torch.no_grad():
            each = [
                F.cross_entropy(theirs(a).logits.flatten(0, 1), b.flatten())
                for a, b in zip(inputs.split(2), targets.split(2), strict=True)
            ]
        want.append(torch.stack(each).mean().item())
    assert losses(model, encoder, text, length) == pytest.approx(want, abs=1e-5)
    asked = torch.from_numpy(encoder.encode(PROMPT)).long()[None]
    row = theirs.generate(asked, do_sample=False, max_new_tokens=30, pad_token_id=0)[0, asked.shape[1] :]
    assert written(model, encoder, PROMPT, 30) == encoder.decode(row.numpy())


def test_without_the_weights_the_reason_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PARALLAX_HOME", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="parallax fetch gpt2-1558m"):
        released("gpt2-1558m")
