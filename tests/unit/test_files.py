"""Writing all or nothing: a failure leaves what was there, and no litter."""

import contextlib
import os

import pytest

from common import files
from common.errors import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_only_when_the_new_one_is_complete(tmp_path):
    target = tmp_path / "a" / "file.txt"
    files.write_text(target, "old")
    with contextlib.suppress(RuntimeError), files.replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    files.write_text(target, "new")
    assert target.read_text() == "new"
    assert names(target.parent) == ["file.txt"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~files._umask()


def test_a_folder_is_replaced_only_when_the_new_one_is_complete(tmp_path):
    target = tmp_path / "folder"
    for text in ("old", "new"):
        with files.replacing_folder(target) as temporary:
            (temporary / "x").write_text(text)
    assert (target / "x").read_text() == "new"
    with contextlib.suppress(RuntimeError), files.replacing_folder(target) as temporary:
        (temporary / "x").write_text("half")
        raise RuntimeError
    assert (target / "x").read_text() == "new"
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_takes_anothers_place_has_its_mode(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    target.chmod(0o700)
    with files.replacing_folder(target) as temporary:
        (temporary / "file").touch()
    assert target.stat().st_mode & 0o7777 == 0o700
    assert (target / "file").exists()


@pytest.mark.parametrize("writer", [files.replacing, files.replacing_folder])
def test_a_full_disk_is_told_in_a_sentence(tmp_path, writer):
    with pytest.raises(UserError, match=r"Cannot write .*No space left on device"), writer(tmp_path / "x"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_what_is_appended_is_there_whole_or_not_at_all(tmp_path):
    """A file that may not grow so far takes a part of what it is given, as one on a full disk does."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "x"
    for text in ("one\n", "zwölf\n"):
        files.append(path, text)
    assert path.read_text(encoding="utf-8") == "one\nzwölf\n"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 3, hard))
    try:
        with pytest.raises(UserError, match=r"Cannot write .*x: File too large\. What was there before is unchanged"):
            files.append(path, "three\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text(encoding="utf-8") == "one\nzwölf\n"
    with pytest.raises(UserError, match="Cannot write"):
        files.append(tmp_path, "text")


def test_a_failed_rename_brings_the_old_folder_back(tmp_path, monkeypatch):
    target, rename = tmp_path / "folder", os.rename
    with files.replacing_folder(target) as temporary:
        (temporary / "x").write_text("old")

    def fails(source, place):
        if str(place) == str(target) and ".old." not in str(source):
            raise OSError(5, "Input/output error")
        rename(source, place)

    monkeypatch.setattr(os, "rename", fails)
    monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    with pytest.raises(UserError, match="Input/output error"), files.replacing_folder(target) as temporary:
        (temporary / "x").write_text("new")
    assert (target / "x").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_wrong_kinds_of_target_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a folder"), files.replacing(tmp_path):
        pass
    with pytest.raises(UserError, match="is a file"), files.replacing_folder(tmp_path / "file"):
        pass
    with pytest.raises(UserError, match="is a file; give a folder"):
        files.output_folder(tmp_path / "file")
    with pytest.raises(UserError, match="Cannot write"):
        files.output_folder(tmp_path / "file" / "inside")
