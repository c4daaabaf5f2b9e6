"""``hmac-file-server put`` beside a real daemon."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from hmac_file_server.slots.issue import PROTOCOLS
from tests.process.test_command import COMMAND, command
from tests.support import Daemon, free_port

MakeDaemon = Callable[..., Daemon]

MIB = 1 << 20


class Relay:
    """Passes connections on to a port, and cuts those that bring too much.

    :param cuts: after how many bytes the first ones are cut, each in its turn.
    """

    def __init__(self, port: int, cuts: list[int]) -> None:
        self.there, self.cuts = port, cuts
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.there))
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        passed = 0
        while data := client.recv(65536):
            server.sendall(data)
            passed += len(data)
            if self.cuts and passed > self.cuts[0]:
                del self.cuts[0]
                break
        for side in (client, server):
            side.close()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        sink.close()


class Server:
    """Something before the daemon.

    :param answer: is given each connection and the head of its first request; whether it has answered by itself.
    """

    def __init__(self, port: int, answer: Callable[[socket.socket, bytes], bool]) -> None:
        self.there, self.answer = port, answer
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/upload/"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            head = client.recv(65536)
            if self.answer(client, head):
                return
            with socket.create_connection(("127.0.0.1", self.there)) as server:
                threading.Thread(target=_pass, args=(server, client), daemon=True).start()
                server.sendall(head)
                _pass(client, server)


def _pass(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def stored(daemon: Daemon, url: str) -> bytes:
    """The file that a printed URL leads to."""
    path = unquote(urlsplit(url.strip()).path.removeprefix("/upload/"))
    answer = daemon.get(path)
    assert answer.status == 200
    return answer.body


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_files(make_daemon: MakeDaemon, tmp_path: Path, protocol: str) -> None:
    """Small, large and empty ones, with awkward names; each URL fetches its file, and nothing else is printed."""
    daemon = make_daemon().start()
    bodies = {"my phöto's 100%+?&#.jpg": b"small", "large.bin": os.urandom(3 * MIB + 7), "empty": b""}
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)
    ended = command("put", "--protocol", protocol, "-c", daemon.config, *bodies, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    urls = ended.stdout.splitlines()
    assert [stored(daemon, url) for url in urls] == list(bodies.values())
    assert unquote(urls[0]).endswith("/my phöto's 100%+?&#.jpg")


def test_standard_input(make_daemon: MakeDaemon) -> None:
    """From a pipe, and from a file that the shell has opened."""
    daemon = make_daemon().start()
    piped = subprocess.run(
        [*COMMAND, "put", "-c", str(daemon.config), "-"], input=b"piped", capture_output=True, check=True
    )
    assert stored(daemon, piped.stdout.decode()) == b"piped"
    with daemon.config.open("rb") as file:
        opened = subprocess.run(
            [*COMMAND, "put", "-c", str(daemon.config), "-"], stdin=file, capture_output=True, check=True
        )
    assert stored(daemon, opened.stdout.decode()) == daemon.config.read_bytes()


def test_a_socket(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    daemon = make_daemon(ListenPort=f"unix:{tmp_path}/upload.sock").start()
    ended = command("put", "-c", daemon.config, daemon.config)
    assert ended.returncode == 0, ended.stderr
    [name] = [name for name in daemon.files() if name.endswith("config.toml")]
    assert (daemon.store / name).read_bytes() == daemon.config.read_bytes()


def test_it_resumes(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A large file whose connection is cut goes on where the server has got to."""
    daemon = make_daemon().start()
    relay = Relay(daemon.port, [3 * MIB, 2 * MIB])
    body = os.urandom(8 * MIB)
    (tmp_path / "large.bin").write_bytes(body)
    url = f"http://127.0.0.1:{relay.port}/upload/"
    ended = command("put", "-c", daemon.config, "--url", url, "large.bin", cwd=tmp_path)
    relay.listener.close()
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("trying again in") == 2
    assert ended.stdout.startswith(url)
    assert stored(daemon, ended.stdout) == body
    came = [int(size) for size in re.findall(r"PATCH \S+ \S+ in=(\d+)", daemon.log)]
    assert len(came) == 3
    assert sum(came) < 2 * len(body)
    assert came[-1] < len(body)


def test_it_tries_again(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A small file, and any where the server can not resume, is sent again as a whole."""
    daemon = make_daemon(ResumableUploads=False).start()
    relay = Relay(daemon.port, [MIB])
    body = os.urandom(2 * MIB)
    (tmp_path / "large.bin").write_bytes(body)
    url = f"http://127.0.0.1:{relay.port}/upload/"
    ended = command("put", "-c", daemon.config, "--url", url, "large.bin", cwd=tmp_path)
    relay.listener.close()
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("trying again in") == 1
    assert stored(daemon, ended.stdout) == body


def test_a_server_that_comes_up(make_daemon: MakeDaemon) -> None:
    """Nobody listens yet: it waits, and goes on to the end when somebody does."""
    daemon = make_daemon()
    with subprocess.Popen(
        [*COMMAND, "put", "-c", str(daemon.config), str(daemon.config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as waiting:
        assert waiting.stderr is not None
        while b"trying again" not in waiting.stderr.readline():
            assert waiting.poll() is None
        daemon.start()
        out, _ = waiting.communicate(timeout=120)
    assert waiting.returncode == 0
    assert stored(daemon, out.decode()) == daemon.config.read_bytes()


def test_an_answer_before_the_end(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A proxy that fails early, and goes on to read, has nothing to do with the next try."""
    daemon = make_daemon().start()
    body = os.urandom(8 * MIB)
    (tmp_path / "large.bin").write_bytes(body)
    drained: list[bytes] = []

    def fail_once(client: socket.socket, head: bytes) -> bool:
        if not head.startswith(b"PATCH") or drained:
            return False
        drained.append(b"")
        client.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        while data := client.recv(65536):
            drained.append(data)
        return True

    with Server(daemon.port, fail_once) as server:
        ended = command("put", "-c", daemon.config, "--url", server.url, "large.bin", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert stored(daemon, ended.stdout) == body


@pytest.mark.parametrize("ending", ["endless", "cut"])
def test_an_answer_that_is_not_whole(make_daemon: MakeDaemon, tmp_path: Path, ending: str) -> None:
    """What is said of a refusal is read as far as it is worth it, and shown without what moves a terminal's cursor."""
    daemon = make_daemon()
    (tmp_path / "file").write_bytes(b"hello")

    def refuse(client: socket.socket, head: bytes) -> bool:
        client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 100000000\r\n\r\nno \x1b]0;owned\x07")
        if ending == "endless":
            while True:
                client.sendall(b"x" * 1000)
        return True

    with Server(daemon.port, refuse) as server:
        ended = command("put", "-c", daemon.config, "--url", server.url, "file", "file", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.count("file: 403 no \\x1b]0;owned\\x07") == 2
    assert "Traceback" not in ended.stderr


def test_names_that_can_not_be_slots(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """They are named, and the others go on."""
    daemon = make_daemon().start()
    for name in (".hmac-file-server-x", "a\nb", "ok"):
        (tmp_path / name).write_text("hello")
    ended = command("put", "-c", daemon.config, ".hmac-file-server-x", "a\nb", "ok", cwd=tmp_path)
    assert ended.returncode == 1
    assert "the path has a name that the server keeps for itself" in ended.stderr
    assert "the path has a control character" in ended.stderr
    assert stored(daemon, ended.stdout) == b"hello"


def test_nowhere_to_print(make_daemon: MakeDaemon) -> None:
    """A URL that can not be printed is not lost."""
    daemon = make_daemon().start()
    with Path("/dev/full").open("wb") as full:
        run = [*COMMAND, "put", "-c", str(daemon.config), str(daemon.config)]
        ended = subprocess.run(run, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    assert ended.returncode == 1
    [url] = re.findall(r"(http\S+) is stored; standard output: No space left on device", ended.stderr)
    assert stored(daemon, url) == daemon.config.read_bytes()


@pytest.mark.parametrize(
    ("settings", "size", "words"),
    [
        ({"Secret": "one-that-the-daemon-does-not-have"}, 5, "403 the signature does not hold (hmac-file-server)"),
        ({"MaxUploadSize": 100}, 5000, "413 at most 100 bytes are taken"),
    ],
)
def test_refused(make_daemon: MakeDaemon, tmp_path: Path, settings: dict[str, object], size: int, words: str) -> None:
    """What the server says is said, and nothing is tried again; the other files go on."""
    daemon = make_daemon(**{name: value for name, value in settings.items() if name != "Secret"}).start()
    if "Secret" in settings:
        daemon.settings |= settings
        daemon.configure()
    (tmp_path / "file").write_bytes(bytes(size))
    ended = command("put", "-c", daemon.config, "file", "nowhere", "file", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.count(f"file: {words}") == 2
    assert "nowhere: No such file or directory" in ended.stderr
    assert "again" not in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize("url", ["upload.example.org/upload", "https://größe.example/"])
def test_a_url_that_is_none(make_daemon: MakeDaemon, url: str) -> None:
    daemon = make_daemon(ListenPort=f"127.0.0.1:{free_port()}")
    ended = command("put", "-c", daemon.config, "--url", url, daemon.config)
    assert ended.returncode == 2
    assert "write it as https://upload.example.org/upload/" in ended.stderr
