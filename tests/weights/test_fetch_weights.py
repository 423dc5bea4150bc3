"""Pinned downloads from a loopback server that speaks as much of the hub's protocol as is needed."""

import gc
import hashlib
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from common import params
from common.config import GPTConfig
from common.weights import fetch as fetching
from common.weights.fetch import REGISTRY, Download, fetch
from common.weights.formats import load
from common.weights.huggingface import write_hf

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("huggingface_hub.constants")  # loaded lazily: whoever else imported it first does not matter

CONFIG = GPTConfig(300, 64, 96, 4, 4)
REVISION = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/small"
CHUNK = 16_384


class Hub(ThreadingHTTPServer):
    """Serves files under /<repository>/resolve/<revision>/; `stop_at` breaks the next download after so many bytes."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.stop_at, self.stall = files, [], None, None
        self.status = 200


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body: bool):
        hub = self.server
        asked = self.headers.get("Range")
        hub.asked.append((self.command, self.path.rsplit("/", 1)[-1], asked))
        data = hub.files.get(self.path.removeprefix(f"/{REPOSITORY}/resolve/{REVISION}/"))
        if data is None or hub.status != 200:
            self.send_response(404 if hub.status == 200 else hub.status)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        large = self.path.endswith(".safetensors")
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest() if large else git}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if not body:
            return
        end = len(data)
        if large and hub.stop_at is not None:
            end, hub.stop_at = hub.stop_at, None
        self.wfile.write(data[start:end])
        self.wfile.flush()
        if end < len(data):
            if hub.stall is not None:
                hub.stall()
            self.close_connection = True


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("upstream") / "m"
    write_hf(folder, CONFIG, params.randomise(CONFIG, 1))
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**found, "vocab.json": b'{"a": 0}', "merges.txt": b"#version: 0.2\n"}


@pytest.fixture
def hub(files, monkeypatch):
    server = Hub(dict(files))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def small(files, monkeypatch):
    """An entry whose large file is pinned, and one that pins nothing."""
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    monkeypatch.setitem(REGISTRY, "small", Download(REPOSITORY, REVISION, sums))
    monkeypatch.setitem(REGISTRY, "unpinned", Download(REPOSITORY, REVISION, dict.fromkeys(files)))
    return sums


def ours(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "." and path.suffix != ".lock"}


@pytest.mark.parametrize("name", ["small", "unpinned"])
def test_fetches_verifies_and_then_needs_no_network(name, hub, small, files, tmp_path):
    folder = fetch(name, tmp_path / "w")
    assert {n: data for n, data in ours(folder).items() if n != fetching.RECORD} == files
    assert load(folder).config == CONFIG
    assert ("GET", "model.safetensors", None) in hub.asked
    hub.asked.clear()
    assert fetch(name, tmp_path / "w") == folder
    assert hub.asked == []


def test_default_place(hub, small, tmp_path, monkeypatch):
    monkeypatch.setenv("PARALLAX_HOME", str(tmp_path / "home"))
    assert fetch("small") == tmp_path / "home" / "weights" / "small"
    monkeypatch.delenv("PARALLAX_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetching.place_of("small") == tmp_path / ".cache" / "parallax" / "weights" / "small"


def test_a_broken_connection_is_resumed_within_one_call(hub, small, files, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    hub.stop_at = 3 * CHUNK + 100
    folder = fetch("small", tmp_path / "w")
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    ranges = [asked for method, name, asked in hub.asked if (method, name) == ("GET", "model.safetensors")]
    assert len(ranges) == 2
    assert int(ranges[1].removeprefix("bytes=").rstrip("-")) >= CHUNK


@pytest.fixture
def no_collection():
    """An interrupt that arrives in a hook of the garbage collector, as hypothesis has one, would be swallowed."""
    gc.disable()
    yield
    gc.enable()


def test_an_interrupted_download_goes_on_in_the_next_call(hub, small, files, tmp_path, no_collection):
    main = threading.main_thread().ident

    def interrupt():
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not any(
            p.stat().st_size for p in (tmp_path / "w").glob(".model*partial")
        ):
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.5)

    hub.stop_at, hub.stall = 5 * CHUNK, interrupt
    with pytest.raises(KeyboardInterrupt):
        fetch("small", tmp_path / "w")
    assert not (tmp_path / "w" / "model.safetensors").exists()
    hub.asked.clear()
    folder = fetch("small", tmp_path / "w")
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    asked = [asked for method, name, asked in hub.asked if (method, name) == ("GET", "model.safetensors")]
    assert len(asked) == 1
    assert int(asked[0].removeprefix("bytes=").rstrip("-")) >= CHUNK
    assert not list((tmp_path / "w").glob(".*partial"))


@pytest.mark.parametrize("name", ["small", "unpinned"])
def test_wrong_sums_remove_the_file(name, hub, small, tmp_path, monkeypatch, refused):
    good = hub.files["model.safetensors"]
    bad = good[:-1] + bytes([good[-1] ^ 1])
    if name == "small":
        hub.files["model.safetensors"] = bad
    else:  # the hub states one sum and sends other bytes
        ask = fetching._ask

        def lying(download, file):
            facts, headers = ask(download, file)
            if file == "model.safetensors":
                hub.files[file] = bad
            return facts, headers

        monkeypatch.setattr(fetching, "_ask", lying)
    with refused("model.safetensors", "SHA-256", "removed", hashlib.sha256(good).hexdigest()):
        fetch(name, tmp_path / "w")
    assert not (tmp_path / "w" / "model.safetensors").exists()
    assert not list((tmp_path / "w").glob(".*partial"))


def test_a_file_that_changed_is_fetched_again(hub, small, files, tmp_path):
    folder = fetch("small", tmp_path / "w")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    fetch("small", tmp_path / "w")
    assert path.read_bytes() == files["model.safetensors"]
    os.utime(path)  # a new time alone is no reason to fetch
    hub.asked.clear()
    fetch("small", tmp_path / "w")
    assert hub.asked == []


def test_another_revision_is_fetched_anew(hub, small, tmp_path, monkeypatch, refused):
    fetch("unpinned", tmp_path / "w")
    monkeypatch.setitem(REGISTRY, "unpinned", Download(REPOSITORY, "f" * 40, REGISTRY["unpinned"].files))
    (tmp_path / "w" / "config.json").unlink()
    with refused("f" * 40):
        fetch("unpinned", tmp_path / "w")


def test_offline_says_what_to_put_where_and_by_hand_works(small, files, tmp_path, monkeypatch, refused):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    where = tmp_path / "w"
    with refused(REPOSITORY, REVISION, str(where), "config.json, ", "model.safetensors", "by hand"):
        fetch("small", where)
    for name, data in files.items():
        (where / name).write_bytes(data)
    assert load(fetch("small", where)).config == CONFIG
    (where / fetching.RECORD).unlink()
    assert load(fetch("unpinned", where)).config == CONFIG
    (where / "model.safetensors").write_bytes(b"not this")
    with refused(REPOSITORY, "by hand"):
        fetch("small", where)


@pytest.mark.parametrize("status", [200, 401, 500])
def test_a_hub_that_refuses_is_one_sentence(status, hub, small, tmp_path, refused):
    hub.status = status
    hub.files.clear()
    with refused(REPOSITORY, REVISION, "by hand"):
        fetch("small", tmp_path / "w")


def test_no_server_at_all(hub, small, tmp_path, monkeypatch, refused):
    hub.shutdown()
    hub.server_close()
    with refused(REPOSITORY, REVISION, "by hand"):
        fetch("small", tmp_path / "w")


def test_unknown_names_and_places(small, tmp_path, refused):
    with refused("Unknown download", "gpt2-124m"):
        fetch("gpt2-142m")
    (tmp_path / "file").touch()
    with refused("is a file"):
        fetch("small", tmp_path / "file")


def test_the_registry_is_pinned():
    assert [name for name in REGISTRY if name.startswith("gpt2")] == [
        "gpt2-124m",
        "gpt2-355m",
        "gpt2-774m",
        "gpt2-1558m",
    ]
    for download in REGISTRY.values():
        assert len(download.revision) == 40
        assert {"config.json", "vocab.json", "merges.txt", "model.safetensors"} == set(download.files)
        assert all(pinned is None or len(pinned) == 64 for pinned in download.files.values())
