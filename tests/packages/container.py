"""The containers' images, run as contrib/container/compose.yaml runs them: see .ci/container-test."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.neighbours import xmpp
from tests.packages.chroot import network_of_its_own
from tests.support import SECRET, Wire, eventually, put_head

BODY = b"a photo" * 1000
CONTRIB = Path(__file__).parents[2] / "contrib/container"
# What compose.yaml says, and a machine without systemd needs: nobody there could keep the time of health checks.
AS_COMPOSED = ["--read-only", "--tmpfs=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges"]
HERE = ["--network=host", "--no-healthcheck", "--ulimit=nofile=8192:8192", "--ulimit=nproc=1000:1000"]

# Process 1 and its workers, by their numbers; those that have ended, and nobody has waited for, apart.
PROCESSES = """
import json, os
found = {"run": [], "zombies": []}
for name in filter(str.isdigit, os.listdir("/proc")):
    state = open(f"/proc/{name}/stat").read().rpartition(") ")[2].split()
    if int(name) != os.getpid():
        found["zombies" if state[0] == "Z" else "run"].append(int(name))
print(json.dumps(found))
"""


def podman(*words: str | Path) -> str:
    done = subprocess.run(
        ["podman", "--runtime=runc", *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


class Container:
    """A running container.

    :param image: its image, whose name it has.
    :param options: for ``podman run``.
    """

    def __init__(self, image: str, *options: str) -> None:
        self.image = image
        podman("run", "--detach", f"--name={image}", *AS_COMPOSED, *HERE, *options, image)

    def run(self, *command: str) -> str:
        return podman("exec", self.image, *command)

    @property
    def log(self) -> str:
        done = subprocess.run(["podman", "logs", self.image], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def is_healthy(self) -> bool:
        """Whether the check that its image names succeeds."""
        words = json.loads(podman("image", "inspect", "--format={{json .HealthCheck}}", self.image))["Test"]
        assert words[0] == "CMD"
        command = ["podman", "--runtime=runc", "exec", self.image, *words[1:]]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def stop(self) -> int:
        """Stop it by SIGTERM, as engines do; its exit status, 137 if it had to be killed."""
        podman("stop", "--time=45", self.image)
        status = int(podman("inspect", "--format={{.State.ExitCode}}", self.image))
        assert "Traceback" not in self.log, self.log
        podman("rm", self.image)
        return status


def listens(port: int) -> bool:
    try:
        Wire(port, "::1").close()
    except ConnectionError:
        return False
    return True


def put(path: str) -> int:
    with Wire(8080, "::1") as wire:
        return wire.send(put_head(path, len(BODY), secret=SECRET) + BODY).answer().status


def get(path: str) -> bytes:
    with Wire(8080, "::1") as wire:
        return wire.send(f"GET /upload/{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()).answer().body


def run_daemon(folder: Path, *options: str) -> Container:
    secret = folder / "secret"
    secret.write_text(f"{SECRET}\n")
    mounts = [f"--volume={secret}:/run/secrets/hmac-file-server:ro", "--volume=uploads:/var/lib/hmac-file-server"]
    daemon = Container("hmac-file-server", *mounts, *options)
    eventually(daemon.is_healthy, what=f"it is healthy: {daemon.log}")
    return daemon


def takes_a_file(folder: Path) -> None:
    """It stores uploads in its volume as its own user, on a read-only file system, and ends well by SIGTERM."""
    daemon = run_daemon(folder)
    assert put("slot/a.jpg") == 201
    assert daemon.run("stat", "--format=%u %g %a", "/var/lib/hmac-file-server").split() == ["8080", "8080", "750"]
    assert daemon.run("stat", "--format=%u %g", "/var/lib/hmac-file-server/slot/a.jpg") == "8080 8080"
    assert daemon.run("cat", "/proc/1/comm") != "sh"
    refused = subprocess.run(
        ["podman", "--runtime=runc", "exec", "hmac-file-server", "touch", "/opt/a"], capture_output=True, check=False
    )
    assert b"Read-only file system" in refused.stderr
    assert daemon.stop() == 0
    daemon = run_daemon(folder)
    assert get("slot/a.jpg") == BODY
    assert daemon.stop() == 0


def lets_an_upload_finish(folder: Path) -> None:
    """What is being uploaded when it is stopped is stored, and answered."""
    daemon = run_daemon(folder)
    with Wire(8080, "::1") as wire:
        wire.send(put_head("slot/slow.jpg", len(BODY), secret=SECRET) + BODY[:-1])
        stop = subprocess.Popen(["podman", "--runtime=runc", "stop", "--time=45", daemon.image])
        eventually(lambda: not listens(8080), what="it takes nothing new")
        assert wire.send(BODY[-1:]).answer().status == 201
        assert stop.wait(60) == 0
    assert daemon.stop() == 0


def waits_for_its_workers(folder: Path) -> None:
    """As process 1 it has no zombies: a worker that is killed is waited for, replaced, and stopped with the rest."""
    config = folder / "config.toml"
    config.write_text((CONTRIB / "config.toml").read_text() + "Workers = 2\n")
    daemon = run_daemon(folder, f"--volume={config}:/etc/hmac-file-server/config.toml:ro")

    def processes() -> dict[str, list[int]]:
        found: dict[str, list[int]] = json.loads(daemon.run("python3", "-c", PROCESSES))
        return found

    before = processes()
    assert len(before["run"]) == 3
    assert 1 in before["run"]
    killed = max(before["run"])
    daemon.run("python3", "-c", f"import os; os.kill({killed}, 9)")

    def is_replaced() -> bool:
        now = processes()
        return len(now["run"]) == 3 and killed not in now["run"] and not now["zombies"]

    eventually(is_replaced, what="there are two workers again, and no zombie")
    assert put("slot/b.jpg") == 201
    assert daemon.stop() == 0


def works_with_prosody(folder: Path) -> None:
    """A client of the Prosody beside it uploads a file, with the secret that both read."""
    config = (CONTRIB / "prosody.cfg.lua").read_text()
    config = config.replace("https://upload.example.com", "http://127.0.0.1:8080").replace("example.com", "localhost")
    insecure = "c2s_require_encryption = false\nallow_unencrypted_plain_auth = true\n"
    there = folder / "prosody.cfg.lua"
    there.write_text(insecure + config)
    certificates = folder / "certs"
    certificates.mkdir()
    daemon = run_daemon(folder)
    prosody = Container(
        "prosody",
        f"--volume={folder / 'secret'}:/run/secrets/hmac-file-server:ro",
        f"--volume={there}:/etc/prosody/upload.cfg.lua:ro",
        f"--volume={certificates}:/etc/prosody/certs:ro",
        "--volume=accounts:/srv/prosody",
    )
    eventually(lambda: listens(5222), what=f"Prosody listens: {prosody.log}")
    prosody.run(
        "prosodyctl", "--config", "/etc/prosody/upload.cfg.lua", "register", "alice", "localhost", xmpp.PASSWORD
    )
    url, body = xmpp.upload("alice@localhost", 5222, "a photo.jpg", BODY)
    assert body == BODY
    assert url.startswith("http://127.0.0.1:8080/upload/")
    assert daemon.stop() == 0
    assert prosody.stop() in (0, 143)


def main() -> None:
    network_of_its_own()
    folder = Path(sys.argv[1])
    for step in (takes_a_file, lets_an_upload_finish, waits_for_its_workers, works_with_prosody):
        begun = time.monotonic()
        step(folder)
        print(f"container: {step.__name__.replace('_', ' ')} ({time.monotonic() - begun:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
