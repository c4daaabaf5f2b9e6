"""Mixed work, as of an hour in minutes: in the end the store is the model's, to the byte, and so are the figures.

``SOAK_SECONDS`` says how long; ``make soak`` takes its time and prints what was done.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import attrs
import pytest

from tests.support import Answer, Daemon, Wire, eventually, missing, v, v2

MakeDaemon = Callable[..., Daemon]

SECONDS = float(os.environ.get("SOAK_SECONDS", "8"))
TOO_LARGE = 16 << 20
RESERVED = ".hmac-file-server"
TYPES = ["", "image/jpeg", "text/plain; charset=utf-8", "application/octet-stream", "video/mp4"]
BLOB = random.Random(7).randbytes(12 << 20)


@attrs.frozen
class File:
    body: bytes
    media_type: str


class Client:
    """One user's program: it does one thing after the other in slots of its own, and knows what must be there."""

    def __init__(self, daemon: Daemon, number: int, large: int, kept: int, full: bool) -> None:
        self.daemon = daemon
        self.files: dict[str, File] = {}
        self.answers: Counter[tuple[str, int]] = Counter()
        self.figures: Counter[str] = Counter()
        self.uploaded = self.downloaded = self.records = 0
        self._name = f"client{number}"
        self._numbers = itertools.count()
        self._random = random.Random(number)
        self._large = large
        self._kept = kept
        self._refusals = {507} if full else set()
        self._wire: Wire | None = None
        self._work = [
            (self.upload_small, 10),
            (self.upload_large, 2),
            (self.upload_again, 3),
            (self.upload_other_bytes, 2),
            (self.upload_twice_at_once, 1),
            (self.break_off, 3),
            (self.break_off_and_resume, 2),
            (self.be_refused, 6),
            (self.download, 12),
            (self.download_part, 4),
            (self.look, 3),
            (self.break_off_download, 1),
        ]

    def step(self) -> None:
        """Do something."""
        work, weights = zip(*self._work, strict=True)
        if not self.files:
            self.upload_small()
            return
        self._random.choices(work, weights)[0]()
        while len(self.files) > self._kept:
            self._clean_up()

    def leave(self) -> None:
        """Close what is open."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    # What is sent

    def _new_path(self) -> str:
        name = self._random.choice(
            ["photo.jpg", "a b.bin", "gr\u00fc\u00dfe \U0001f389.txt", "x", ".hidden", "a+b&c=d%41"]
        )
        return f"{self._name}-{next(self._numbers)}/{name}"

    def _new_file(self, size: int) -> File:
        start = self._random.randrange(len(BLOB) - size)
        return File(BLOB[start : start + size], self._random.choice(TYPES))

    def _small(self) -> File:
        return self._new_file(self._random.choice([0, 1, 100, 4096, 20_000, 70_000]))

    @staticmethod
    def _head(path: str, file: File, *headers: str, signed: int | None = None, claimed: int | None = None) -> bytes:
        """The headers of an upload; its length can be another one, or another one than what was signed."""
        signed = len(file.body) if signed is None else signed
        if file.media_type:
            signature = f"v2={v2(path, signed, file.media_type)}"
            headers = (*headers, f"Content-Type: {file.media_type}")
        else:
            signature = f"v={v(path, signed)}"
        lines = [f"PUT /upload/{quote(path)}?{signature} HTTP/1.1", "Host: a"]
        lines.append(f"Content-Length: {signed if claimed is None else claimed}")
        return "\r\n".join([*lines, *headers, "", ""]).encode()

    def _exchange(self, data: bytes, head: bool = False) -> Answer:
        """Ask on the connection that is kept open, or on a new one."""
        if self._wire is None or self._random.random() < 0.2:
            self.leave()
            self._wire = self.daemon.wire()
        answer = self._wire.send(data).final(head)
        if answer.headers.get("connection") == "close":
            self.leave()
        return answer

    def _alone(self, data: bytes) -> Answer:
        """Ask on a connection of its own."""
        with self.daemon.wire() as wire:
            return wire.send(data).final()

    def _saw(self, kind: str, answer: Answer, *right: int) -> None:
        self.answers[kind, answer.status] += 1
        assert answer.status in right, (kind, answer)

    # Uploads

    def _stored(self, kind: str, path: str, file: File, answer: Answer) -> None:
        self._saw(kind, answer, 201, *self._refusals)
        if answer.status == 201:
            self.figures["uploads"] += 1
            self.uploaded += len(file.body)
            self.files[path] = file
        else:
            self.figures["upload_errors no_room"] += 1

    def _upload(self, kind: str, file: File) -> None:
        path = self._new_path()
        self._stored(kind, path, file, self._exchange(self._head(path, file) + file.body))

    def upload_small(self) -> None:
        self._upload("small", self._small())

    def upload_large(self) -> None:
        self._upload("large", self._new_file(self._random.randrange(self._large // 4, self._large)))

    def upload_again(self) -> None:
        """The answer to an upload was lost: the very bytes come again."""
        path, file = self._random.choice(list(self.files.items()))
        self._stored("again", path, file, self._exchange(self._head(path, file) + file.body))

    def upload_other_bytes(self) -> None:
        """Another file for a slot that has one, of its length or not."""
        path, file = self._random.choice(list(self.files.items()))
        if not file.body:
            return
        other = self._random.choice([bytes([file.body[0] ^ 1]) + file.body[1:], file.body + b"x"])
        answer = self._exchange(self._head(path, File(other, "")) + other)
        self._saw("other bytes", answer, 409, *self._refusals)
        self.figures["upload_errors conflict" if answer.status == 409 else "upload_errors no_room"] += 1

    def upload_twice_at_once(self) -> None:
        """Two uploads of one slot, of the same bytes or not: both bytes can not win."""
        path, one = self._new_path(), self._new_file(20_000)
        same = self._random.random() < 0.5
        two = one if same else File(one.body[::-1], one.media_type)
        half = len(one.body) // 2
        with self.daemon.wire() as first, self.daemon.wire() as second:
            for wire, file in ((first, one), (second, two)):
                wire.send(self._head(path, file) + file.body[:half])
            for wire, file in ((second, two), (first, one)):
                wire.send(file.body[half:])
            answers = [first.final(), second.final()]
        for answer, file in zip(answers, (one, two), strict=True):
            if answer.status == 409 and not same:
                self._saw("at once", answer, 409)
                self.figures["upload_errors conflict"] += 1
            elif answer.status == 503 and same and self._refusals:
                # The other one's name was not safe yet after all tries: it waits for a disk that is busy.
                self._saw("at once", answer, 503)
                self.figures["upload_errors storage"] += 1
            else:
                self._stored("at once", path, file, answer)
        assert same or [answer.status for answer in answers].count(201) <= 1

    def break_off(self) -> None:
        """A client that goes away in the middle of a body, politely or not; sometimes it comes back."""
        path, file = self._new_path(), self._new_file(self._random.choice([1000, 300_000, 2_000_000]))
        part = file.body[: self._random.randrange(len(file.body))]
        with self.daemon.wire() as wire:
            wire.send(self._head(path, file, "Expect: 100-continue"))
            answer = wire.answer()
            if answer.status != 100:
                self._stored("broken off", path, file, answer)
                return
            wire.send(part)
            if self._random.random() < 0.5:
                wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.figures["upload_errors broken_off"] += 1
        self.answers["broken off", 0] += 1
        if self._random.random() < 0.5:
            self._stored("after that", path, file, self._exchange(self._head(path, file) + file.body))

    def break_off_and_resume(self) -> None:
        """A phone whose network breaks off, and that goes on where it was; or drops what it had begun."""
        path, file = self._new_path(), self._new_file(self._random.choice([10_000, 500_000]))
        version = "Upload-Draft-Interop-Version: 6"
        with self.daemon.wire() as wire:
            answer = wire.send(self._head(path, file, version, "Upload-Complete: ?1")).answer()
            if answer.status != 104:
                self._stored("resumed", path, file, answer)
                return
            location = answer.headers["location"]
            wire.send(file.body[: self._random.randrange(len(file.body))])
        # What comes first, that the connection is lost or that the client is back, is not for us to say.
        self.figures["upload_errors broken_off superseded"] += 1
        ask = f" {location} HTTP/1.1\r\nHost: a\r\n{version}\r\n"
        status = self._exchange(f"HEAD{ask}\r\n".encode(), head=True)
        self._saw("asked how far", status, 204)
        if self._random.random() < 0.3:
            self._saw("dropped", self._exchange(f"DELETE{ask}\r\n".encode()), 204)
            return
        rest = file.body[int(status.headers["upload-offset"]) :]
        ask += f"Upload-Offset: {status.headers['upload-offset']}\r\nUpload-Complete: ?1\r\n"
        ask += f"Content-Type: application/partial-upload\r\nContent-Length: {len(rest)}\r\n\r\n"
        answer = self._exchange(f"PATCH{ask}".encode() + rest)
        if not self._refusals:  # else a part may be refused before it counts
            self.figures["uploads_resumed"] += 1
        self._stored("resumed", path, file, answer)
        if answer.status == 201:
            self.records += 1
        else:
            answer = self._exchange(f"DELETE {location} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            self._saw("dropped", answer, 204, 404)
            self.figures["refusals not_found"] += answer.status == 404

    def be_refused(self) -> None:
        """Requests that ask for what they must not have."""
        path, file = self._new_path(), self._small()
        head = self._head(path, file)
        before, digit, after = head.partition(b"=")[0] + b"=", head.partition(b"=")[2][:1], head.partition(b"=")[2][1:]
        wrong = before + (b"0" if digit != b"0" else b"1") + after
        get = f"GET /upload/{quote(path)} HTTP/1.1\r\n".encode()
        data, status, reason = self._random.choice(
            [
                (wrong + file.body, 403, "signature"),
                (self._head(path, file, claimed=len(file.body) + 1) + file.body + b"x", 403, "signature"),
                (get.replace(b"GET", b"PUT") + b"Host: a\r\nContent-Length: 1\r\n\r\nx", 403, "signature"),
                (head.replace(b"Content-Length", b"X-Length"), 411, "length_required"),
                (self._head(path, file, signed=TOO_LARGE + 1), 413, "too_large"),
                (self._head("a/../b", file) + file.body, 400, "path"),
                (self._head(f"{RESERVED}-x/b", file) + file.body, 400, "path"),
                (get + b"Host: a\r\n\r\n", 404, "not_found"),
                (get + b"\r\n", 400, "malformed"),
                (get.replace(b"GET", b"BREW") + b"Host: a\r\n\r\n", 405, "method"),
            ]
        )
        self._saw(f"refused {reason}", self._alone(data), status)
        self.figures[f"refusals {reason}"] += 1

    # Downloads

    def _get(self, *headers: str, method: str = "GET") -> tuple[File, Answer]:
        path, file = self._random.choice(list(self.files.items()))
        lines = [f"{method} /upload/{quote(path)} HTTP/1.1", "Host: a", *headers, "", ""]
        return file, self._exchange("\r\n".join(lines).encode(), head=method == "HEAD")

    def _got(self, kind: str, answer: Answer, status: int, body: bytes) -> None:
        self._saw(kind, answer, status)
        assert answer.body == body, kind
        self.figures["downloads"] += 1
        self.downloaded += len(body)

    def download(self) -> None:
        file, answer = self._get()
        self._got("download", answer, 200, file.body)
        if file.media_type:
            assert answer.headers["content-type"] == file.media_type

    def download_part(self) -> None:
        start = self._random.choice([0, 1, 50, 5000, 100_000])
        file, answer = self._get(f"Range: bytes={start}-")
        if start < len(file.body):
            self._got("part", answer, 206, file.body[start:])
        else:
            self._saw("no such part", answer, 416)
            self.figures["refusals range"] += 1

    def look(self) -> None:
        file, answer = self._get(method="HEAD")
        self._saw("look", answer, 200)
        assert answer.headers["content-length"] == str(len(file.body))

    def break_off_download(self) -> None:
        """A client that has had enough of a file that is larger than what lies between it and the daemon."""
        large = [path for path, file in self.files.items() if len(file.body) > 4 << 20]
        if not large:
            return
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(60)
            client.connect(("127.0.0.1", self.daemon.port))
            client.sendall(f"GET /upload/{quote(large[0])} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")
        self.answers["broken off download", 200] += 1
        self.figures["downloads_broken"] += 1

    def _clean_up(self) -> None:
        """Old files go, as by an operator's own means."""
        path = next(iter(self.files))
        del self.files[path]
        (self.daemon.store / path).unlink()
        (self.daemon.store / path).parent.rmdir()


def work(clients: list[Client], seconds: float) -> None:
    """Let all clients work for a while; then no connection is left."""
    wrong: list[BaseException] = []
    end = time.monotonic() + seconds

    def run(client: Client) -> None:
        try:
            while time.monotonic() < end and not wrong:
                client.step()
        except BaseException as error:
            wrong.append(error)
        finally:
            client.leave()

    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]
    daemon = clients[0].daemon
    eventually(lambda: daemon.running() == 0)


def lost_and_left_over(daemon: Daemon, clients: list[Client]) -> tuple[set[str], set[str]]:
    """Files that are not as the model has them, and what else there is in the store: files, folders, drafts."""
    expected = {path: file for client in clients for path, file in client.files.items()}
    lost = set()
    for path, file in expected.items():
        there = daemon.store / path
        if not there.is_file() or there.read_bytes() != file.body:
            lost.add(path)
        elif file.media_type:
            with contextlib.suppress(OSError):  # a file system without attributes
                if os.getxattr(there, "user.mime_type") != file.media_type.encode():
                    lost.add(path)
    allowed = {RESERVED, *expected, *(path.partition("/")[0] for path in expected)}
    left_over = {str(path.relative_to(daemon.store)) for path in daemon.store.rglob("*")} - allowed
    # Of an upload that was resumed a record may stay for a while, for a client that missed the last answer.
    records = {name for name in left_over if name.startswith(RESERVED) and name.endswith(".session")}
    if len(records) <= sum(client.records for client in clients):
        left_over -= records
    return lost, left_over


def disagreements(daemon: Daemon, clients: list[Client]) -> dict[str, tuple[int, int]]:
    """What the metrics say and what the clients saw, where that is not the same."""
    seen: Counter[str] = Counter()
    for client in clients:
        seen += client.figures
    told: Counter[str] = Counter()
    for figure in {figure for name in seen for figure in _figures(name)}:
        metric, _, reason = figure.partition(" ")
        told[figure] = int(
            daemon.metric(f"hmac_file_server_{metric}_total", f'{{reason="{reason}"}}' if reason else "")
        )
    # Where several reasons are possible, their sum is certain.
    joined = {name for name in seen if len(_figures(name)) > 1}
    for name in joined:
        for figure in _figures(name):
            told[name] += told.pop(figure)
            seen[name] += seen.pop(figure, 0)
    return {name: (told[name], seen[name]) for name in seen if told[name] != seen[name]}


def _figures(name: str) -> list[str]:
    """The metrics behind a name: one without or with one reason, or one for each of several."""
    metric, *reasons = name.split()
    return [f"{metric} {reason}" for reason in reasons] or [metric]


def soak(daemon: Daemon, clients: list[Client], seconds: float) -> None:
    """Work, and look at what is left of it."""
    # What is read in, started or filled once: the rest of the time is compared with that.
    work(clients, seconds / 3)
    open_first, memory_first = daemon.descriptors(), (daemon.resident() >> 20)
    work(clients, seconds * 2 / 3)
    eventually(lambda: daemon.descriptors() <= open_first, what="no descriptor is left open")
    open_last, memory_last = daemon.descriptors(), (daemon.resident() >> 20)
    lost, left_over = lost_and_left_over(daemon, clients)

    answers: Counter[tuple[str, int]] = Counter()
    for client in clients:
        answers += client.answers
    uploaded, downloaded = (sum(getattr(client, name) for client in clients) for name in ("uploaded", "downloaded"))
    print(
        f"\n{sum(answers.values())} requests in {seconds:.0f} s, {uploaded >> 20} MiB up, {downloaded >> 20} MiB down"
    )
    for (kind, status), count in sorted(answers.items()):
        print(f"  {kind:22} {status or '-':>4} {count:8}")
    files = sum(len(client.files) for client in clients)
    print(
        f"{files} files, {len(lost)} lost, {len(left_over)} left over, RSS {memory_first} to {memory_last} MiB, ",
        end="",
    )
    print(f"descriptors {open_first} to {open_last}")

    assert (lost, left_over) == (set(), set())
    # A client sees its answer a moment before it is counted.
    with contextlib.suppress(AssertionError):
        eventually(lambda: not disagreements(daemon, clients))
    assert disagreements(daemon, clients) == {}
    assert daemon.metric("hmac_file_server_received_bytes_total") >= uploaded
    assert daemon.metric("hmac_file_server_sent_bytes_total") >= downloaded
    assert memory_last - memory_first < 32
    assert "Traceback" not in daemon.log


def test_mixed_work(make_daemon: MakeDaemon) -> None:
    """After all kinds of work at once: every file and nothing else, flat memory and descriptors, true figures."""
    daemon = make_daemon(MaxUploadSize=TOO_LARGE, MinFreeSpace=0, TrustedProxies=[]).start()
    clients = [Client(daemon, number, large=8 << 20, kept=20, full=False) for number in range(6)]
    soak(daemon, clients, SECONDS)


@pytest.fixture
def filling_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB, which something else fills up again and again."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.call(["mount", "-t", "tmpfs", "-o", "size=32m", "none", folder]):
        missing("a file system can not be mounted")
    stop = threading.Event()

    def fill() -> None:
        filler = folder / ".filler"
        while not stop.wait(0.1):
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(BLOB[: 1 << 20])
            stop.wait(0.2)
            filler.unlink()

    thread = threading.Thread(target=fill)
    thread.start()
    yield folder
    stop.set()
    thread.join()
    subprocess.call(["umount", "-l", folder])


def test_mixed_work_on_a_disk_that_fills_up(make_daemon: MakeDaemon, filling_disk: Path) -> None:
    """With a disk that is full again and again: each 201 is a file, each 507 leaves nothing."""
    store = filling_disk / "store"
    daemon = make_daemon(
        StoreDir=str(store), MaxUploadSize=TOO_LARGE, MinFreeSpace=0, RetryDelay=0.05, MaxRetries=3, TrustedProxies=[]
    ).start()
    clients = [Client(daemon, number, large=2 << 20, kept=8, full=True) for number in range(4)]
    soak(daemon, clients, SECONDS / 2)
    assert sum(client.answers["small", 201] for client in clients) > 0
    assert daemon.metric("hmac_file_server_upload_errors_total", '{reason="no_room"}') > 0


def test_refusals_cost_no_memory(daemon: Daemon) -> None:
    """Whoever is refused, for whatever reason and however often, leaves nothing in the daemon's memory."""
    padded = b"X-Padding: " + b"x" * 4000 + b"\r\n\r\n"
    refused = [
        (b"GET /upload/slot/none HTTP/1.1\r\nHost: a\r\n", 404),
        (b"GET /upload/slot/none HTTP/1.1\r\n", 400),
        (b"GET /upload/slot/none HTTP/1.1\r\nHost: a\r\nHost: b\r\n", 400),
        (b"GET upload HTTP/1.1\r\nHost: a\r\n", 400),
        (b"BREW /upload/slot/none HTTP/1.1\r\nHost: a\r\n", 405),
        (b"GET /upload/slot/none HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n", 400),
        (b"PUT /upload/slot/none HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n", 403),
        (b"PUT /upload/slot/../none HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n", 400),
        (b"PUT /upload/slot/none HTTP/1.1\r\nHost: a\r\n", 411),
        (b"GET /upload/slot/none HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n", 400),
        (b"GET /upload/slot/none HTTP/1.1\r\nHost: a\r\n folded: x\r\n", 400),
    ]

    def refuse_all(times: int) -> None:
        for head, status in refused * times:
            with daemon.wire() as wire:
                assert wire.send(head + padded).answer().status == status

    refuse_all(100)
    before = daemon.resident() >> 20
    refuse_all(300)
    assert (daemon.resident() >> 20) - before < 6
