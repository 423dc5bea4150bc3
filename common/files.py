"""Files: writing so that nothing existing is lost or half-written (beside its place, then renamed), sums, settings."""

import contextlib
import ctypes
import hashlib
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError


def _explain(error: OSError, target: Path) -> UserError:
    reason = error.strerror or str(error)
    return UserError(f"Cannot write {target}: {reason}. What was there before is unchanged.")


def place_of_file(target: Path | str) -> Path:
    """The whole path of a file that is to be written, refused where there can be none; nothing is written yet."""
    target = Path(target)
    if target.is_dir():
        raise UserError(f"{target} is a folder; a file is to be written there.")
    target = target.resolve()
    if target.exists() and not target.is_file():
        raise UserError(f"{target} is not a regular file; give another place.")
    above = next(one for one in target.parents if one.exists())
    if not above.is_dir():
        raise UserError(f"Cannot write {target}: {above} is a file.")
    return target


@contextlib.contextmanager
def replacing(target: Path | str) -> Iterator[Path]:
    """Yield a path beside `target` for a new file; rename it over `target` if the block succeeds."""
    target = place_of_file(target)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise _explain(error, target) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(target: Path | str) -> Iterator[Path]:
    """Yield a folder beside `target`; on success it takes the place of `target`, whose old content goes last."""
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; a folder is to be written there.")
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield temporary
        os.chmod(temporary, target.stat().st_mode & 0o7777 if target.exists() else 0o777 & ~_umask())
        take_place(temporary, target)
        temporary = None
    except OSError as error:
        raise _explain(error, target) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def take_place(temporary: Path, target: Path) -> None:
    """Rename a finished folder to `target`; an older one there goes last, and comes back if the renaming fails or is
    interrupted. On Linux there is a whole folder of that name at any moment."""
    if not target.exists():
        os.rename(temporary, target)
        return
    if _exchanged(temporary, target):
        shutil.rmtree(temporary, ignore_errors=True)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        os.rename(target, old / "content")
        os.rename(temporary, target)
    finally:
        if not target.exists():
            os.rename(old / "content", target)
        shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the system could let two names change places, which happens at once (renameat2 of Linux)."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def home() -> Path:
    """The folder of what is downloaded: $PARALLAX_HOME, or ~/.cache/parallax."""
    return Path(os.environ.get("PARALLAX_HOME") or Path.home() / ".cache" / "parallax").expanduser()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file says; one that cannot be read, or is none, is refused in one sentence."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML file: {error}.") from error


def output_folder(path: Path | str) -> Path:
    """Make a folder for results, or say plainly why that cannot be."""
    path = Path(path)
    try:
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; give a folder for the results.")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explain(error, path) from error
    return path


def folder_beside(target: Path | str) -> Path:
    """A new empty folder beside `target`, which may take its place later; or say plainly why there can be none."""
    target = Path(target)
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        os.chmod(made, 0o777 & ~_umask())
    except OSError as error:
        raise _explain(error, target) from error
    return made


@contextlib.contextmanager
def alone(lock: Path, told: str) -> Iterator[None]:
    """Hold a file against other processes, or raise UserError with what is `told`; one that is killed holds nothing."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(told) from error
        yield


def write_text(target: Path | str, text: str) -> None:
    """Replace `target` by `text` (UTF-8), all or nothing."""
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append(target: Path | str, text: str) -> None:
    """Write `text` (UTF-8) behind what `target` holds, all or nothing; nobody waits for the disk."""
    left = text.encode("utf-8")
    try:
        with open(target, "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while left:  # a disk that fills up takes a part
                    left = left[file.write(left) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
    except OSError as error:
        raise _explain(error, Path(target)) from error


def settled(target: Path | str) -> bool:
    """Wait until the disk has what was appended to `target`; whether there is such a file."""
    try:
        with open(target, "rb+") as file:
            os.fsync(file.fileno())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _explain(error, Path(target)) from error
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
