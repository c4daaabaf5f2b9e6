"""A server of another project, run as a process of the test's own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support import DEADLINE, eventually

PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

# A command line under which another one runs as nobody. Python itself may lie where only root can read.
_READ = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
NOBODY = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *_READ]


class Program:
    """A running program.

    :param folder: for its log.
    :param env: added to the environment.
    """

    def __init__(self, folder: Path, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        self._log_path = folder / f"{Path(command[0]).name}.output"
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env={**os.environ, "PATH": PATH, **(env or {})},
            )

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def listens(self, port: int, deadline: float = DEADLINE) -> Program:
        """Wait until it listens.

        :param deadline: in seconds.
        """
        try:
            eventually(lambda: self._is_up(port), deadline, what=f"{self._log_path} at {port}")
        except BaseException:
            self.end()
            raise
        return self

    def _is_up(self, port: int) -> bool:
        status = self.process.poll()
        assert status is None, f"ended with {status}:\n{self.log}"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True

    def end(self) -> None:
        """Stop it; does nothing when it has ended."""
        self.process.terminate()
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def find(program: str) -> str:
    """Where a program is, in the folders of the system's own too."""
    found = shutil.which(program, path=PATH)
    assert found, f"{program} is not installed"
    return found


def run(*command: str | Path, cwd: Path | None = None, stdin: str = "") -> str:
    """What a command printed; its failure is the test's."""
    done = subprocess.run(
        list(map(str, command)),
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
        cwd=cwd,
        env={**os.environ, "PATH": PATH},
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def let_through(folder: Path) -> None:
    """Let all users reach what lies in a folder."""
    for above in (folder, *folder.parents):
        if not above.stat().st_mode & 0o001:
            above.chmod(0o711)


def example(path: str, *changes: tuple[str, str]) -> str:
    """One of the files in contrib, with what differs on every machine replaced."""
    text = (Path(__file__).parents[2] / "contrib" / path).read_text()
    for old, new in changes:
        assert old in text, f"{path} has no {old!r}"
        text = text.replace(old, new)
    return text


def certificate(folder: Path, name: str, made: str = "") -> tuple[Path, Path]:
    """A certificate that signs itself and is good for 90 days, and its key.

    :param made: when, as faketime has it; now by default.
    """
    path, key = folder / "cert.pem", folder / "key.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "90"]
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    then = ["faketime", "-f", made] if made else []
    run(*then, "openssl", "req", "-x509", *kind, *subject, "-keyout", key, "-out", path)
    return path, key
