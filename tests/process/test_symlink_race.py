"""A store that somebody else changes: symbolic links and things that are no files, also while uploads run."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import socket
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import DEADLINE, Daemon, eventually, put_target

MakeDaemon = Callable[..., Daemon]

SECRET_TEXT = b"nobody may read this"

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: Path, two: Path) -> None:
    """Swap two names in one step: at each moment each of them is there."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(two), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the store, with a file in it and in a folder of its own."""
    folder = tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    (folder / "secret.txt").write_bytes(SECRET_TEXT)
    (folder / "deep" / "secret.txt").write_bytes(SECRET_TEXT)
    return folder


def tree(folder: Path) -> dict[str, bytes | str]:
    """Each name below a folder, with a file's bytes or a link's target."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = oct(stat.S_IFMT(path.lstat().st_mode))
    return found


def test_links_to_files(daemon: Daemon, outside: Path) -> None:
    """A symbolic link is no file, wherever it leads: it is not served, not followed and not replaced."""
    slot = daemon.store / "slot"
    slot.mkdir()
    (slot / "own.txt").write_bytes(b"public")
    links = {
        "absolute.txt": str(outside / "secret.txt"),
        "relative.txt": "../../outside/secret.txt",
        "missing.txt": str(outside / "new.txt"),
        "loop.txt": "loop.txt",
        "reserved.txt": "../.hmac-file-server",
        "own-link.txt": "own.txt",
        "zero.txt": "/dev/zero",
        "config.txt": str(daemon.config),
    }
    for name, target in links.items():
        (slot / name).symlink_to(target)
    inside, beyond = tree(daemon.store), tree(outside)
    for name, target in links.items():
        for method in ("GET", "HEAD"):
            assert daemon.request(method, f"/upload/slot/{name}").status == 404
        # Bodies as long as the link's target, as the link itself, as the file it leads to; and of its very bytes.
        for body in (b"hello", b"x" * len(target), SECRET_TEXT, b"public", b""):
            assert daemon.put(f"slot/{name}", body).status == 409
    assert daemon.get("slot/own.txt").body == b"public"
    assert (tree(daemon.store), tree(outside)) == (inside, beyond)


def test_links_to_folders(daemon: Daemon, outside: Path) -> None:
    """Nothing is read or written below a symbolic link to a folder, also to one inside the store."""
    assert daemon.put("slot/a.txt", b"public").status == 201
    for name, target in (("far", outside), ("near", "slot"), ("up", ".."), ("self", "."), ("root", "/")):
        (daemon.store / name).symlink_to(target)
    (daemon.store / "slot" / "inner").symlink_to(outside)
    inside, beyond = tree(daemon.store), tree(outside)
    for path in (
        "far/secret.txt",
        "far/deep/secret.txt",
        "near/a.txt",
        "up/outside/secret.txt",
        "self/slot/a.txt",
        "root/etc/passwd",
        "slot/inner/secret.txt",
        "slot/inner/deep/secret.txt",
    ):
        assert daemon.get(path).status == 404
        assert daemon.put(path, SECRET_TEXT).status == 409
        assert daemon.put(f"{path}.new", b"hello").status == 409
        assert daemon.put(f"{path}.new/b/c", b"hello").status == 409
    assert (tree(daemon.store), tree(outside)) == (inside, beyond)


def test_neither_files_nor_folders(daemon: Daemon) -> None:
    """Named pipes, sockets and devices in the store are neither served nor opened to be waited for."""
    slot = daemon.store / "slot"
    slot.mkdir()
    names = ["pipe", "socket"]
    os.mkfifo(slot / "pipe")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(slot):
        listener.bind("socket")
    with contextlib.suppress(PermissionError):
        os.mknod(slot / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
        names.append("zero")
    before = tree(daemon.store)
    for name in names:
        assert daemon.get(f"slot/{name}").status == 404
        assert daemon.get(f"slot/{name}/a.txt").status == 404
        for body in (b"hello", b""):
            assert daemon.put(f"slot/{name}", body).status == 409
            assert daemon.put(f"slot/{name}/a.txt", body).status == 409
    assert tree(daemon.store) == before


def test_a_link_in_place_of_the_daemons_own_folder(make_daemon: MakeDaemon, outside: Path) -> None:
    """A daemon whose own folder in the store is a symbolic link does not start, and touches nothing behind it."""
    daemon = make_daemon()
    daemon.store.mkdir()
    (daemon.store / ".hmac-file-server").symlink_to(outside)
    beyond = tree(outside)
    process = daemon.launch().process
    assert process is not None
    assert process.wait(60) == os.EX_TEMPFAIL
    assert "StoreDir" in daemon.log
    assert "Traceback" not in daemon.log
    assert tree(outside) == beyond


def test_links_among_the_drafts(make_daemon: MakeDaemon, outside: Path) -> None:
    """What an earlier run left is swept without following symbolic links."""
    daemon = make_daemon()
    drafts = daemon.store / ".hmac-file-server"
    drafts.mkdir(parents=True)
    (drafts / "left.part").write_bytes(b"left")
    (drafts / "link.part").symlink_to(outside / "secret.txt")
    (drafts / "folder.part").symlink_to(outside)
    beyond = tree(outside)
    daemon.start()
    eventually(lambda: not (drafts / "left.part").exists())
    assert tree(outside) == beyond


def test_a_folder_that_becomes_a_link_during_an_upload(daemon: Daemon, outside: Path) -> None:
    """An upload that found its folder in order does not follow the link that stands there when it ends."""
    assert daemon.put("slot/a.txt", b"public").status == 201
    beyond = tree(outside)
    with daemon.wire() as wire:
        wire.send(f"PUT {put_target('slot/b.txt', 5)} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n".encode())
        assert wire.send(b"Expect: 100-continue\r\n\r\n").answer().status == 100
        (daemon.store / "slot").rename(daemon.store / "moved")
        (daemon.store / "slot").symlink_to(outside)
        assert wire.send(b"hello").answer().status == 409
    assert tree(outside) == beyond
    assert daemon.files() == {"moved/a.txt"}
    (daemon.store / "slot").unlink()
    assert daemon.put("slot/b.txt", b"hello").status == 201


class Swapping:
    """Swaps a folder of the store for a symbolic link that leads outside, and back, as fast as it can."""

    def __init__(self, store: Path, outside: Path) -> None:
        self.race, self._other = store / "race", store / "other"
        (self.race / "deep").mkdir(parents=True)
        self._other.symlink_to(outside)
        exchange(self.race, self._other)  # where this is not possible the test says so at once
        self.swaps = 1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._swap)

    def _swap(self) -> None:
        while not self._stop.is_set():
            exchange(self.race, self._other)
            self.swaps += 1

    def __enter__(self) -> Swapping:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.race.is_symlink():
            exchange(self.race, self._other)
        self._other.unlink()


class Clients:
    """Threads that upload to a folder and read from it."""

    def __init__(self, daemon: Daemon, many: int) -> None:
        self._daemon = daemon
        self.answers: Counter[tuple[str, int]] = Counter()
        self.stored: dict[str, bytes] = {}
        self.wrong: list[object] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(many)]

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._put(next(self._numbers))
                self._get()
        except Exception as error:
            self.wrong.append(error)

    def _put(self, number: int) -> None:
        name = (f"{number}.txt", f"deep/{number}.txt", f"new{number}/a.txt", f"new{number % 50}/{number}.txt")[
            number % 4
        ]
        body = b"%d" % number * (1, 1000, 100_000)[number % 3]
        status = self._daemon.put(f"race/{name}", body).status
        with self._lock:
            self.answers["PUT", status] += 1
            if status == 201:
                self.stored[name] = body

    def _get(self) -> None:
        for name in ("secret.txt", "deep/secret.txt"):
            answer = self._daemon.get(f"race/{name}")
            if answer.status != 404:
                self.wrong.append(answer)
        answer = self._daemon.get("race/own.txt")
        if answer.status == 200 and answer.body != b"public":
            self.wrong.append(answer)
        with self._lock:
            self.answers["GET", answer.status] += 1

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(params=[True, False], ids=["fsync", "no-fsync"])
def racing(request: pytest.FixtureRequest, make_daemon: MakeDaemon) -> Iterator[Daemon]:
    return make_daemon(Fsync=request.param, MinFreeSpace=0).start()


def test_a_folder_swapped_for_a_link(racing: Daemon, outside: Path) -> None:
    """While a folder is swapped for a link again and again nothing is written or read outside the store."""
    beyond = tree(outside)
    swapping = Swapping(racing.store, outside)
    (outside.parent / "own").write_bytes(b"public")
    os.link(outside.parent / "own", racing.store / "other" / "own.txt")
    with swapping, Clients(racing, 4) as clients:
        enough = [("PUT", 201), ("PUT", 409), ("GET", 200), ("GET", 404)]
        eventually(
            lambda: clients.wrong or all(clients.answers[kind] >= 50 for kind in enough),
            deadline=5 * DEADLINE,
            what="each answer was seen often",
        )
    assert not clients.wrong
    assert tree(outside) == beyond
    assert {status for method, status in clients.answers if method == "PUT"} == {201, 409}
    assert {status for method, status in clients.answers if method == "GET"} == {200, 404}
    there = {name: content for name, content in tree(racing.store / "race").items() if isinstance(content, bytes)}
    assert there == clients.stored | {"own.txt": b"public"}
    assert {path.name for path in racing.store.iterdir()} == {"race", ".hmac-file-server"}
    assert not list((racing.store / ".hmac-file-server").iterdir())
    assert "Traceback" not in racing.log


def test_a_file_where_a_folder_should_be(daemon: Daemon) -> None:
    """Nothing is put below a file, which stays as it is; nor over a folder."""
    assert daemon.put("slot/a.txt", b"hello").status == 201
    before = tree(daemon.store)
    for path in ("slot/a.txt/b.txt", "slot/a.txt/b/c.txt"):
        assert daemon.put(path, b"hello").status == 409
        assert daemon.get(path).status == 404
    for body in (b"", b"hello"):
        assert daemon.put("slot", body).status == 409
    assert daemon.get("slot").status == 404
    assert tree(daemon.store) == before


@pytest.mark.parametrize(
    "names",
    [
        ["slot/photo.jpg", "slot/Photo.jpg", "slot/PHOTO.JPG", "Slot/photo.jpg", "SLOT/photo.jpg"],
        ["slot/\u00e9.txt", "slot/e\u0301.txt", "\u00e9/a.txt", "e\u0301/a.txt"],
        ["slot/\u212b", "slot/\u00c5", "slot/A\u030a"],
        ["slot/a", "slot/a.", "slot/a ", "slot/ a", "slot/a\u200b", "slot/\uff41"],
        ["slot/stra\u00dfe", "slot/strasse", "slot/\ufb01", "slot/fi", "slot/\u0130", "slot/i", "slot/\u0131"],
    ],
    ids=["case", "composed", "singleton", "blank", "folded"],
)
def test_twins_are_kept_apart(daemon: Daemon, names: list[str]) -> None:
    """Names that differ in a byte are files of their own, and each is got back under its own name alone."""
    for number, name in enumerate(names):
        assert daemon.get(name).status == 404
        assert daemon.put(name, b"%d" % number).status == 201
    for number, name in enumerate(names):
        assert daemon.get(name).body == b"%d" % number
        assert (daemon.store / name).read_bytes() == b"%d" % number
    assert daemon.files() == set(names)
