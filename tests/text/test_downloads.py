"""Texts by name: fetched once, gone on with, known by their sums, and what is said without a network."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest

from common.data import downloads
from common.data.corpora import corpus

BODY = ("She sells sea shells. " * 400).encode()


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server that counts what it is asked for; TEXTS has one text there."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
            asked.append(start)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(BODY) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
            self.end_headers()
            self.wfile.write(BODY[start:])

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    text = downloads.Text(f"http://127.0.0.1:{running.server_port}/x.txt", hashlib.sha256(BODY).hexdigest(), "shells")
    monkeypatch.setitem(downloads.TEXTS, "tinyshakespeare", text)
    monkeypatch.setenv("PARALLAX_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield asked
    running.shutdown()
    running.server_close()


def test_a_text_is_fetched_once(server, call, tmp_path):
    found = corpus("tinyshakespeare")
    assert found.text.encode() == BODY
    assert found.source.startswith("shells, from http://")
    assert corpus("tinyshakespeare") == found
    assert server == [0]
    code, out, _ = call("fetch", "tinyshakespeare", "--into", tmp_path / "here")
    assert (code, out.strip()) == (0, str(tmp_path / "here" / "tinyshakespeare.txt"))
    assert (tmp_path / "here" / "tinyshakespeare.txt").read_bytes() == BODY


def test_a_download_goes_on_where_it_stopped(server):
    place = downloads.place_of("tinyshakespeare")
    place.parent.mkdir(parents=True)
    partial = place.with_name(f".{place.name}.{downloads.TEXTS['tinyshakespeare'].sha256[:16]}.partial")
    partial.write_bytes(BODY[:1000])
    assert downloads.obtain("tinyshakespeare").read_bytes() == BODY
    assert server == [1000]
    assert not partial.exists()


def test_a_text_that_lies_among_the_data_is_not_fetched(server, tmp_path, monkeypatch):
    """It is known by its sum: another one of that name is passed over."""
    folder = tmp_path / "data of mine"
    folder.mkdir()
    monkeypatch.setenv("PARALLAX_DATA", str(folder))
    (folder / "tinyshakespeare.txt").write_bytes(BODY)
    assert downloads.obtain("tinyshakespeare") == folder / "tinyshakespeare.txt"
    assert corpus("tinyshakespeare").text.encode() == BODY
    assert server == []
    (folder / "tinyshakespeare.txt").write_bytes(BODY[1:])
    assert downloads.obtain("tinyshakespeare") == downloads.place_of("tinyshakespeare")
    assert server == [0]


def test_other_bytes_are_removed(server, call, monkeypatch):
    other = downloads.Text(downloads.TEXTS["tinyshakespeare"].url, "0" * 64, "other")
    monkeypatch.setitem(downloads.TEXTS, "tinyshakespeare", other)
    code, _, err = call("train", "--data", "tinyshakespeare", "--out", downloads.place_of("x").parent / "run")
    assert code == 2
    assert "arrived with the SHA-256" in err
    assert err.count("\n") <= 2  # a bar of the download may have been drawn
    assert [path.name for path in downloads.place_of("x").parent.iterdir() if path.is_file()] == []


def test_without_a_network_it_says_what_to_put_where(call, monkeypatch, tmp_path):
    monkeypatch.setenv("PARALLAX_HOME", str(tmp_path))
    gone = downloads.Text("http://127.0.0.1:9/x.txt", "0" * 64, "gone")
    monkeypatch.setitem(downloads.TEXTS, "the-verdict", gone)
    code, _, err = call("fetch", "the-verdict")
    assert code == 2
    assert f"put the file at {tmp_path / 'corpora' / 'the-verdict.txt'} by hand" in err
    code, _, err = call("fetch", "the-verdit")
    assert (code, "did you mean 'the-verdict'" in err) == (2, True)


@pytest.mark.parametrize("name", ["the-verdict", "tinyshakespeare"])
def test_the_sums_are_those_of_the_texts(name, data_dir):
    assert hashlib.sha256((data_dir / f"{name}.txt").read_bytes()).hexdigest() == downloads.TEXTS[name].sha256
