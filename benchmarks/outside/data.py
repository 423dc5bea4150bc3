"""What lies around a model, ours and other libraries': byte-pair encoding, windows of a token file, checkpoints.

Every contender has the tasks of its library; what they return must be the judge's to the last bit. Tasks: "encode" a
text with a vocabulary that was learnt from it, "learn" that vocabulary, "learn_long" one of a longer text, "windows"
read batches from a file of ids, "checkpoint" writes weights and two averages, flushed to disk, and reads them again.
"""

import collections
import functools
import itertools
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from common.data.windows import Windows
from common.errors import UserError
from common.tokenizers import bpe
from common.weights.checkpoint import load_checkpoint, save_checkpoint

MERGES = 2_000
LONG = 8_000, 1 << 20  # merges, of a text of so many bytes
SLOTS = ("exp_avg", "exp_avg_sq")


class Timed:
    """The tasks of one library; see `common.backend.Model.prepare`."""

    def __init__(self, name, tasks, config, weights, execution):
        self.name, self.tasks, self.config, self.execution = name, tasks, config, execution
        self.weights = {name: np.asarray(array) for name, array in weights.items()}
        self.folder = tempfile.TemporaryDirectory(prefix="parallax-")

    def about(self, *shape):
        return {"attention": "none"}

    def prepare(self, task, inputs, targets=None):
        if task not in self.tasks:
            raise UserError(f"{self.name} has no task {task!r} here.")
        return self.tasks[task](self, np.asarray(inputs))

    @property
    def place(self):
        return Path(self.folder.name)


class Library:
    """See `common.backend.Backend`: what a contest needs of it. What it imports is imported with it."""

    def __init__(self, name, **tasks):
        self.name = self.title = name
        self.tasks = tasks

    def versions(self):
        return {"numpy": np.__version__}

    def flags(self):
        return {}

    def threads(self):
        """`tokenizers` has threads of its own; the others compute with one, which is no number of a pool."""
        return (
            int(os.environ["RAYON_NUM_THREADS"])
            if self.name == "tokenizers" and "RAYON_NUM_THREADS" in os.environ
            else None
        )

    def build(self, config, weights, execution):
        return Timed(self.name, self.tasks, config, weights, execution)


def text_of(inputs):
    return inputs.astype(np.uint8).tobytes().decode("utf-8")


@functools.lru_cache(maxsize=1)
def vocabulary(text):
    """Ours: the others are told it."""
    return bpe.train(text, 256 + MERGES, specials=())


def merges_of(length):
    """How many merges are learnt of a long text, or of the beginning of one."""
    merges, size = LONG
    return merges * length // size


def long(learn):
    """The same task with as many merges as a long text has."""
    return lambda own, inputs: learn(own, inputs, merges_of(len(inputs)))


def tokens(ids):
    return {"tokens": np.asarray(ids, np.int32)}


# --- byte-pair encoding ----------------------------------------------------------------------------------------------


def our_encode(own, inputs):
    """Anew every time, for it remembers the words that it has met."""
    text = text_of(inputs)
    known = vocabulary(text)
    return lambda: tokens(bpe.BPE(known.tokens, known.merges, known.specials).encode(text))


def tiktokens_encode(own, inputs):
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    text = text_of(inputs)
    ranks = {token: number for number, token in enumerate(vocabulary(text).tokens)}
    other = tiktoken.Encoding("ours", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})
    return lambda: tokens(other.encode_ordinary(text))


def huggingfaces_encode(own, inputs):
    """Anew every time, as ours."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    text = text_of(inputs)
    known = vocabulary(text)
    letters = [bpe._letters(token) for token in known.tokens]
    pairs = [(letters[first], letters[second]) for first, second in known.merges]
    numbers = {spelt: number for number, spelt in enumerate(letters)}

    def encode():
        other = Tokenizer(models.BPE(numbers, pairs))
        other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return tokens(other.encode(text).ids)

    return encode


def judged_encode(own, inputs):
    """Word by word: the merge that was learnt first, wherever it stands, until none is left."""
    text = text_of(inputs)
    known = vocabulary(text)
    ranks = {pair: number for number, pair in enumerate(known.merges)}
    of_byte = {byte: number for number, byte in enumerate(bpe.BYTES)}

    @functools.cache
    def ids(word):
        found = [of_byte[byte] for byte in word.encode()]
        while len(found) > 1:
            pairs = list(itertools.pairwise(found))
            best = min(pairs, key=lambda pair: ranks.get(pair, MERGES))
            if best not in ranks:
                break
            found = _merged(found, best, 256 + ranks[best])
        return found

    return lambda: tokens([number for word in bpe.SPLIT.findall(text) for number in ids(word)])


def _merged(ids, pair, new):
    """Ids with every such pair in one, from left to right."""
    found, at = [], 0
    while at < len(ids):
        both = tuple(ids[at : at + 2]) == pair
        found.append(new if both else ids[at])
        at += 2 if both else 1
    return found


def our_learn(own, inputs, merges=MERGES):
    text = text_of(inputs)
    return lambda: tokens(bpe.train(text, 256 + merges, specials=()).merges)


def huggingfaces_learn(own, inputs, merges=MERGES):
    """Its merges are taken out of what it writes, which is a hundredth of the time."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    text = text_of(inputs)
    alphabet = pre_tokenizers.ByteLevel.alphabet()

    def learn():
        other = Tokenizer(models.BPE())
        other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False)
        other.train_from_iterator([text], trainer)
        return tokens(_numbered(json.loads(other.to_str())["model"]["merges"]))

    return learn


def judged_learn(own, inputs, merges=MERGES):
    """Every pair counted anew for every merge, over all words one behind the other; of equal ones the smallest pair."""
    counts = collections.Counter(bpe.SPLIT.findall(text_of(inputs)))
    of_byte = {byte: number for number, byte in enumerate(bpe.BYTES)}
    end, most = -1, 256 + merges
    ids = np.array([n for word in counts for n in (*(of_byte[byte] for byte in word.encode()), end)])
    times = np.repeat(list(counts.values()), [len(word.encode()) + 1 for word in counts])

    def learn():
        row, weight, found = ids, times, []
        for new in range(256, most):
            inside = (row[:-1] != end) & (row[1:] != end)
            pairs = (row[:-1] * most + row[1:])[inside]
            each, where = np.unique(pairs, return_inverse=True)
            totals = np.bincount(where, weight[:-1][inside])
            best = int(each[totals.argmax()])  # the first of equal ones is the smallest
            found.append(divmod(best, most))
            row, weight = _joined(row, weight, *found[-1], new)
        return tokens(found)

    return learn


def _joined(row, weight, first, second, new):
    at = np.flatnonzero((row[:-1] == first) & (row[1:] == second))
    if first == second:  # of a run of equal ones every other one, from the left
        kept = []
        for one in at:
            if not kept or one > kept[-1] + 1:
                kept.append(one)
        at = np.array(kept, int)
    row = row.copy()
    row[at] = new
    return np.delete(row, at + 1), np.delete(weight, at + 1)


def _numbered(merges):
    """Merges of spelt tokens as pairs of ids: bytes first, then each merge in its turn."""
    ids = {bpe._letters(bytes([byte])): number for number, byte in enumerate(bpe.BYTES)}
    found = []
    for first, second in merges:
        found.append((ids[first], ids[second]))
        ids[first + second] = len(ids)
    return found


# --- windows ---------------------------------------------------------------------------------------------------------

LENGTH, BATCH = 128, 32


def _file(own, inputs):
    """The text's bytes as ids of 16 bits in a file, mapped."""
    path = own.place / "ids.bin"
    inputs.astype("<u2").tofile(path)
    return np.memmap(path, "<u2", "r")


def _counted(inputs, targets):
    """Something that needs all of a batch."""
    return [int(inputs.sum()), int(targets[:, -1].sum())]


def our_windows(own, inputs):
    windows = Windows(_file(own, inputs), LENGTH)

    def read():
        count = len(windows) // BATCH
        return tokens([_counted(*windows.gather(np.arange(i * BATCH, (i + 1) * BATCH))) for i in range(count)])

    return read


def torchs_windows(own, inputs):
    """A map-style dataset behind a DataLoader in this process, as the book has it."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    ids = _file(own, inputs)

    class Slices(Dataset):
        def __len__(self):
            return -(-(len(ids) - LENGTH) // LENGTH)

        def __getitem__(self, index):
            at = index * LENGTH
            own = torch.from_numpy(ids[at : at + LENGTH + 1].astype(np.int64))
            return own[:-1], own[1:]

    loader = DataLoader(Slices(), BATCH, shuffle=False, drop_last=True)
    return lambda: tokens([_counted(*batch) for batch in loader])


def judged_windows(own, inputs):
    """By slices of the array itself."""

    def read():
        starts = range(0, len(inputs) - LENGTH, LENGTH)
        rows = np.array([inputs[at : at + LENGTH + 1] for at in starts], np.int64)
        whole = rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH, LENGTH + 1)
        return tokens([_counted(batch[:, :-1], batch[:, 1:]) for batch in whole])

    return read


# --- checkpoints -----------------------------------------------------------------------------------------------------


def _state(own):
    """Weights, and as many numbers twice: other ones, for what is twice the same could be written once."""
    slots = {f"{name}.{slot}": array * (2 + at) for name, array in own.weights.items() for at, slot in enumerate(SLOTS)}
    return own.weights, slots


def _given(weights, slots):
    """Everything, so that nothing is read lazily and never."""
    return {**{f"weight/{name}": weights[name] for name in weights}, **{f"slot/{name}": slots[name] for name in slots}}


def our_checkpoint(own, inputs):
    weights, slots = _state(own)
    record = {"train": {"optimizer": "adamw"}}

    def there_and_back():
        save_checkpoint(own.place / "ours", own.config, weights, slots, record)
        found = load_checkpoint(own.place / "ours")
        return _given({name: found.weights[name] for name in weights}, {name: found.slots[name] for name in slots})

    return there_and_back


def torchs_checkpoint(own, inputs):
    import torch

    weights, slots = ({n: torch.from_numpy(np.array(a)) for n, a in part.items()} for part in _state(own))
    path = own.place / "theirs.pt"

    def there_and_back():
        with path.open("wb") as file:
            torch.save({"weights": weights, "slots": slots}, file)
            file.flush()
            os.fsync(file.fileno())
        return _given(**torch.load(path, weights_only=True))

    return there_and_back


def safetensors_checkpoint(own, inputs):
    from safetensors.numpy import load_file, save_file

    weights, slots = _state(own)
    paths = own.place / "weights.safetensors", own.place / "slots.safetensors"

    def there_and_back():
        for path, part in zip(paths, (weights, slots), strict=True):
            save_file(part, path)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        return _given(*map(load_file, paths))

    return there_and_back


def judged_checkpoint(own, inputs):
    return lambda: _given(*_state(own))


parallax = Library(
    "parallax",
    encode=our_encode,
    learn=our_learn,
    learn_long=long(our_learn),
    windows=our_windows,
    checkpoint=our_checkpoint,
)
tiktoken = Library("tiktoken", encode=tiktokens_encode)
tokenizers = Library(
    "tokenizers", encode=huggingfaces_encode, learn=huggingfaces_learn, learn_long=long(huggingfaces_learn)
)
torch = Library("torch", windows=torchs_windows, checkpoint=torchs_checkpoint)
safetensors = Library("safetensors", checkpoint=safetensors_checkpoint)
judge = Library(
    "judge",
    encode=judged_encode,
    learn=judged_learn,
    learn_long=long(judged_learn),
    windows=judged_windows,
    checkpoint=judged_checkpoint,
)
