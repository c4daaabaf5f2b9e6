"""Where and by whom the daemon is started changes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.neighbours.program import NOBODY, let_through
from tests.support import Daemon, eventually, missing, need

MakeDaemon = Callable[..., Daemon]


def test_an_installation_of_another_user(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Started by another user than the one that the installation belongs to, the log begins without a complaint."""
    need("setpriv")
    if os.geteuid() != 0:
        missing("only root can start it as another user")
    let_through(tmp_path)
    # A folder of plugins as the one of the installation, but with no cache, and none can be made.
    plugins = tmp_path / "site/twisted/plugins"
    plugins.mkdir(parents=True)
    (plugins / "another_plugin.py").write_text("")
    store = tmp_path / "store"
    store.mkdir()
    shutil.chown(store, "nobody")
    daemon = make_daemon(prefix=NOBODY, environment={"PYTHONPATH": str(tmp_path / "site")}, Workers=2).start()
    eventually(lambda: daemon.log.count("Starting reactor") == 3)
    assert not (plugins / "dropin.cache").exists()
    assert "cache" not in daemon.log
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize("name", ["twisted.py", "hmac_file_server.py", "attrs.py"])
def test_a_folder_with_modules(make_daemon: MakeDaemon, tmp_path: Path, name: str) -> None:
    """What lies in the folder that the daemon is started in is imported by none of its processes."""
    (tmp_path / name).write_text("raise SystemExit('this is not what was installed')\n")
    daemon = make_daemon(Workers=2).start()
    eventually(lambda: daemon.log.count("Starting reactor") == 3, what="all workers run")
    assert daemon.get("none").status == 404
