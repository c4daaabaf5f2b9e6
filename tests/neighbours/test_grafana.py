"""Grafana's dashboard in contrib, and the alerts, ask a real Prometheus for figures that working daemons have."""

from __future__ import annotations

import itertools
import json
import math
import re
import urllib.error
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from tests.neighbours.program import Program, certificate, example
from tests.neighbours.test_prometheus import CONTRIB, House
from tests.support import DEADLINE, Daemon, eventually, free_port, need, put_target

BOARD = json.loads((CONTRIB.parent / "grafana" / "hmac-file-server.json").read_text())
PANELS = BOARD["panels"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
# A host has figures of what is resumed or breaks off from the first time on.
OF_HOSTS = [(title, query) for title, query in QUERIES if "$host" in query and not re.search("resumed|broken", query)]
VARIABLES = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
HOSTS = ("one", "two")


@attrs.frozen
class Street:
    """A Prometheus, and the daemons that it watches: one with hosts and workers, one without, and one with TLS."""

    house: House
    with_hosts: Daemon
    plain: Daemon

    def work(self) -> None:
        """Uploads, downloads and refusals at each."""
        for daemon, prefix in [(self.with_hosts, f"/{host}/") for host in HOSTS] + [(self.plain, "/upload/")]:
            for name in ("a", "b"):
                # Twice, with the same bytes: a retry.
                assert daemon.request("PUT", put_target(f"slot/{name}", 5, prefix), b"hello").status == 201
            assert daemon.request("PUT", put_target("slot/a", 5, prefix), b"jello").status == 409
            assert daemon.request("GET", f"{prefix}slot/a").body == b"hello"
            assert daemon.request("GET", f"{prefix}none").status == 404
            assert daemon.request("PUT", f"{prefix}slot/c?v={'0' * 64}", b"x").status == 403

    def found(self, query: str, host: str = ".*", instance: str = ".*") -> list[dict[str, str]]:
        """The labels of each series that a panel's query gives a number for."""
        values = {"$__rate_interval": "10s", "$host": host, "$instance": instance}
        for name, value in values.items():
            query = query.replace(name, value)
        found = self.house.ask("query", query=query)["result"]
        return [series["metric"] for series in found if math.isfinite(float(series["value"][1]))]


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    need("prometheus", "openssl")
    folder = tmp_path_factory.mktemp("grafana")
    folders = [folder / name for name in ("hosts", "plain", "tls")]
    for each in folders:
        each.mkdir()
    tables = [{"Name": host, "UploadSubDir": f"{host}/", "StoreDir": str(folders[0] / host)} for host in HOSTS]
    with_hosts = Daemon(folders[0], hosts=tables, Workers=2, StoreDir=None)
    plain = Daemon(folders[1])
    chain, key = certificate(folders[2], "localhost")
    endpoint = f"ssl:{free_port()}:interface=127.0.0.1:privateKey={key}:certKey={chain}"
    tls = Daemon(folders[2], ListenPort=endpoint)
    daemons = [with_hosts, plain, tls]
    port = free_port()
    targets = ", ".join(f'"127.0.0.1:{daemon.metrics_port}"' for daemon in daemons)
    config = example(
        "prometheus/prometheus.yml",
        ("rule_files:\n", "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\n\nrule_files:\n"),
        ('"127.0.0.1:9091"', targets),
    )
    (folder / "prometheus.yml").write_text(config)
    (folder / "rules.yml").write_bytes((CONTRIB / "rules.yml").read_bytes())
    try:
        with_hosts.start()
        plain.start()
        tls.launch()
        options = ["--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        program = Program(folder, ["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"])
        try:
            made = Street(House(plain, port, program.listens(port)), with_hosts, plain)
            eventually(lambda: _all_are_seen(made), deadline=3 * DEADLINE, what="each daemon has been scraped")
            yield made
        finally:
            program.end()
    finally:
        for daemon in daemons:
            daemon.stop()


def _all_are_seen(street: Street) -> bool:
    try:
        return len(street.house.ask("query", query='up{job="hmac-file-server"} == 1')["result"]) == 3
    except urllib.error.HTTPError:  # It listens before it is ready.
        return False


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[f"{title}-{n}" for n, (title, _) in enumerate(QUERIES)])
def test_every_panel_has_data(street: Street, title: str, query: str) -> None:
    """While daemons work each query of each panel gives numbers, and those of one daemon alone if it is chosen."""

    def found() -> list[dict[str, str]]:
        street.work()
        return street.found(query)

    series = eventually(found, what=f"{title}: {query}")
    chosen = series[0]["instance"]

    def of_one() -> list[dict[str, str]]:
        street.work()
        return street.found(query, instance=re.escape(chosen).replace("\\", "\\\\"))

    assert {each["instance"] for each in eventually(of_one)} == {chosen}


@pytest.mark.parametrize(("title", "query"), OF_HOSTS, ids=[f"{title}-{n}" for n, (title, _) in enumerate(OF_HOSTS)])
def test_panels_tell_hosts_apart(street: Street, title: str, query: str) -> None:
    """Where there are several hosts each has a line of its own, and one alone if it is chosen."""

    def found() -> bool:
        street.work()
        return {each.get("host") for each in street.found(query)} >= {"one", "two", None}

    eventually(found, what=f"{title}: {query}")
    assert {each["host"] for each in street.found(query, host="one|two")} == {"one", "two"}
    assert {each["host"] for each in street.found(query, host="two")} == {"two"}


def test_duration_is_one_of_uploads(street: Street) -> None:
    """The median is a duration that an upload had, not a bucket's end that nothing reached."""
    [median, slowest] = [query for title, query in QUERIES if title == "Duration of uploads"]

    def values(query: str) -> list[float]:
        query = query.replace("$__rate_interval", "10s").replace("$host", ".*").replace("$instance", ".*")
        found = street.house.ask("query", query=query)["result"]
        return [float(each["value"][1]) for each in found if math.isfinite(float(each["value"][1]))]

    eventually(lambda: (street.work(), values(median))[1])
    assert 0 < min(values(median)) <= max(values(slowest))


@pytest.mark.parametrize("name", ["instance", "host"])
def test_variables(street: Street, name: str) -> None:
    """The lists to choose from have all daemons and all hosts, and All takes also daemons without hosts."""
    variable = VARIABLES[name]
    assert (variable["includeAll"], variable["multi"], variable["allValue"]) == (True, True, ".*")
    match = re.fullmatch(rf"label_values\((.+), {name}\)", variable["query"]["query"])
    assert match is not None
    found = {labels[name] for labels in street.found(match[1]) if name in labels}
    everywhere = {labels["instance"] for labels in street.found('up{job="hmac-file-server"}')}
    assert found == (everywhere if name == "instance" else set(HOSTS))


def test_the_board() -> None:
    """It belongs to no data source of anybody's, panels lie beside each other, and all its variables are its own."""
    places = [(panel["gridPos"], panel["title"]) for panel in PANELS]
    assert len({title for _, title in places}) == len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert all(place["x"] + place["w"] <= 24 for place, _ in places)
    for (one, name), (two, other) in itertools.combinations(places, 2):
        apart = one["x"] + one["w"] <= two["x"] or two["x"] + two["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= two["y"] or two["y"] + two["h"] <= one["y"], (name, other)
    sources = [part["datasource"] for panel in PANELS for part in (panel, *panel["targets"])]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([PANELS, BOARD["templating"]])))
    assert used - {"__rate_interval", "__all"} == set(VARIABLES)
    assert BOARD["id"] is None


def rules(street: Street) -> list[dict[str, Any]]:
    return [rule for group in street.house.ask("rules")["groups"] for rule in group["rules"]]


def test_rules_know_the_figures(street: Street) -> None:
    """Each rule has been evaluated without a fault, and every figure that one asks for is there."""
    eventually(lambda: {rule["health"] for rule in rules(street)} == {"ok"}, what="all rules have been evaluated")
    text = (CONTRIB / "rules.yml").read_text()
    assert len(rules(street)) == len(re.findall(r"^ +- (?:alert|record): ", text, re.MULTILINE))
    asked = {name for rule in rules(street) for name in re.findall(r"\bhmac_file_server[_:][\w:]+", rule["query"])}
    assert len(asked) >= 10

    def missing() -> set[str]:
        street.work()
        return asked - set(street.house.ask("label/__name__/values")) - {"hmac_file_server:refusals:rate1d"}

    eventually(lambda: not missing(), what="there is each figure")
    assert "hmac_file_server:refusals:rate1d" in {rule["name"] for rule in rules(street)}


def test_no_alert_of_daemons_that_are_well(street: Street) -> None:
    """What clients do wrong raises nothing."""
    street.work()
    eventually(lambda: {rule["health"] for rule in rules(street)} == {"ok"})
    firing = [rule["name"] for rule in rules(street) if rule.get("state") in ("firing", "pending")]
    # The disk of whoever tests may be nearly full.
    assert set(firing) <= {"HmacFileServerStoreNearlyFull", "HmacFileServerStoreFillsUp"}
