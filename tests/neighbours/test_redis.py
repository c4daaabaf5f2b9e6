"""Redis: two daemons of one site tell it what they do, and whatever happens to it no upload notices."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.neighbours.program import PATH, Program
from tests.neighbours.redis import Connection, Redis
from tests.neighbours.resumable import BODY, Resumable, ask
from tests.support import DEADLINE, SECRET, Answer, Daemon, Wire, eventually, free_port, need, put_target
from tests.watchdog import never_late

MakeDaemon = Callable[..., Daemon]

PASSWORD = "gate27-lantern14"
LEASE_SECONDS, SESSION_SECONDS = 15, 900

# Redis is tried again after up to 15 s, and has to work for 3 s.
PATIENCE = 3 * DEADLINE

UP = "hmac_file_server_redis_up"
CAN_NOT = "Redis can not be used: "
AGAIN = "Redis works again"

_NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream site {{
        server 127.0.0.1:{first} max_fails=0;
        server 127.0.0.1:{second} max_fails=0;
    }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 0;
        location / {{
            proxy_pass http://site;
            proxy_http_version 1.1;
            proxy_request_buffering off;
        }}
    }}
}}
"""


class House:
    """Redis and two daemons with one store. Other than its faults, it is as it was after every test."""

    def __init__(self, folder: Path) -> None:
        self.redis = Redis(folder, PASSWORD)
        self.store = folder / "store"
        settings = {"StoreDir": str(self.store), "RedisAddr": self.redis.address, "RedisPassword": PASSWORD}
        self.daemons = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            self.daemons.append(Daemon(folder / name, SessionTimeout=SESSION_SECONDS, **settings))

    @property
    def one(self) -> Daemon:
        return self.daemons[0]

    @property
    def two(self) -> Daemon:
        return self.daemons[1]

    def is_quiet(self) -> bool:
        """Whether Redis tells of no upload."""
        return not self.redis.keys("s")

    def stored(self, path: str) -> bool:
        """Whether the slot's file is there, whole, and nothing else of it."""
        kept = self.one.files()
        return (self.store / path).read_bytes() == BODY and not {name for name in kept if name.endswith(".data")}


@pytest.fixture(scope="module")
def running_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    need("redis-server")
    house = House(tmp_path_factory.mktemp("redis"))
    try:
        house.redis.start()
        for daemon in house.daemons:
            daemon.launch()
        yield house
    finally:
        for daemon in house.daemons:
            daemon.stop(signal.SIGKILL)
        house.redis.kill()


@pytest.fixture
def house(running_house: House) -> House:
    """A working one, in which nothing runs."""
    for daemon in running_house.daemons:
        eventually(lambda daemon=daemon: _is_up(daemon), PATIENCE, what="Redis is used")
        eventually(lambda daemon=daemon: CAN_NOT not in daemon.log.rpartition(AGAIN)[2], PATIENCE, what="for long")
    # What a test that failed has left.
    running_house.redis.command("DEL", "none", *running_house.redis.keys("s"))
    return running_house


@pytest.fixture
def make_redis(tmp_path: Path) -> Iterator[Callable[..., Redis]]:
    """Makes servers in the test's folder and ends them afterwards."""
    need("redis-server")
    made: list[Redis] = []

    def make(**options: Any) -> Redis:
        made.append(Redis(tmp_path, **options))
        return made[-1]

    yield make
    for redis in made:
        redis.kill()


def _is_up(daemon: Daemon) -> bool:
    try:
        return daemon.metric(UP) == 1
    except OSError:
        return False


def complaints(text: str) -> list[str]:
    """What a log says of Redis; but not that an answer was late, as it can be on a machine that is busy."""
    return [line for line in text.splitlines() if CAN_NOT in line and "no answer within" not in line]


def errors(daemon: Daemon, reason: str) -> float:
    return daemon.metric("hmac_file_server_redis_errors_total", f'{{reason="{reason}"}}')


def fresh_path() -> str:
    return f"{os.urandom(8).hex()}/file.bin"


def begin(daemon: Daemon, path: str, body: bytes = BODY) -> Wire:
    """A plain upload with one byte still to come."""
    head = f"PUT {put_target(path, len(body))} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    return daemon.wire().send(head.encode() + body[:-1])


def finish(wire: Wire, body: bytes = BODY) -> Answer:
    with wire:
        return wire.send(body[-1:]).final()


# Where it is


# All other tests use IPv4.
WAYS = {
    "ipv6": lambda redis: f"[::1]:{redis.port}",
    "unix": lambda redis: f"unix:{redis.path}",
    "tls": lambda redis: f"tls:localhost:{redis.tls_port}",
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_redis(make_redis: Callable[..., Redis], make_daemon: MakeDaemon, way: str) -> None:
    """Over each kind of address, with the password, the daemon uses its database and its names, and no others."""
    if way == "ipv6" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("there is no IPv6")
    need("openssl")
    redis = make_redis(password=PASSWORD, ipv6=way == "ipv6", tls=way == "tls").start()
    environment = {"SSL_CERT_FILE": str(redis.certificate)} if way == "tls" else {}
    settings = {"RedisPassword": PASSWORD, "RedisDB": 3, "RedisPrefix": "site a:"}
    daemon = make_daemon(RedisAddr=WAYS[way](redis), environment=environment, **settings).start()
    eventually(lambda: _is_up(daemon), what="Redis is used")
    path = fresh_path()
    wire = begin(daemon, path)
    eventually(lambda: len(redis.keys(prefix="", database=3)) == 3, what="the upload is there")
    assert all(key.startswith("site a:") for key in redis.keys(prefix="", database=3))
    assert redis.keys(prefix="", database=0) == []
    assert finish(wire).status == 201
    assert complaints(daemon.log) == []


REFUSALS = {
    "wrong password": ({"RedisPassword": "wrong-12345"}, "wrongpass", "WRONGPASS"),
    "no password": ({}, "noauth", "NOAUTH"),
    "no such database": ({"RedisPassword": PASSWORD, "RedisDB": 99}, "dbid", "DB index is out of range"),
    "untrusted": ({"RedisPassword": PASSWORD, "tls": True}, "unreachable", "certificate verify failed"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_by_redis(make_redis: Callable[..., Redis], make_daemon: MakeDaemon, case: str) -> None:
    """A Redis that does not let the daemon in costs one line in the log and no upload; the password is not in it."""
    settings, reason, text = REFUSALS[case]
    tls = settings.get("tls", False)
    if tls:
        need("openssl")
    redis = make_redis(password=PASSWORD, tls=tls).start()
    address = WAYS["tls"](redis) if tls else redis.address
    daemon = make_daemon(RedisAddr=address, **{k: v for k, v in settings.items() if k != "tls"}).start()
    eventually(lambda: errors(daemon, reason) >= 2, what="it has been tried again")
    path = fresh_path()
    assert daemon.put(path, BODY).status == 201
    assert (daemon.store / path).read_bytes() == BODY
    assert daemon.metric(UP) == 0
    [line] = complaints(daemon.log)
    assert text in line
    assert not any(word in daemon.log for word in (PASSWORD, "wrong-12345", "Traceback", "Unhandled"))


def test_a_password_that_nobody_asked_for(make_redis: Callable[..., Redis], make_daemon: MakeDaemon) -> None:
    """A password for a Redis without one is a password that is wrong, and the log says so."""
    redis = make_redis().start()
    daemon = make_daemon(RedisAddr=redis.address, RedisPassword=PASSWORD).start()
    eventually(lambda: errors(daemon, "wrongpass") >= 1)
    assert daemon.put(fresh_path(), BODY).status == 201
    assert daemon.log.count(f"{CAN_NOT}ERR AUTH <password> called without any password") == 1


def test_away_at_the_start(make_redis: Callable[..., Redis], make_daemon: MakeDaemon) -> None:
    """Without Redis the daemon starts with one warning; when Redis comes it is told of all that runs and waits."""
    redis = make_redis()
    daemon = make_daemon(RedisAddr=redis.address).start()
    eventually(lambda: errors(daemon, "unreachable") >= 2, what="it has been tried again")
    waits = Resumable.create(daemon.port, "a/waits.bin")
    assert daemon.put("b/stored.bin", BODY).status == 201
    runs = begin(daemon, "c/runs.bin")
    [line] = complaints(daemon.log)
    assert "Connection refused" in line
    redis.start()
    eventually(lambda: redis.state("a/waits.bin") == ("waits", daemon.pid), what="what waits")
    eventually(lambda: redis.state("c/runs.bin") == ("runs", daemon.pid), what="what runs")
    assert "b/stored.bin" not in redis.records()
    assert waits.offset() == 0
    assert finish(runs).status == 201


# What happens to it


@contextlib.contextmanager
def paused(redis: Redis) -> Iterator[None]:
    with redis.connection() as admin:
        admin.command("CLIENT", "PAUSE", 600_000, "WRITE")
        try:
            yield
        finally:
            admin.command("CLIENT", "UNPAUSE")


@contextlib.contextmanager
def stopped(redis: Redis) -> Iterator[None]:
    redis.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        redis.signal(signal.SIGCONT)


@contextlib.contextmanager
def configured(redis: Redis, **changes: str | int) -> Iterator[Connection]:
    """With other settings than before."""
    words = [str(word) for name, value in changes.items() for word in (name.replace("_", "-"), value)]
    with redis.connection() as admin:
        before = [word for name in words[::2] for word in admin.command("CONFIG", "GET", name)]
        admin.command("CONFIG", "SET", *words)
        try:
            yield admin
        finally:
            admin.command("CONFIG", "SET", *before)


@contextlib.contextmanager
def full(redis: Redis) -> Iterator[None]:
    with configured(redis, maxmemory=1, maxmemory_policy="noeviction"):
        yield


@contextlib.contextmanager
def read_only(redis: Redis) -> Iterator[None]:
    with redis.connection() as admin:
        admin.command("REPLICAOF", "127.0.0.1", 1)
        try:
            yield
        finally:
            admin.command("REPLICAOF", "NO", "ONE")


@contextlib.contextmanager
def lost_its_master(redis: Redis) -> Iterator[None]:
    with configured(redis, replica_serve_stale_data="no"), read_only(redis):
        yield


@contextlib.contextmanager
def another_password(redis: Redis) -> Iterator[None]:
    with configured(redis, requirepass="another") as admin:
        admin.command("CLIENT", "KILL", "TYPE", "normal")
        yield


@contextlib.contextmanager
def loading(redis: Redis) -> Iterator[None]:
    # A tenth of a second for each of many keys, with time for clients in between.
    slow = {"key_load_delay": 100_000, "loading_process_events_interval_bytes": 1024, "rdbcompression": "no"}
    with redis.connection(1) as loader:
        for number in range(300):
            loader.command("SET", f"large{number}", "x" * 2048)
        try:
            with configured(redis, **slow):
                loader.send("DEBUG", "RELOAD")
                yield
        finally:
            assert loader.answer() == "OK"
            loader.command("FLUSHDB")


@contextlib.contextmanager
def killed(redis: Redis) -> Iterator[None]:
    redis.kill()
    try:
        yield
    finally:
        redis.start()


FAULTS = {
    "paused": (paused, "timeout", "no answer within 1 s"),
    "full": (full, "oom", "OOM"),
    "stopped": (stopped, "timeout", "no answer within 1 s"),
    "read-only": (read_only, "readonly", "READONLY"),
    "killed": (killed, "unreachable", "Connection refused"),
    "no master": (lost_its_master, "masterdown", "MASTERDOWN"),
    "password": (another_password, "wrongpass", "WRONGPASS"),
    "loading": (loading, "loading", "LOADING"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(house: House, name: str) -> None:
    """Uploads before, during and after a fault are stored, and nobody waits; figures tell; Redis is told anew."""
    fault, reason, text = FAULTS[name]
    daemon, redis = house.one, house.redis
    earlier, later = fresh_path(), fresh_path()
    waiting = Resumable.create(daemon.port, fresh_path())
    eventually(lambda: redis.state(waiting.path) == ("waits", daemon.pid))
    first = begin(daemon, earlier)
    eventually(lambda: redis.state(earlier) == ("runs", daemon.pid))
    before = len(daemon.log)
    # Where it does not take long, the fault is met twice.
    count = errors(daemon, reason) + (1 if reason == "timeout" else 2)
    with fault(redis), never_late(daemon):
        eventually(lambda: daemon.metric(UP) == 0 and errors(daemon, reason) >= count, what="the fault is seen")
        assert finish(first).status == 201
        assert (house.store / earlier).read_bytes() == BODY
        second = begin(daemon, later)
        path = fresh_path()
        assert daemon.put(path, BODY).status == 201
        assert (house.store / path).read_bytes() == BODY
        assert daemon.metric(UP) == 0
    eventually(lambda: _is_up(daemon), PATIENCE, what="Redis is used again")
    # The log tells of a reason once until Redis has worked for a while.
    assert daemon.log[before:].partition(AGAIN)[0].count(text) == 1
    eventually(lambda: redis.state(later) == ("runs", daemon.pid), what="what runs is told")
    # By the daemon that looks through the store last: both have lost their connection.
    eventually(lambda: (redis.state(waiting.path) or ("", 0))[0] == "waits", what="what waits is told")
    assert finish(second).status == 201
    assert finish(waiting.append(0, len(BODY) - 1)).status == 201
    assert house.stored(later)
    assert house.stored(waiting.path)
    assert "Traceback" not in daemon.log
    assert "Unhandled" not in daemon.log


def test_works_again(house: House) -> None:
    """When Redis has worked for a while after a fault the log says so, once."""
    count = house.one.log.count(AGAIN)
    with full(house.redis):
        eventually(lambda: CAN_NOT in house.one.log.rpartition(AGAIN)[2], what="the fault is seen")
    eventually(lambda: house.one.log.count(AGAIN) > count, PATIENCE)
    # Once a time: between two of these there is something to get over.
    assert all(CAN_NOT in part for part in house.one.log.split(AGAIN)[:-1])


def test_stops_while_redis_hangs(make_redis: Callable[..., Redis], make_daemon: MakeDaemon) -> None:
    """A Redis that does not answer keeps the daemon from nothing when it is stopped."""
    redis = make_redis().start()
    daemon = make_daemon(RedisAddr=redis.address).start()
    eventually(lambda: _is_up(daemon), what="Redis is used")
    with stopped(redis):
        wire = begin(daemon, "a/runs.bin")
        eventually(lambda: daemon.running() == 1)
        os.kill(daemon.pid, signal.SIGTERM)
        assert finish(wire).status == 201
        assert daemon.process is not None
        assert daemon.process.wait(DEADLINE) in (0, -signal.SIGTERM)
    assert (daemon.store / "a/runs.bin").read_bytes() == BODY
    assert not any(word in daemon.log for word in ("Traceback", "Unhandled"))


# What it is told


def test_the_newest_upload_takes_the_slot(house: House) -> None:
    """While a slot is written at one daemon it is put at another one: the older upload ends, with one file stored."""
    path = fresh_path()
    older = begin(house.one, path, b"older" * 9000)
    eventually(lambda: house.redis.state(path) == ("runs", house.one.pid))
    newer = begin(house.two, path)
    with older:
        assert older.final().status == 409
    assert not (house.store / path).exists()
    assert finish(newer).status == 201
    assert house.stored(path)
    eventually(house.is_quiet, what="Redis has nothing left of it")


def test_an_older_upload_comes_back(house: House) -> None:
    """An upload that goes on does not take its slot from one that was begun later, at another daemon."""
    older = Resumable.create(house.one.port, fresh_path())
    newer = begin(house.two, older.path)
    # Not by its state: of this slot there are two.
    held = f":{house.two.pid}:"
    eventually(lambda: held in str([house.redis.command("GET", key) for key in house.redis.keys("slot")]))
    with older.append(0, 1000) as wire:
        assert wire.final().status == 409
    assert finish(newer).status == 201
    assert older.cancel() == 204
    assert house.stored(older.path)


def test_a_request_that_comes_back(house: House) -> None:
    """Of one upload the latest request has the slot, whichever daemon it reaches."""
    upload = Resumable.create(house.one.port, fresh_path())
    with upload.append(0, 1000) as first:
        eventually(lambda: house.redis.state(upload.path) == ("runs", house.one.pid))
        there = attrs.evolve(upload, port=house.two.port)
        offset = there.offset()
        assert first.final().status == 409
    with there.append(offset, len(BODY) - 1) as second:
        eventually(lambda: house.redis.state(upload.path) == ("runs", house.two.pid))
        assert finish(second).status == 201
    assert house.stored(upload.path)
    eventually(house.is_quiet)


def test_a_lease_lasts_as_long_as_its_upload(house: House) -> None:
    """The lease of an upload is renewed before it expires, made anew when it is lost, and ends with its daemon."""
    path = fresh_path()
    wire = begin(house.one, path)
    [lease] = eventually(lambda: house.redis.keys("slot"))
    holder = house.redis.command("GET", lease)
    for _ in range(2):
        house.redis.command("EXPIRE", lease, 2)
        eventually(lambda: 2 < house.redis.command("TTL", lease) <= LEASE_SECONDS, what="it is renewed")
    house.redis.command("DEL", lease)
    eventually(lambda: house.redis.command("GET", lease) == holder, what="it is made anew")
    assert finish(wire).status == 201
    eventually(house.is_quiet)


def test_the_slot_of_a_dead_daemon(house: House, make_daemon: MakeDaemon) -> None:
    """What a killed daemon leaves in Redis expires within seconds, and keeps nobody from taking its slot at once."""
    path = fresh_path()
    settings = {"RedisAddr": house.redis.address, "RedisPassword": PASSWORD}
    dead = make_daemon(StoreDir=str(house.store), **settings).start()
    with begin(dead, path, b"older" * 9000):
        eventually(lambda: house.redis.state(path) == ("runs", dead.pid))
        dead.stop(signal.SIGKILL)
    # -1 would be for ever; what has expired meanwhile has -2.
    for key in [*house.redis.keys("s"), *house.redis.keys("daemon")]:
        left = house.redis.command("TTL", key)
        assert left != -1
        assert left <= LEASE_SECONDS
    assert house.two.put(path, BODY).status == 201
    assert (house.store / path).read_bytes() == BODY


def test_records(house: House) -> None:
    """Redis tells which uploads run and which wait, and where, no longer than they can; not what lets one go on."""
    upload = Resumable.create(house.one.port, fresh_path())
    eventually(lambda: house.redis.state(upload.path) == ("waits", house.one.pid))
    [record] = house.redis.keys("session")
    assert 0 < house.redis.command("TTL", record) <= SESSION_SECONDS
    with upload.append(0, 1000):
        eventually(lambda: house.redis.state(upload.path) == ("runs", house.one.pid))
        assert 0 < house.redis.command("TTL", record) <= LEASE_SECONDS
        [lease] = house.redis.keys("slot")
        texts = [record, lease, *(str(house.redis.command("GET", key)) for key in (record, lease))]
        assert not any(secret in text for text in texts for secret in (upload.token, SECRET, PASSWORD))
    eventually(lambda: house.redis.state(upload.path) == ("waits", house.one.pid))
    assert house.redis.records()[upload.path]["safe"] == 1000
    assert house.redis.keys("slot") == []
    assert finish(upload.append(1000, len(BODY) - 1)).status == 201
    eventually(house.is_quiet, what="it is over")
    assert house.stored(upload.path)


def test_daemons(house: House) -> None:
    """Redis names the daemons that run, and forgets one that says nothing more."""
    pids = {daemon.pid for daemon in house.daemons}
    names = eventually(lambda: {n for n in house.redis.keys("daemon") if int(n.rpartition(":")[2]) in pids})
    assert len(names) == 2
    assert all(0 < house.redis.command("TTL", name) <= LEASE_SECONDS for name in names)


def test_an_upload_that_is_dropped(house: House) -> None:
    """A running upload that its client drops is not told to wait."""
    upload = Resumable.create(house.one.port, fresh_path())
    with upload.append(0, 1000):
        eventually(lambda: house.redis.state(upload.path) == ("runs", house.one.pid))
        assert upload.cancel() == 204
    eventually(house.is_quiet, what="Redis has nothing left of it")


def test_small_uploads_leave_nothing(house: House) -> None:
    """Uploads that are over before Redis has answered leave no lease and no record."""
    assert [house.one.put(fresh_path(), b"hello").status for _ in range(20)] == [201] * 20
    upload = Resumable.create(house.one.port, fresh_path())
    assert finish(upload.append(0, len(BODY) - 1)).status == 201
    eventually(house.is_quiet)


def elsewhere(house: House, path: str, known: set[int]) -> int:
    """The daemon that an upload runs at, if it is none of the known ones; else 0."""
    state, pid = house.redis.state(path) or ("", 0)
    return 0 if state != "runs" or pid in known else pid


def test_resumed_at_the_other_daemon(house: House, tmp_path: Path) -> None:
    """Behind nginx, an upload that broke off at one daemon goes on at the other one, which Redis tells of."""
    need("nginx")
    port = free_port()
    config = tmp_path / "nginx.conf"
    config.write_text(_NGINX.format(folder=tmp_path, port=port, first=house.one.port, second=house.two.port))
    nginx = shutil.which("nginx", path=PATH)
    assert nginx
    program = Program(tmp_path, [nginx, "-c", config, "-p", tmp_path, "-e", "stderr"]).listens(port)
    try:
        upload = Resumable.create(port, fresh_path())
        where: set[int] = set()
        offset = 0
        for end in (30_000, 60_000):
            with upload.append(offset, end):
                where.add(eventually(lambda: elsewhere(house, upload.path, where), what="it is told"))
            before, offset = offset, upload.offset()
            assert before <= offset <= end
            # One more request, so that the next part goes to the other one.
            assert ask(port, "GET", "/upload/none").status == 404
        assert finish(upload.append(offset, len(BODY) - 1)).status == 201
    finally:
        program.end()
    assert where == {house.one.pid, house.two.pid}
    assert house.stored(upload.path)
    eventually(house.is_quiet)


def test_workers(make_redis: Callable[..., Redis], make_daemon: MakeDaemon) -> None:
    """Each worker tells of what runs there; of two uploads of a slot the newer one has it, wherever they are."""
    redis = make_redis().start()
    daemon = make_daemon(RedisAddr=redis.address, Workers=2).start()
    eventually(lambda: len(redis.keys("daemon")) == 2)
    pids = {int(name.rpartition(":")[2]) for name in redis.keys("daemon")}
    assert daemon.pid not in pids
    for _ in range(6):
        path = fresh_path()
        older = begin(daemon, path, b"older" * 9000)
        eventually(lambda path=path: (redis.state(path) or ("", 0))[1] in pids, what="it is told")
        newer = begin(daemon, path)
        with older:
            assert older.final().status == 409
        assert finish(newer).status == 201
        assert (daemon.store / path).read_bytes() == BODY
    eventually(lambda: _is_up(daemon), what="both use it")
    redis.kill()
    eventually(lambda: daemon.metric(UP) == 0, what="both miss it")
    assert daemon.put(fresh_path(), BODY).status == 201
    assert "Traceback" not in daemon.log


# Without it


_IMPORTED = """
import sys
from hmac_file_server.tap import Options, makeService
options = Options()
options.parseOptions(["--config", sys.argv[1]])
makeService(options)
print("txredisapi" in sys.modules)
"""


@pytest.mark.parametrize(("address", "imported"), [("", "False"), ("127.0.0.1:1", "True")])
def test_nothing_of_redis_is_imported(tmp_path: Path, address: str, imported: str) -> None:
    """With an empty RedisAddr nothing of Redis is imported, and so nothing is connected."""
    config = tmp_path / "config.toml"
    lines = [f'Secret = "{SECRET}"', f'StoreDir = "{tmp_path}/store"', f'RedisAddr = "{address}"', ""]
    config.write_text("\n".join(lines))
    done = subprocess.run([sys.executable, "-c", _IMPORTED, str(config)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == imported, done.stderr
