"""Who on the machine can read uploads, as the docs say."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import Daemon, missing, need

MakeDaemon = Callable[..., Daemon]

UMASK = ["sh", "-c", 'umask 0027; exec "$@"', "sh"]
OTHER = "65534"


def can_read(path: Path, group: int = 65534) -> bool:
    """Whether another user can read a file."""
    command = ["setpriv", f"--reuid={OTHER}", f"--regid={group}", "--clear-groups", "cat", str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can get to, as those that pytest makes can not be."""
    need("setpriv", "setfacl")
    if os.geteuid() != 0:
        missing("only root can be another user")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("way", ["neither", "group", "list"])
def test_another_user(open_folder: Path, make_daemon: MakeDaemon, way: str) -> None:
    """With the unit's umask other users read no uploads, but for those of the group, or on StoreDir's access list."""
    store = open_folder / "uploads"
    store.mkdir()
    store.chmod(0o750)
    if way == "list":
        subprocess.check_call(["setfacl", "-m", f"u:{OTHER}:rx", "-m", f"d:u:{OTHER}:rx", str(store)])
    daemon = make_daemon(StoreDir=str(store), prefix=UMASK).start()
    assert daemon.put("slot/small.txt", b"hello").status == 201
    assert daemon.put("slot/large.bin", bytes(3_000_000)).status == 201
    for name in ("slot/small.txt", "slot/large.bin"):
        assert can_read(store / name, os.getegid() if way == "group" else 65534) is (way != "neither")
