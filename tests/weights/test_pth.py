"""PyTorch state dicts through the door: the book's files, every scheme, and pickles that must not run."""

import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from common import backend, params
from common.config import GPTConfig
from common.errors import UserError
from common.weights import gpt2_names
from common.weights.formats import convert, load
from common.weights.pth import open_pth, write_pth
from common.weights.stored import in_memory

torch = pytest.importorskip("torch")


@pytest.fixture
def book(tiny, weights, tmp_path):
    """The tiny model as the book's GPTModel saves it."""
    path = tmp_path / "model.pth"
    write_pth(path, gpt2_names.from_canonical(gpt2_names.BOOK, tiny, weights))
    return path


def test_torch_reads_what_we_write(book, tiny, weights):
    state = torch.load(book, weights_only=True)
    assert list(state) == list(gpt2_names.entries(gpt2_names.BOOK, tiny))
    assert torch.equal(state["out_head.weight"], torch.from_numpy(weights["model.embed_tokens.weight"]))
    assert state["out_head.weight"].data_ptr() != state["tok_emb.weight"].data_ptr()
    query = weights["model.layers.1.self_attn.q_proj.weight"]
    assert torch.equal(state["trf_blocks.1.att.W_query.weight"], torch.from_numpy(query))


def test_round_trip_gives_identical_bytes(book, tmp_path):
    convert(book, tmp_path / "again.pth", heads=3)
    assert (tmp_path / "again.pth").read_bytes() == book.read_bytes()
    convert(book, tmp_path / "hf.pth", heads=3, names="hf")
    convert(tmp_path / "hf.pth", tmp_path / "back.pth", heads=3)
    assert (tmp_path / "back.pth").read_bytes() == book.read_bytes()


def test_an_untied_head_stays_untied_unless_told(book, tiny, same, weights):
    found = load(book, heads=3)
    assert found.kind == "pth"
    assert found.config == tiny.with_(tie_embeddings=False)
    assert np.array_equal(found.weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    tied = load(book, heads=3, tie=True)
    assert tied.config == tiny
    assert same(tied.weights, weights)


def test_the_books_checkpoint_with_optimizer_is_unwrapped(book, tmp_path, same):
    state = torch.load(book, weights_only=True)
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]}
    torch.save({"model_state_dict": state, "optimizer_state_dict": optimizer}, tmp_path / "both.pth")
    assert same(load(tmp_path / "both.pth", heads=3).weights, load(book, heads=3).weights)


def test_masks_transposed_views_halves_and_old_files(tmp_path):
    values = torch.arange(12.0).reshape(3, 4)
    state = {"a": values.T, "b": values.bfloat16(), "c": torch.nn.Parameter(values), "d": torch.tensor(2)}
    for name, new in (("new.pth", True), ("old.pth", False)):
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=new)
        found = backend.load("torch").read_state_dict(tmp_path / name)
        assert np.array_equal(found["a"], np.arange(12, dtype=np.float32).reshape(3, 4).T)
        assert found["b"].dtype == ml_dtypes.bfloat16
        assert np.array_equal(found["b"].astype(np.float32), values.numpy())
        assert np.array_equal(found["c"], values.numpy())
        assert found["d"] == 2


def test_bfloat16_and_read_only_arrays_are_written(tmp_path):
    halves = np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3)
    frozen = np.arange(4.0)
    frozen.flags.writeable = False
    backend.load("torch").write_state_dict(tmp_path / "x.pth", {"h": halves, "f": frozen, "t": halves.T})
    state = torch.load(tmp_path / "x.pth", weights_only=True)
    assert state["h"].dtype == torch.bfloat16
    assert state["t"].tolist() == halves.T.astype(float).tolist()
    assert state["f"].tolist() == [0, 1, 2, 3]


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickles_that_run_code_are_refused_and_do_not_run(tmp_path, refused):
    trap = tmp_path / "sprung"
    torch.save({"a": Evil(trap)}, tmp_path / "new.pth")
    torch.save({"a": Evil(trap)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Evil(trap)))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    for name in ("new.pth", "old.pth", "bare.pth", "module.pth"):
        with refused(name, "not a PyTorch state dict that can be read safely"):
            open_pth(tmp_path / name)
    assert not trap.exists()


def _compressed(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))


NO_STATE_DICTS = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello, this is not a checkpoint"),
    "half an archive": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(50)),
    "a compressed archive": _compressed,
    "a list": lambda path: torch.save([torch.zeros(2)], path),
    "a tensor": lambda path: torch.save(torch.zeros(2), path),
    "an empty dictionary": lambda path: torch.save({}, path),
    "numbers": lambda path: torch.save({"lr": 3}, path),
    "sparse": lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path),
    "names that are no text": lambda path: torch.save({3: torch.zeros(2)}, path),
    "optimizer only": lambda path: torch.save({"optimizer_state_dict": {}}, path),
}


@pytest.mark.parametrize("what", NO_STATE_DICTS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_files_are_refused(what, tmp_path, refused):
    path = tmp_path / "x.pth"
    NO_STATE_DICTS[what](path)
    with refused(str(path)):
        open_pth(path)


def test_truncations_are_refused(book, refused):
    sound = book.read_bytes()
    for size in range(0, len(sound), len(sound) // 40):
        book.write_bytes(sound[:size])
        with refused(str(book)):
            open_pth(book)


def test_missing_file_and_missing_heads(tmp_path, book, refused):
    with refused("There is no PyTorch state dict"):
        open_pth(tmp_path / "nowhere.pth")
    with refused("number of heads", "heads="):
        load(book)
    with refused("num_heads"):
        load(book, heads=5)


def test_heads_come_from_the_preset_of_the_same_shapes(tmp_path):
    """The book's small model, its context and all, but of zeros that take no room."""
    zero = torch.zeros(1)
    config = GPTConfig(50257, 1024, 768, 12, 12, qkv_bias=False, tie_embeddings=False)
    shapes = {name: entry.shape for name, entry in gpt2_names.entries(gpt2_names.BOOK, config).items()}
    torch.save({name: zero.expand(shape) for name, shape in shapes.items()}, tmp_path / "124m.pth")
    assert load(tmp_path / "124m.pth").config == config


def test_a_failed_write_leaves_the_old_file(book, tiny, monkeypatch):
    sound = book.read_bytes()

    def full(*_, **__):
        raise RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/1: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="file write failed"):
        write_pth(book, gpt2_names.from_canonical(gpt2_names.BOOK, tiny, params.randomise(tiny, 1)))
    assert book.read_bytes() == sound
    assert [item.name for item in book.parent.iterdir()] == [book.name]


def test_arrays_are_mapped_not_copied(tmp_path):
    write_pth(tmp_path / "x.pth", {"a": in_memory(np.zeros((1000, 1000), np.float32))})
    found = open_pth(tmp_path / "x.pth")
    assert found["a"].shape == (1000, 1000)
    assert not found["a"].read().flags.owndata
