"""Several hosts in one daemon, each with its own prefix, folder, secret and limits."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hmac_file_server.slots.signature import sign
from tests.support import SECRET, Answer, Daemon, eventually, put_target

MakeDaemon = Callable[..., Daemon]

OTHER = "other7-secret23-of91-another17"
WORKERS = pytest.mark.parametrize("workers", [1, 2])
VERSION = {"Upload_Draft_Interop_Version": "6"}


def host(folder: Path, prefix: str, **others: Any) -> dict[str, Any]:
    return {"UploadSubDir": prefix, "StoreDir": str(folder / (prefix.replace("/", "-") or "root")), **others}


def store(folder: Path, prefix: str) -> Path:
    return Path(host(folder, prefix)["StoreDir"])


def put(daemon: Daemon, prefix: str, path: str, body: bytes, secret: str = SECRET, **headers: str) -> Answer:
    prefix = f"/{prefix}/" if prefix else "/"
    return daemon.request("PUT", put_target(path, len(body), prefix, secret), body, **headers)


def get(daemon: Daemon, prefix: str, path: str) -> Answer:
    return daemon.request("GET", f"/{prefix}/{path}" if prefix else f"/{path}")


@WORKERS
def test_each_has_its_own(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """A host takes what its own secret has signed, and stores and serves it in its own folder."""
    hosts = [host(tmp_path, "a"), host(tmp_path, "b", Secret=OTHER, Name="Bé", MaxUploadSize=10)]
    daemon = make_daemon(StoreDir=None, hosts=hosts, Workers=workers).start()
    assert put(daemon, "a", "slot/x.txt", b"of a").status == 201
    assert put(daemon, "b", "slot/x.txt", b"of b", OTHER).status == 201
    for prefix, body in (("a", b"of a"), ("b", b"of b")):
        assert get(daemon, prefix, "slot/x.txt").body == body
        assert (store(tmp_path, prefix) / "slot/x.txt").read_bytes() == body
    assert put(daemon, "a", "slot/y.txt", b"hello", OTHER).status == 403
    assert put(daemon, "b", "slot/y.txt", b"hello").status == 403
    assert put(daemon, "a", "slot/z.txt", b"more than ten bytes").status == 201
    assert put(daemon, "b", "slot/z.txt", b"more than ten bytes", OTHER).status == 413
    assert get(daemon, "b", "slot/z.txt").status == 404
    assert get(daemon, "c", "slot/x.txt").status == 404
    eventually(lambda: daemon.metric("hmac_file_server_uploads_total", '{host="a"}') == 2)
    assert daemon.metric("hmac_file_server_uploads_total", '{host="Bé"}') == 1
    assert daemon.metric("hmac_file_server_refusals_total", '{host="Bé",reason="too_large"}') == 1
    assert "host=Bé" in re.findall(r"PUT /b/slot/x.txt .*", daemon.log)[0]
    assert OTHER not in daemon.log
    assert "share a secret" not in daemon.log


@WORKERS
def test_one_secret(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """Where two hosts share a secret the start says so once, and a slot works once below each, as two files."""
    daemon = make_daemon(StoreDir=None, hosts=[host(tmp_path, "a"), host(tmp_path, "b")], Workers=workers).start()
    assert put(daemon, "a", "slot/x.txt", b"of a").status == 201
    assert put(daemon, "b", "slot/x.txt", b"of b").status == 201
    assert put(daemon, "b", "slot/x.txt", b"of c").status == 409
    assert (get(daemon, "a", "slot/x.txt").body, get(daemon, "b", "slot/x.txt").body) == (b"of a", b"of b")
    assert len(re.findall("the hosts a and b share a secret", daemon.log)) == 1


def test_the_plain_keys_are_one_more(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """With a secret and a folder among the plain keys they are a host beside those of the tables."""
    daemon = make_daemon(hosts=[host(tmp_path, "b", Secret=OTHER)]).start()
    assert daemon.put("slot/x.txt", b"plain").status == 201
    assert put(daemon, "b", "slot/x.txt", b"table", OTHER).status == 201
    assert (daemon.store / "slot/x.txt").read_bytes() == b"plain"
    assert (store(tmp_path, "b") / "slot/x.txt").read_bytes() == b"table"


def test_the_longest_prefix(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """The longest prefix decides, also beside files at the root, and never the Host header."""
    prefixes = ["", "a", "a/b", "a/b/c d", "grüße"]
    daemon = make_daemon(StoreDir=None, hosts=[host(tmp_path, prefix) for prefix in prefixes]).start()
    for prefix in prefixes:
        quoted = prefix.replace(" ", "%20").replace("grüße", "gr%C3%BC%c3%9fe")
        assert put(daemon, quoted, "slot/x.txt", prefix.encode()).status == 201
    for prefix in prefixes:
        assert (store(tmp_path, prefix) / "slot/x.txt").read_bytes() == prefix.encode()
    # Spelled in another way it is the same prefix.
    assert daemon.request("GET", "/%61/%62/slot/x.txt").body == b"a/b"
    # What lies below another's prefix is another's, also for the host at the root.
    (store(tmp_path, "") / "a").mkdir()
    (store(tmp_path, "") / "a/hidden.txt").write_bytes(b"hidden")
    assert daemon.request("GET", "/a/hidden.txt").status == 404
    assert put(daemon, "", "a/b/y.txt", b"whose").status == 403
    assert put(daemon, "", "ab/y.txt", b"root").status == 201
    assert (store(tmp_path, "") / "ab/y.txt").read_bytes() == b"root"


@WORKERS
def test_sessions_are_apart(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """An upload resource is its host's alone, and another host's upload of the same slot ends none."""
    daemon = make_daemon(StoreDir=None, hosts=[host(tmp_path, "a"), host(tmp_path, "b")], Workers=workers).start()
    parts = VERSION | {"Upload_Complete": "?0", "Upload_Length": "10"}
    locations = {}
    for prefix in ("a", "b"):
        target = put_target("slot/x.bin", 10, f"/{prefix}/")
        answer = daemon.request("PUT", target, prefix.encode() * 5, **parts)
        locations[prefix] = answer.headers["location"]
        assert locations[prefix].startswith(f"/{prefix}/.hmac-file-server/")
    for prefix, other in (("a", "b"), ("b", "a")):
        strange = locations[prefix].replace(f"/{prefix}/", f"/{other}/", 1)
        for method in ("HEAD", "DELETE"):
            assert daemon.request(method, strange, **VERSION).status == 404
        assert daemon.request("HEAD", locations[prefix], **VERSION).headers["upload-offset"] == "5"
        more = {"Upload_Offset": "5", "Upload_Complete": "?1", "Content_Type": "application/partial-upload"}
        assert daemon.request("PATCH", strange, b"world", **VERSION, **more).status == 404
        assert daemon.request("PATCH", locations[prefix], b"world", **VERSION, **more).status == 201
        assert get(daemon, prefix, "slot/x.bin").body == prefix.encode() * 5 + b"world"


def test_removed_slots_are_apart(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """What is removed at one host lives at another; where a host has no DeleteSecret nothing can be removed."""
    hosts = [host(tmp_path, "a"), host(tmp_path, "b"), host(tmp_path, "c", DeleteSecret="")]
    daemon = make_daemon(StoreDir=None, DeleteSecret="delete7-it23-all91", hosts=hosts).start()
    for prefix in "abc":
        assert put(daemon, prefix, "slot/x.txt", b"hello").status == 201
    token = sign(SECRET.encode(), b"slot/x.txt\0delete7-it23-all91")
    assert daemon.request("DELETE", f"/a/slot/x.txt?token={token}").status == 204
    assert daemon.request("DELETE", f"/c/slot/x.txt?token={token}").status == 405
    assert [get(daemon, prefix, "slot/x.txt").status for prefix in "abc"] == [404, 200, 200]
    assert [put(daemon, prefix, "slot/x.txt", b"hello").status for prefix in "abc"] == [403, 201, 201]


@WORKERS
def test_a_folder_that_is_gone(make_daemon: MakeDaemon, tmp_path: Path, workers: int) -> None:
    """/readyz names the host whose folder can not be used; the others go on."""
    hosts = [host(tmp_path, "a"), host(tmp_path, "b", Name="second")]
    daemon = make_daemon(StoreDir=None, hosts=hosts, Workers=workers).start()
    eventually(lambda: daemon.log.count("Starting reactor") == (1 if workers == 1 else 1 + workers))
    assert daemon.ready()[0] == 200
    gone = store(tmp_path, "b")
    gone.rename(tmp_path / "away")
    gone.write_bytes(b"")
    eventually(lambda: "second" in daemon.ready()[1], what="/readyz tells")
    assert daemon.ready()[0] == 503
    assert put(daemon, "a", "slot/x.txt", b"hello").status == 201
    gone.unlink()
    (tmp_path / "away").rename(gone)
    eventually(lambda: daemon.ready()[0] == 200, what="/readyz is content")
    eventually(lambda: put(daemon, "b", f"{os.urandom(4).hex()}/x.txt", b"hello").status == 201, what="it is taken")


def test_mistakes_are_told_by_host(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """An upload elsewhere is told where uploads go, and one for another prefix which."""
    hosts = [host(tmp_path, "a"), host(tmp_path, "b", Secret=OTHER)]
    daemon = make_daemon(StoreDir=None, hosts=hosts).start()
    assert daemon.request("PUT", "/c/x.txt?v=" + "0" * 64, b"hello").status == 404
    assert put(daemon, "", "slot/x.txt", b"hello", OTHER).status == 404
    lines = eventually(lambda: (found := re.findall(r"PUT .*", daemon.log))[1:] and found)
    assert 'uploads go below "/a/" or "/b/"' in lines[0]
    assert 'without "/b/" before it' in lines[1]


def test_figures_of_one_host_have_no_label(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """With one host, also where a table describes it, figures and lines are as they always were."""
    daemon = make_daemon(StoreDir=None, hosts=[host(tmp_path, "upload")]).start()
    assert daemon.put("slot/x.txt", b"hello").status == 201
    eventually(lambda: daemon.metric("hmac_file_server_uploads_total") == 1)
    assert "host=" not in daemon.log
