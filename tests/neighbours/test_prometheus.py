"""Prometheus reads the daemon's figures, and the rules in contrib make alerts of them."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.neighbours.program import Program, example, run
from tests.support import DEADLINE, Daemon, Wire, eventually, free_port, need, put_target

CONTRIB = Path(__file__).parents[2] / "contrib" / "prometheus"

# No file of the daemon's grows beyond this, its log included: a longer upload fails as on a broken disk.
LIMIT = 1 << 20

ERRORS = ("conflict", "storage", "broken_off")
REFUSALS = ("signature", "path", "too_large", "method", "not_found", "range")


def make_daemon_with_trouble(folder: Path, **settings: Any) -> Daemon:
    return Daemon(folder, prefix=["prlimit", f"--fsize={LIMIT}", "--"], **settings)


def cause_every_count(daemon: Daemon) -> None:
    """Uploads, downloads, refusals before the body, failures after it, and a client that leaves."""
    assert daemon.put("slot/a.txt", b"hello").status == 201
    assert daemon.put("slot/a.txt", b"other").status == 409
    assert daemon.put("slot/b.bin", b"x" * (LIMIT + 1)).status == 413
    assert daemon.put("slot/c.bin", b"x" * (4 * LIMIT)).status == 413
    assert daemon.put("slot/.hmac-file-server", b"x").status == 400
    assert daemon.request("PUT", f"/upload/slot/d.bin?v={'0' * 64}", b"x").status == 403
    assert daemon.request("POST", "/upload/slot/e.bin", b"x").status == 405
    assert daemon.get("slot/a.txt").body == b"hello"
    assert daemon.get("slot/missing.txt").status == 404
    assert daemon.get("slot/a.txt", Range="bytes=9-").status == 416
    with daemon.wire() as wire:
        wire.send(f"PUT {put_target('slot/f.bin', 9)} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf".encode())
        eventually(lambda: daemon.running() == 1)
    # A client may have its answer a moment before it is counted.
    for reason in ERRORS:
        eventually(
            lambda reason=reason: daemon.metric("hmac_file_server_upload_errors_total", f'{{reason="{reason}"}}') == 1
        )
    for reason in REFUSALS:
        eventually(
            lambda reason=reason: daemon.metric("hmac_file_server_refusals_total", f'{{reason="{reason}"}}') == 1
        )


@pytest.fixture
def exposed(tmp_path: Path) -> Iterator[str]:
    """What /metrics says when everything that is counted has happened."""
    need("prlimit")
    daemon = make_daemon_with_trouble(tmp_path, MaxUploadSize=2 * LIMIT)
    try:
        cause_every_count(daemon.start())
        with Wire(daemon.metrics_port) as wire:
            yield wire.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").answer().body.decode()
    finally:
        daemon.stop()


def test_figures(exposed: str) -> None:
    """promtool finds nothing to say about /metrics after uploads, refusals and errors."""
    need("promtool")
    for reason in ERRORS:
        assert f'hmac_file_server_upload_errors_total{{reason="{reason}"}} 1.0\n' in exposed
    for reason in REFUSALS:
        assert f'hmac_file_server_refusals_total{{reason="{reason}"}} 1.0\n' in exposed
    assert run("promtool", "check", "metrics", stdin=exposed) == ""


@pytest.mark.parametrize(
    "command",
    [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")],
    ids=lambda command: "-".join(command[:2]),
)
def test_examples(command: tuple[str, ...]) -> None:
    """The scrape configuration is valid, and the rules fire when their tests say."""
    need("promtool")
    assert "SUCCESS" in run("promtool", *command, cwd=CONTRIB)


@attrs.frozen
class House:
    """A daemon, and the Prometheus that watches it."""

    daemon: Daemon
    port: int
    program: Program

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=DEADLINE) as response:
            return json.load(response)["data"]

    def value(self, query: str) -> float | None:
        """The one value of a query's result; None while there is no result."""
        found = self.ask("query", query=query)["result"]
        assert len(found) <= 1
        return float(found[0]["value"][1]) if found else None

    def sees_the_daemon(self) -> bool:
        try:
            return self.value('up{job="hmac-file-server"}') == 1
        except urllib.error.HTTPError:  # It listens before it is ready.
            return False

    def firing(self) -> dict[str, str]:
        """Alerts that fire, and the instance of each."""
        alerts = self.ask("alerts")["alerts"]
        return {a["labels"]["alertname"]: a["labels"]["instance"] for a in alerts if a["state"] == "firing"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One for all tests here, for Prometheus looks for its targets only every five seconds."""
    need("prometheus", "prlimit")
    folder = tmp_path_factory.mktemp("prometheus")
    daemon = make_daemon_with_trouble(folder)
    port = free_port()
    # Seconds for minutes, and nobody waits for an alert to last.
    config = example(
        "prometheus/prometheus.yml",
        ("rule_files:\n", "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\n\nrule_files:\n"),
        ('"127.0.0.1:9091"', f'"127.0.0.1:{daemon.metrics_port}"'),
    )
    (folder / "prometheus.yml").write_text(config)
    (folder / "rules.yml").write_text(re.sub(r"for: \d+[mh]", "for: 0s", (CONTRIB / "rules.yml").read_text()))
    try:
        daemon.start()
        options = [
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        program = Program(folder, ["prometheus", *options])
        try:
            house = House(daemon, port, program.listens(port))
            eventually(house.sees_the_daemon, deadline=3 * DEADLINE, what="the first sample")
            yield house
        finally:
            program.end()
    finally:
        daemon.stop()


def test_uploads_are_counted(house: House) -> None:
    """Prometheus sees an upload after the next scrape, and the rules have all been taken."""
    uploads = 'hmac_file_server_uploads_total{job="hmac-file-server"}'
    before = house.value(uploads)
    assert before is not None
    for number in range(3):
        assert house.daemon.put(f"counted/{number}.txt", b"hello").status == 201
    eventually(lambda: house.value(uploads) == before + 3, what="the uploads are counted")


def test_rules_are_evaluated(house: House) -> None:
    """Prometheus finds no fault in any rule when it evaluates them on real figures."""
    eventually(
        lambda: {rule["health"] for group in house.ask("rules")["groups"] for rule in group["rules"]} == {"ok"},
        what="all rules have been evaluated",
    )


def test_uploads_that_fail_raise_an_alert(house: House) -> None:
    """A disk that takes no long file is told of, and the daemon is not said to be down."""
    failures = 'hmac_file_server_upload_errors_total{reason="storage"}'
    # A rate needs two samples, and there is none before the first failure.
    for number in range(2):
        assert house.daemon.put(f"fails/{number}.bin", b"x" * (LIMIT + 1)).status == 413
        eventually(lambda: house.value(failures) == number + 1, what="the failure is counted")  # noqa: B023
    eventually(lambda: house.firing().get("HmacFileServerUploadsFail"), what="the alert fires")
    assert house.firing()["HmacFileServerUploadsFail"] == f"127.0.0.1:{house.daemon.metrics_port}"
    assert "HmacFileServerDown" not in house.firing()


def test_daemon_that_is_gone_raises_an_alert(house: House) -> None:
    """A daemon that has ended is told of until it is back."""
    house.daemon.stop()
    eventually(lambda: "HmacFileServerDown" in house.firing(), what="the alert fires")
    house.daemon.start()
    eventually(lambda: "HmacFileServerDown" not in house.firing(), what="the alert ends")
