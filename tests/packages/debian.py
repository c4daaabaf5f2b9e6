"""The Debian package's life in a fresh system, to which nothing else may belong: see .ci/package-test."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

from tests.packages.chroot import enter, lies, network_of_its_own
from tests.process.test_resume import head
from tests.support import Answer, Wire, eventually, put_head, put_target, v2

NAME = "hmac-file-server"
STORE = f"/var/lib/{NAME}"
SECRET = f"/etc/{NAME}/secret"
CONFIG = f"/etc/{NAME}/config.toml"
WANTED = f"/etc/systemd/system/multi-user.target.wants/{NAME}.service"
BODY = b"a photo" * 1000


class System:
    """A fresh system, with the package beside it, and a newer one.

    :param root: its folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        subprocess.run(["mount", "-t", "proc", "proc", lies(root, "/proc")], check=True)
        stand_in = root / "usr/bin/systemctl"
        stand_in.write_bytes(Path(__file__).with_name("systemctl.py").read_bytes())
        stand_in.chmod(0o755)
        lies(root, "/run/systemd/system").mkdir(parents=True)
        self.run("dpkg-deb", "-R", "/package.deb", "/newer")
        control = root / "newer/DEBIAN/control"
        control.write_text(re.sub(r"(?m)^(Version: .*)$", r"\1+newer", control.read_text()))
        self.run("dpkg-deb", "--build", "/newer", "/newer.deb")

    def run(self, *command: str, **options: object) -> str:
        """What a command prints, which must work."""
        done = enter(self.root, *command, **options)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{self.log}"
        return done.stdout

    def apt(self, *words: str) -> str:
        return self.run("apt-get", "-y", "-q", "--no-install-recommends", *words)

    @property
    def log(self) -> str:
        return self.text("/run/daemon.log")

    def text(self, path: str) -> str:
        there = lies(self.root, path)
        return there.read_text() if there.exists() else ""

    def mode(self, path: str) -> tuple[str, str, int]:
        """The user, the group and the mode of a file."""
        user, group, mode = self.run("stat", "--format=%U %G %a", path).split()
        return user, group, int(mode, 8)

    def exists(self, path: str) -> bool:
        return lies(self.root, path).exists()

    @property
    def secret(self) -> str:
        return self.text(SECRET).strip()

    def wire(self) -> Wire:
        return Wire(8080, "::1")

    def put(self, path: str) -> Answer:
        """Upload, of a type that is signed."""
        with self.wire() as wire:
            target = f"/upload/{path}?v2={v2(path, len(BODY), 'image/webp', self.secret)}"
            fields = f"Host: a\r\nContent-Type: image/webp\r\nContent-Length: {len(BODY)}"
            return wire.send(f"PUT {target} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + BODY).answer()

    def get(self, path: str) -> Answer:
        with self.wire() as wire:
            return wire.send(f"GET /upload/{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()).answer()

    def listens(self) -> bool:
        try:
            self.wire().close()
        except ConnectionError:
            return False
        return True

    def set(self, key: str, value: object) -> None:
        """Change the configuration as an administrator does."""
        config = lies(self.root, CONFIG)
        text, changes = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", config.read_text())
        assert changes == 1
        config.write_text(text)


def installs(system: System) -> None:
    """It runs, as its user, with a secret that nobody else knows, and takes a file."""
    said = system.apt("install", "/package.deb")
    assert system.mode(STORE) == (NAME, NAME, 0o750)
    assert system.mode(SECRET) == ("root", NAME, 0o640)
    assert system.mode(CONFIG) == ("root", NAME, 0o640)
    assert re.fullmatch(r"[0-9a-f]{64}", system.secret)
    assert system.secret not in said + system.log
    assert "/nologin" in system.run("getent", "passwd", NAME)
    pid = system.text("/run/main.pid")
    assert re.search(r"(?m)^Uid:\t(\d+)\t\1\t\1\t\1$", Path(f"/proc/{pid}/status").read_text())
    assert Path(f"/proc/{pid}").stat().st_uid == lies(system.root, STORE).stat().st_uid != 0
    assert lies(system.root, WANTED).is_symlink()
    assert system.put("slot/a.jpg").status == 201
    assert system.get("slot/a.jpg").body == BODY
    assert lies(system.root, f"{STORE}/slot/a.jpg").read_bytes() == BODY


def has_what_belongs_to_it(system: System) -> None:
    """The command is found, completes its words, and has nothing to complain of; a web server can be let in."""
    assert system.run(NAME, "--version").strip()
    assert "_hmac_file_server_completion" in system.run(
        "bash", "-c", f". /usr/share/bash-completion/completions/{NAME}; complete -p {NAME}"
    )
    assert f"compdef _hmac_file_server_completion {NAME}" in system.text("/usr/share/zsh/vendor-completions/_" + NAME)
    assert f"--command {NAME}" in system.text(f"/usr/share/fish/vendor_completions.d/{NAME}.fish")
    assert "rotate" in system.text(f"/etc/logrotate.d/{NAME}")
    assert system.exists(f"/usr/share/doc/{NAME}/examples/contrib/nginx/{NAME}.conf")
    told = system.run("setpriv", f"--reuid={NAME}", f"--regid={NAME}", "--clear-groups", NAME, "check", CONFIG)
    assert "nothing to complain of" in told, told
    read = ["setpriv", "--reuid=www-data", "--regid=www-data", "cat", f"{STORE}/slot/a.jpg"]
    assert enter(system.root, *read[:3], "--clear-groups", *read[3:]).returncode != 0
    assert system.run(*read[:3], f"--groups={NAME}", *read[3:]) == BODY.decode()


def upgrades(system: System) -> None:
    """An upload that runs is finished by the old daemon, or resumed by the new one; what was set stays."""
    system.set("ShutdownTimeout", 5)
    system.set("TrustedProxies", "[]")
    system.run("systemctl", "restart", NAME)
    secret, before = system.secret, system.text("/run/main.pid")
    half = len(BODY) // 2
    with system.wire() as finished, system.wire() as cut:
        finished.send(put_head("slot/finished.jpg", len(BODY), secret=secret) + BODY[:half])
        cut.send(head("PUT", put_target("slot/cut.jpg", len(BODY), secret=secret), 6, len(BODY), True))
        location = cut.interim().headers["location"]
        cut.send(BODY[:half])
        upgrade = subprocess.Popen(
            ["chroot", system.root, "apt-get", "-y", "-q", "install", "/newer.deb"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
        eventually(lambda: not system.listens(), what="the old daemon takes nothing new")
        assert finished.send(BODY[half:]).answer().status == 201
        said, _ = upgrade.communicate(timeout=120)
        assert upgrade.returncode == 0, said
    assert "+newer" in system.run("dpkg-query", "--show", NAME)
    assert system.text("/run/main.pid") != before
    assert system.get("slot/finished.jpg").body == BODY
    with system.wire() as wire:
        there = wire.send(head("HEAD", location)).final(head=True)
        offset = int(there.headers["upload-offset"])
        assert (there.status, offset) == (204, half)
        wire.send(head("PATCH", location, size=len(BODY) - half, complete=True, offset=half) + BODY[half:])
        assert wire.final().status in (200, 201)
    assert system.get("slot/cut.jpg").body == BODY
    assert (system.secret, system.mode(CONFIG)) == (secret, ("root", NAME, 0o640))
    assert "ShutdownTimeout = 5" in system.text(CONFIG)


def keeps_what_was_set(system: System) -> None:
    """A service that is off stays off over an upgrade, and a store that is another group's stays that."""
    system.run("systemctl", "stop", NAME)
    system.run("systemctl", "disable", NAME)
    system.run("chgrp", "www-data", STORE)
    system.apt("install", "--allow-downgrades", "/package.deb")
    assert not system.listens()
    assert not lies(system.root, WANTED).is_symlink()
    assert system.mode(STORE) == (NAME, "www-data", 0o750)
    system.run("chgrp", NAME, STORE)
    system.run("systemctl", "enable", NAME)
    system.run("systemctl", "start", NAME)


def is_removed(system: System) -> None:
    """It stops, and leaves the configuration, the secret and the store; installed again, it goes on with them."""
    secret = system.secret
    system.apt("remove", NAME)
    assert not system.listens()
    assert not system.exists(f"/usr/lib/{NAME}")
    assert not system.exists(f"/usr/lib/systemd/system/{NAME}.service")
    assert "ShutdownTimeout = 5" in system.text(CONFIG)
    assert system.exists(f"{STORE}/slot/a.jpg")
    system.apt("install", "/package.deb")
    assert system.secret == secret
    assert system.get("slot/a.jpg").body == BODY


def is_purged(system: System) -> None:
    """Nothing stays but the store, and it says so."""
    lies(system.root, f"/var/log/{NAME}/access.log").write_text("a line\n")
    said = system.apt("purge", NAME)
    assert f"The uploaded files stay in {STORE}" in said
    assert not system.listens()
    for path in (f"/etc/{NAME}", f"/etc/logrotate.d/{NAME}", f"/var/log/{NAME}", f"/usr/lib/{NAME}"):
        assert not system.exists(path), path
    left = system.run("find", "/etc", "/usr", "/var/lib/systemd", "-name", f"*{NAME}*").split()
    assert not left, left
    assert enter(system.root, "getent", "passwd", NAME).returncode == 2
    assert enter(system.root, "getent", "group", NAME).returncode == 2
    assert lies(system.root, f"{STORE}/slot/a.jpg").read_bytes() == BODY


def takes_its_store_back(system: System) -> None:
    """Installed after a purge, it owns the store again, even if its user has another number by now."""
    number = lies(system.root, STORE).stat().st_uid
    system.run("adduser", "--system", "--quiet", "--uid", str(number), "--no-create-home", "somebody")
    system.apt("install", "/package.deb")
    assert lies(system.root, STORE).stat().st_uid != number
    assert system.get("slot/a.jpg").body == BODY
    assert system.put("slot/b.jpg").status == 201


def is_restored(system: System) -> None:
    """What was backed up while it ran is served as before by a fresh installation, in which numbers are others."""
    secret = system.secret
    system.run("tar", "--create", "--xattrs", "--file=/backup.tar", f"/etc/{NAME}", STORE)
    system.apt("purge", NAME)
    system.run("rm", "-r", STORE)
    system.run("adduser", "--system", "--quiet", "--no-create-home", "somebody-else")
    system.apt("install", "/package.deb")
    assert system.secret != secret
    system.run("systemctl", "stop", NAME)
    system.run("tar", "--extract", "--xattrs", "--file=/backup.tar", "--directory=/")
    system.run("systemctl", "start", NAME)
    assert system.secret == secret
    answer = system.get("slot/b.jpg")
    assert (answer.body, answer.headers["content-type"]) == (BODY, "image/webp")
    assert system.put("slot/c.jpg").status == 201


def has_a_unit_that_is_valid_and_tight(system: System) -> None:
    """systemd loads the unit without a complaint, and it leaves the daemon little to do harm with."""
    unit = system.root / f"{NAME}.service"
    text = system.text(f"/usr/lib/systemd/system/{NAME}.service")
    for line in (f"User={NAME}", f"Group={NAME}", f"ReadWritePaths=-{STORE}", "LogsDirectoryMode=0750"):
        assert line in text.splitlines(), line
    assert not re.search("(?m)^(DynamicUser|LoadCredential|StateDirectory)=|/opt/", text)
    unit.write_text(text.replace(f"/usr/bin/{NAME}", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, ""), verified.stderr
    security = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]
    assert subprocess.run(security, capture_output=True, check=False).returncode == 0


def main() -> None:
    network_of_its_own()
    system = System(Path(sys.argv[1]))
    steps = (
        installs,
        has_what_belongs_to_it,
        has_a_unit_that_is_valid_and_tight,
        upgrades,
        keeps_what_was_set,
        is_removed,
        is_purged,
        takes_its_store_back,
        is_restored,
    )
    for step in steps:
        step(system)
        print(f"{system.root.name}: {step.__name__.replace('_', ' ')}", flush=True)
    system.run("systemctl", "stop", NAME)
    assert "Traceback" not in system.log
    assert stat.S_IMODE(lies(system.root, STORE).stat().st_mode) == 0o750


if __name__ == "__main__":
    main()
