"""A server's own files, taken over as they lie there: what docs/moving.rst says of ejabberd."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from tests.neighbours import xmpp
from tests.neighbours.ejabberd import Ejabberd, need_ejabberd
from tests.support import Daemon


def test_from_ejabberd(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """What ejabberd has stored by itself is served under its old path from a copy of docroot, new files beside it."""
    need_ejabberd()
    body = os.urandom(100_000)
    ejabberd = Ejabberd(tmp_path, None)
    try:
        url, downloaded = xmpp.upload("alice@localhost", ejabberd.port, "Größe.jpg", body)
    finally:
        ejabberd.program.end()
    assert downloaded == body
    daemon = make_daemon(tmp_path / "daemon").start()
    shutil.copytree(ejabberd.docroot, daemon.store, dirs_exist_ok=True)
    old = xmpp.fetch(daemon.port, xmpp.spellings(url)[0])
    assert (old.status, old.body, old.headers["content-type"]) == (200, body, "image/jpeg")
    # An upload of the same user.
    user = unquote(url).split("/upload/")[1].partition("/")[0]
    assert daemon.put(f"{user}/4711/b.jpg", b"hello").status == 201
    assert daemon.get(f"{user}/4711/b.jpg").body == b"hello"
