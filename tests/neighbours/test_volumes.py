"""Two daemons on two mounts of one volume, as on two machines."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from hmac_file_server.slots.path import SlotPath, slot_path
from hmac_file_server.stores.errors import Held, NoSuchFile
from hmac_file_server.stores.local.disk import Disk
from hmac_file_server.stores.local.folders import names_in
from hmac_file_server.stores.local.sessions import SessionFiles
from hmac_file_server.stores.session import Session, new_token
from tests.neighbours.resumable import BODY, Resumable, ask
from tests.neighbours.volumes import JuiceFS, SeaweedFS, Volume
from tests.support import DEADLINE, Daemon, eventually, missing, need

MakeDaemon = Callable[..., Daemon]

KINDS: dict[str, tuple[type[Volume], list[str]]] = {
    "juicefs": (JuiceFS, ["juicefs", "redis-server"]),
    "seaweedfs": (SeaweedFS, ["weed"]),
}
LARGE = 1 << 20


@pytest.fixture(params=KINDS)
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Volume]:
    """A volume of each kind."""
    kind, programs = KINDS[request.param]
    need("fusermount3", *programs)
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        missing("a file system can not be mounted")
    made = kind(tmp_path)
    yield made
    made.end()


@pytest.fixture
def machines(volume: Volume, make_daemon: MakeDaemon, tmp_path: Path) -> list[Daemon]:
    """A daemon on each mount."""
    made = [make_daemon(tmp_path / f"daemon-{mount.name}", StoreDir=str(mount / "store")) for mount in volume.mounts]
    for daemon in made:
        daemon.start()
        # SeaweedFS has no room at first, until its parts have found each other.
        eventually(lambda: daemon.metric("hmac_file_server_ready") == 1)  # noqa: B023
    return made


def test_two_machines(volume: Volume, machines: list[Daemon]) -> None:
    """What one machine has answered with 201 the other serves, and it is still there when all caches are gone."""
    files: dict[str, bytes] = {}
    sizes = [1, 1000, 70_000, 300_000, 3 << 20] * 8

    def upload(number: int) -> None:
        path, body = f"slot{number}/file.bin", os.urandom(sizes[number])
        here, there = machines[number % 2], machines[1 - number % 2]
        assert here.put(path, body).status == 201
        # SeaweedFS tells its other mounts a moment later.
        eventually(lambda: there.get(path).body == body, 0.0 if isinstance(volume, JuiceFS) else DEADLINE)
        files[path] = body

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(upload, range(len(sizes))))

    def resume(number: int) -> None:
        there = machines[1 - number % 2]
        upload = Resumable.create(machines[number % 2].port, f"resumed{number}/file.bin")
        upload.append(0, 40_000).close()
        # The other machine goes on, as soon as the first one has noticed that its client is gone.
        eventually(lambda: machines[number % 2].running() == 0)
        upload = attrs.evolve(upload, port=there.port)
        eventually(lambda: ask(there.port, "HEAD", upload.location).status == 204)
        with upload.append(upload.offset()) as wire:
            assert wire.final().status == 201
        files[upload.path] = BODY

    for number in range(6):
        resume(number)
    # The same file, sent to both at once, as by a client that has lost its network and believes that it has not.
    for number in range(8):
        path, body = f"both{number}/file.bin", os.urandom(50_000)
        with ThreadPoolExecutor(2) as pool:
            statuses = [answer.status for answer in pool.map(lambda machine: machine.put(path, body), machines)]  # noqa: B023
        assert set(statuses) <= {201, 503}
        assert 201 in statuses
        files[path] = body
    for machine in machines:
        machine.stop()
    volume.unmount()
    volume.mount()
    for path, body in files.items():
        assert [(mount / "store" / path).read_bytes() == body for mount in volume.mounts] == [True, True], path
    left = {name for name in os.listdir(volume.mounts[0] / "store/.hmac-file-server") if not name.endswith(".session")}
    assert left == set()


# SeaweedFS's mounts do not see each other's locks, and can give one name at once: docs/several-machines.rst tells.
WITH_LOCKS = pytest.mark.parametrize("volume", ["juicefs"], indirect=True)


@WITH_LOCKS
def test_one_slot_and_two_files(machines: list[Daemon]) -> None:
    """Of two files that two machines are sent for one slot at the same time one is stored, the other refused."""
    for number in range(12):
        bodies = [os.urandom(50_000) for _ in machines]
        path = f"raced{number}/file.bin"
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda machine, body: machine.put(path, body), machines, bodies))  # noqa: B023
        assert sorted(answer.status for answer in answers) == [201, 409]
        stored = bodies[[answer.status for answer in answers].index(201)]
        assert [machine.get(path).body for machine in machines] == [stored, stored]


@WITH_LOCKS
def test_taken_over_while_it_runs(volume: Volume, machines: list[Daemon]) -> None:
    """A client that comes back through the other machine, while the first still waits for it, goes on there."""
    for number in range(4):
        upload = Resumable.create(machines[0].port, f"taken{number}/file.bin")
        data = machines[0].store / ".hmac-file-server" / f"{upload.token}.data"
        with upload.append(0, 40_000) as first:
            eventually(lambda: data.stat().st_size == 40_000)  # noqa: B023
            upload = attrs.evolve(upload, port=machines[1].port)
            with upload.append(upload.offset()) as second:
                assert second.final().status == 201
            assert first.final().status == 409
        for mount in volume.mounts:
            assert (mount / "store" / upload.path).read_bytes() == BODY


@WITH_LOCKS
def test_replaced_and_removed_while_it_is_open(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """JuiceFS takes away what another mount has open. A record is asked for again then, and a file is not there."""
    with contextlib.ExitStack() as closing:
        stores = [closing.enter_context(contextlib.closing(Disk(str(each / "store")))) for each in volume.mounts]
        here, there = [SessionFiles(store.place, 3600.0) for store in stores]
        path = slot_path([b"slot", b"file.bin"])
        session = Session(new_token(path), path, 10, None, 8, None, "192.0.2.1", begun=here.now(), touched=here.now())
        os.close(there.make(session))
        there.write(session)
        with during(monkeypatch, "read", lambda: there.write(session)), pytest.raises(Held):
            here.hold(session.token)
        eventually(lambda: can_be_held(here, session.token))
        public = volume.mounts[1] / "store/slot/file.bin"
        public.parent.mkdir()
        public.write_bytes(b"0123456789")
        stores[0].open(path).close()
        with during(monkeypatch, "fstat", public.unlink), pytest.raises(NoSuchFile):
            stores[0].open(path)


def can_be_held(files: SessionFiles, token: str) -> bool:
    """Whether nobody else has the session."""
    try:
        files.let_go(files.hold(token)[1])
    except Held:
        return False
    return True


def test_seen_while_it_arrives(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another machine has seen among the drafts can be opened there when it is published."""
    with contextlib.ExitStack() as closing:
        here, there = [closing.enter_context(contextlib.closing(Disk(str(m / "store")))) for m in volume.mounts]
        path, body = slot_path([b"slot", b"file.bin"]), os.urandom(LARGE)
        real = os.fsync

        def fsync(file: int) -> None:
            patch.undo()
            real(file)  # Until then SeaweedFS keeps the name to itself.
            eventually(lambda: has_draft(there))

        with contextlib.closing(here.draft(path, len(body))) as draft, monkeypatch.context() as patch:
            draft.write([body])
            patch.setattr(os, "fsync", fsync)
            draft.publish()
        eventually(lambda: content(there, path) == body)


def has_draft(store: Disk) -> bool:
    """Whether there is an unfinished file, and can be looked at."""
    names = [name for name in names_in(store.place.root) if name.endswith(b".part")]
    return any(os.stat(name, dir_fd=store.place.root) for name in names)


def content(store: Disk, path: SlotPath) -> bytes:
    """What is in a file; nothing if there is none."""
    try:
        file = store.open(path)
    except NoSuchFile:
        return b""
    with contextlib.closing(file):
        return os.pread(file.descriptor, LARGE, 0)


@contextlib.contextmanager
def during(monkeypatch: pytest.MonkeyPatch, name: str, step: Callable[[], object]) -> Iterator[None]:
    """Do a step just before the next call of a function of os."""
    real = getattr(os, name)

    def call(*given: object) -> object:
        patch.undo()
        step()
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, call)
        yield
