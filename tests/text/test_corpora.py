"""Corpora: the embedded one, files and folders, and one sentence for each that cannot be used."""

import hashlib
import os

import numpy as np
import pytest

from common.data.corpora import corpus, split
from common.errors import UserError


def test_default_needs_no_file_and_is_the_same_each_time():
    from pydoc_data.topics import topics

    made = corpus()
    assert made == corpus("pydoc")
    assert len(made.text) > 300_000
    assert made.text.startswith(topics["assert"].strip())
    places = [made.text.index(topics[name].strip()) for name in ("assert", "for", "while", "yield")]
    assert places == sorted(places)
    assert made.sha256 == hashlib.sha256(made.text.encode()).hexdigest()
    assert "text" not in made.describe()


def test_file_is_taken_as_it_is_but_for_the_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\xc3\xa9\n")
    made = corpus(tmp_path / "a.txt")
    assert made.text == "one\r\ntwoé\n"
    assert made.name == "a.txt"
    assert made.sha256 == hashlib.sha256(made.text.encode()).hexdigest()


def test_real_files(data_dir):
    verdict = corpus(data_dir / "the-verdict.txt")
    assert len(verdict.text) == 20479
    assert verdict.sha256.startswith("b41e41a68f0398a3")
    assert not corpus(data_dir / "gutenberg" / "11-0.txt").text.startswith("\ufeff")


def test_folder_is_its_text_files_by_path(tmp_path):
    for name, text in {"b.md": "B\n\n", "a/z.py": "Z", "a/y.TXT": "Y", "empty.txt": "", "c.bin": "no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in (".hidden.txt", ".git/config.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("hidden")
    made = corpus(tmp_path)
    assert made.text == "Y\n\nZ\n\nB\n"
    assert made.source.startswith("4 files")


def test_missing_path_names_what_is_near(tmp_path):
    (tmp_path / "shakespeare.txt").write_text("x")
    with pytest.raises(UserError, match=r"does not exist; did you mean 'shakespeare\.txt'"):
        corpus(tmp_path / "shakespear.txt")
    with pytest.raises(UserError, match="did you mean 'pydoc'"):
        corpus("pydocs")
    with pytest.raises(UserError, match="does not exist; give a text file"):
        corpus(tmp_path / "no" / "such" / "place")
    with pytest.raises(UserError, match="has no name"):
        corpus("")
    with pytest.raises(UserError, match="too long"):
        corpus("x" * 5000)


@pytest.mark.parametrize("content", [b"", b" \n\t", b"\xef\xbb\xbf"])
def test_empty_corpus(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"Corpus 'a\.txt' is empty"):
        corpus(tmp_path / "a.txt")


def test_binary_file_is_named_with_the_place(tmp_path):
    (tmp_path / "nul.txt").write_bytes(b"abc\0def")
    (tmp_path / "latin.txt").write_bytes("cafè".encode("latin1"))
    with pytest.raises(UserError, match=r"nul\.txt is binary \(a NUL byte at offset 3\)"):
        corpus(tmp_path / "nul.txt")
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8 text \(byte 0xe8 at offset 3\)"):
        corpus(tmp_path)


def test_folder_without_text(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"has no text files; looked for names ending in \.txt"):
        corpus(tmp_path)


def test_neither_file_nor_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        corpus(tmp_path / "pipe")


def test_unreadable_file(tmp_path, monkeypatch):
    """The refusal is simulated, because an administrator may read everything."""
    (tmp_path / "a.txt").write_text("x")

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(UserError, match=r"Cannot read .*a\.txt: Permission denied"):
        corpus(tmp_path / "a.txt")


def test_split_keeps_order_and_loses_nothing():
    train, held = split("abcdefghij", 0.2)
    assert (train, held) == ("abcdefgh", "ij")
    ids = np.arange(1001)
    train, held = split(ids)
    assert (len(train), len(held)) == (900, 101)
    np.testing.assert_array_equal(np.concatenate([train, held]), ids)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_split_share(share):
    with pytest.raises(UserError, match="above 0 and below 1"):
        split("abc", share)


def test_split_without_a_part():
    with pytest.raises(UserError, match="one part would be empty"):
        split("a", 0.5)


def test_windows_are_shown_on_whole_numbers(call):
    code, out, _ = call("corpus", "windows", "--count", 11, "--length", 4, "--stride", 2)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("4 windows of 4, one every 2")
    assert lines[2].split() == ["1", *"2345", "->", *"3456"]
    shown = [line for line in lines if "|" in line]
    first, second = (
        [int(part.split(":")[0]) for line in some for part in line.split("|")] for some in (shown[:2], shown[2:])
    )
    assert sorted(first) == sorted(second) == [0, 1, 2, 3]
    assert call("corpus", "windows", "--count", 4)[0] == 2
    code, _, err = call("corpus", "windows", "book.txt")
    assert (code, err.count("\n")) == (2, 1)
    assert call("corpus", "tokens")[0] == 2
