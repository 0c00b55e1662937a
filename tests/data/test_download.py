"""Downloads from a server on this machine that does everything wrong, once."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from metakm.data import download as module
from metakm.data.download import download

RIGHT = bytes(range(256)) * 1000
MD5 = hashlib.md5(RIGHT, usedforsecurity=False).hexdigest()
PAGE = b"<html><body>Please log in</body></html>"
STALL = 20.0  # seconds, after which the server hangs up: a client without a timeout would call that cut off


class Server(BaseHTTPRequestHandler):
    """Answers by the path asked for."""

    def do_GET(self) -> None:
        getattr(self, "get_" + self.path[1:].partition(".")[0])()

    def answer(self, body: bytes, length: int | None = None, kind: str = "application/zip", code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def get_right(self) -> None:
        self.answer(RIGHT, len(RIGHT))

    def get_truncated(self) -> None:
        self.answer(RIGHT[:5000], len(RIGHT))

    def get_unannounced(self) -> None:
        self.answer(RIGHT[:5000])

    def get_chunked(self) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"1000\r\n" + RIGHT[:100])  # announces 4096 bytes

    def get_stalled(self) -> None:
        self.answer(RIGHT[:5000], len(RIGHT))
        self.server.released.wait(STALL)  # type: ignore[attr-defined]

    def get_page(self) -> None:
        self.answer(PAGE, len(PAGE), "text/html; charset=utf-8")

    def get_wrong(self) -> None:
        self.answer(RIGHT[::-1], len(RIGHT))

    def get_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while not self.server.released.is_set():  # type: ignore[attr-defined]
                self.wfile.write(RIGHT)
        except OSError:  # the client hung up
            pass

    def get_absent(self) -> None:
        self.answer(PAGE, len(PAGE), "text/html", 404)

    def get_nonsense(self) -> None:
        self.wfile.write(b"\0\1\2 no HTTP at all\r\n\r\n")

    def get_moved(self) -> None:
        self.send_response(302)
        self.send_header("Location", "ftp://127.0.0.1/right.zip")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of the server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.released = threading.Event()  # type: ignore[attr-defined]
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.released.set()  # type: ignore[attr-defined]
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def plain_http_for_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCHEMES", ("http",))
    monkeypatch.setattr(module, "TIMEOUT", 0.5)


def test_a_right_file_arrives_whole_under_its_name_alone(server: str, tmp_path: Path) -> None:
    download(f"{server}/right.zip", tmp_path / "new" / "right.zip", MD5, len(RIGHT))
    assert (tmp_path / "new" / "right.zip").read_bytes() == RIGHT
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["right.zip"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("truncated", r"Expected 256000 bytes from .*, got 5000: the connection was lost"),
        ("unannounced", "the published checksum from .*, got 5000 bytes with another checksum$"),
        ("chunked", "IncompleteRead"),
        ("stalled", "timed out"),
        ("page", "got 39 bytes with another checksum, a web page: is there a proxy"),
        ("wrong", "the published checksum from .*, got 256000 bytes with another checksum$"),
        ("endless", "at most 256000 bytes from .*, got more"),
        ("absent", "HTTP Error 404"),
        ("nonsense", "BadStatusLine"),
        ("moved", r"over http, got ftp://127\.0\.0\.1/right\.zip"),
    ],
)
def test_anything_else_is_an_error_that_says_what_and_leaves_what_was_there(
    server: str, tmp_path: Path, name: str, said: str
) -> None:
    path = tmp_path / "file.zip"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=said):
        download(f"{server}/{name}.zip", path, MD5, len(RIGHT))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.zip"]


def test_only_https_is_spoken(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for url in (f"{server}/right.zip", "file:///etc/hostname", "ftp://127.0.0.1/a"):
        with pytest.raises(OSError, match="Expected a download over https, got"):
            download(url, tmp_path / "a.zip", MD5, len(RIGHT))
    assert not list(tmp_path.iterdir())


def test_a_port_where_nobody_listens_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="refused"):
        download("http://127.0.0.1:9/a.zip", tmp_path / "a.zip", MD5, len(RIGHT))
    assert not list(tmp_path.iterdir())
