"""The command: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import fnmatch
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import machine, report
from benchmarks.cases import QUICK, Case, Scale, all_cases
from benchmarks.disk import Disk
from benchmarks.load import Address, LoadError, Result
from benchmarks.report import REQUESTS, UNITS, Sample, Unit
from benchmarks.servers import Daemon, Nginx, Server, Started, Target

RESULTS = Path(__file__).with_name("results.rst")

_EXAMPLE_SECRET = "orbit7-shadow23-breeze91-echo17"
_IDLE = 0.1
_LONGEST_WAIT = 5.0

Peer = Server | Disk


class Bench:
    """The servers, and the runs so far.

    :param folder: for all that they write.
    :param scale: how much of everything.
    :param patience: seconds to wait, in all, for the machine to be idle before a run.
    """

    def __init__(self, folder: Path, scale: Scale, secret: str, patience: float = 60.0) -> None:
        self._folder = folder
        self._scale = scale
        self._secret = secret
        self._patience = patience
        self._peers: list[tuple[Peer, Callable[[Case], bool]]] = []
        most = 2 * max(scale.large, 8 * scale.part)
        self._warm = machine.WarmMemory(min(most, machine.available_memory() // 4))
        self.failures: list[str] = []
        self.samples: dict[tuple[Case, str], list[Sample]] = {}

    def add(self, peer: Peer, flushed: Collection[bool], units: Collection[Unit] = UNITS) -> None:
        """Let somebody take part.

        :param flushed: in cases with this value of ``flushed``.
        :param units: in which these are counted.
        """
        self._peers.append((peer, lambda case: case.flushed in flushed and case.unit in units))

    def add_ours(self, cases: Sequence[Case], settings: dict[str, Any]) -> None:
        """Start the daemon and its peers, as far as the cases need them.

        :param settings: configuration keys of the daemon.
        """
        started: list[tuple[Started, bool, Collection[Unit]]] = []
        for flushed in sorted({case.flushed for case in cases}):
            own = {"Fsync": flushed, **settings}
            started.append((Daemon(self._folder, self._secret, own), flushed, UNITS))
            if "Workers" not in settings:
                workers = {**own, "Workers": len(os.sched_getaffinity(0))}
                started.append((Daemon(self._folder, self._secret, workers), flushed, [REQUESTS]))
            if flushed:
                self.add(Disk(self._folder / "disk"), [True])
            elif Nginx.installed():
                started.append((Nginx(self._folder, self._secret), False, UNITS))
            else:
                print("nginx is not installed and takes no part", file=sys.stderr)
        for server, flushed, units in started:
            self.add(server, [flushed], units)
            server.start()
        # The daemon first: the others are measured against it.
        self._peers.sort(key=lambda one: not isinstance(one[0], Daemon))

    def round(self, cases: Iterable[Case], number: int) -> None:
        """Run every case once on everybody, each time in another order."""
        for case in cases:
            peers = [peer for peer, takes_part in self._peers if takes_part(case)]
            if case.own or (case.fresh and number):
                peers = [peer for peer in peers if isinstance(peer, Started)]
            for index in range(len(peers)):
                self._run(case, peers[(index + number) % len(peers)])

    def _run(self, case: Case, peer: Peer) -> None:
        try:
            self._measure(case, peer)
        except LoadError as error:
            self.failures.append(f"{case.title}, {peer.name}: {error}")
            print(self.failures[-1], file=sys.stderr)

    def _measure(self, case: Case, peer: Peer) -> None:
        case.prepare(peer)
        self._warm.fill()
        targets = list(peer.roots()) if isinstance(peer, Target) else []
        self._patience -= machine.wait_until_idle(targets, _IDLE, min(self._patience, _LONGEST_WAIT))
        others, before = machine.Others(targets), os.times()
        with self._warm:
            result = case.run(peer)
        share, after = others.share(), os.times()
        client = (sum(after[:4]) - sum(before[:4])) / result.seconds
        sample = Sample(result, share, client if case.unit.has_client and isinstance(peer, Server) else None)
        self._empty(peer, result)
        self.samples.setdefault((case, peer.name), []).append(sample)
        value = report.number(case.unit.value(result))
        print(f"{case.title:28} {peer.name:20} {value:>8} {case.unit.name:10} others {share:.0%}", flush=True)

    def _empty(self, peer: Peer, result: Result) -> None:
        if peer.store is not None and peer.store.empty() < result.stored:
            raise LoadError("it has less in its folder than it said it had stored")
        # The memory of the files that were emptied is warm now, and soon will not be.
        self._warm.fill()

    def tables(self) -> str:
        """What came out, in the cases' order."""
        rows = []
        for case in dict.fromkeys(case for case, _ in self.samples):
            for name in dict.fromkeys(peer.name for peer, _ in self._peers):
                if (samples := self.samples.get((case, name))) is not None:
                    rows.append((case.unit, (case.title, name, report.summary(case.unit, samples))))
        return report.tables(rows)

    def close(self) -> None:
        """Stop what was started, and remove what was stored."""
        self._warm.close()
        for peer, _ in self._peers:
            peer.stop()
            if peer.store is not None:
                peer.store.close()


def _text(bench: Bench, folder: Path, rounds: int, seconds: float, quick: bool) -> str:
    title = "Results of make bench"
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z")
    programs = [f"hmac-file-server {version('hmac-file-server')}", f"Python {platform.python_version()}"]
    programs += [f"Twisted {version('twisted')}"] + ([f"nginx {Nginx.version()}"] if Nginx.installed() else [])
    programs += [_wrk_version()]
    lines = [
        "=" * len(title),
        title,
        "=" * len(title),
        "",
        f"{when}, {rounds} {'short ' if quick else ''}rounds in {seconds:.0f} s.",
        "",
        f"Machine: {machine.shape(folder)}.",
        "",
        f"Programs: {', '.join(programs)}.",
        "",
        f"Medians of the runs; one in which others used over {report.NOISY:.0%} of the machine does not count",
        "if three are left without it. *ratio* is hmac-file-server against the row: over 1 it does more, or",
        "takes longer or more memory. *CPU* and *peak* are the server's, all its processes together.",
        "",
        "hmac-file-server checks each signature and writes its access log to a file. nginx checks and logs",
        "nothing and flushes nothing to the disk. The disk loop is no server: open, write, fsync, link, and",
        "fsync of one folder that is there already, in as many threads as the server has connections.",
        "",
        bench.tables(),
    ]
    lines += [f"* Failed: {failure}" for failure in dict.fromkeys(bench.failures)]
    return "\n".join(lines)


def _wrk_version() -> str:
    first = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout.partition("[")[0]
    return first.strip()


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measure the daemon beside its peers.")
    parser.add_argument("--case", action="append", metavar="NAME", help="only this one; * and ? match, see --list")
    parser.add_argument("--list", action="store_true", help="name all cases")
    parser.add_argument("--quick", action="store_true", help="small files, short runs, one round")
    parser.add_argument("--rounds", type=int, metavar="N", help="runs of each case (5)")
    parser.add_argument(
        "--minutes", type=float, default=10.0, metavar="N", help="begin no round after so many (%(default)s)"
    )
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="NAME=URL[,FOLDER]",
        help="compare a running server, too; its folder, empty at first, is emptied after each run",
    )
    parser.add_argument("--secret", default=_EXAMPLE_SECRET, help="that slots are signed with")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the daemon, as in config.toml"
    )
    parser.add_argument("--store", type=Path, default=Path("var/bench"), metavar="FOLDER", help="where files go")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="for the tables (results.rst, unless --quick or --case)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit status."""
    options = _arguments(arguments)
    scale = QUICK if options.quick else Scale()
    wanted = options.case or ["*"]
    cases = [case for case in all_cases(scale) if any(fnmatch.fnmatch(case.name, name) for name in wanted)]
    if options.list or not cases:
        print("\n".join(f"{case.name:20} {case.title}" for case in all_cases(scale)))
        return 0 if options.list else 1
    if shutil.which("wrk") is None:
        print("wrk is not installed", file=sys.stderr)
        return 1
    rounds = options.rounds or (1 if options.quick else 5)
    output = options.output or (None if options.quick or options.case else RESULTS)
    # Stalled uploads hold many sockets.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    options.store.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=options.store)).resolve()
    bench = Bench(folder, scale, options.secret)
    began = time.monotonic()
    try:
        for target in options.target:
            bench.add(_target(target, options.secret, folder), [False, True])
        bench.add_ours(cases, _settings(options.set))
        done = 0
        while done < rounds and (not done or time.monotonic() - began < options.minutes * 60):
            bench.round(cases, done)
            done += 1
        text = _text(bench, folder, done, time.monotonic() - began, options.quick)
        print(f"\n{text}")
        if output is not None:
            output.write_text(text)
    except LoadError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        bench.close()
        shutil.rmtree(folder)
    return 1 if bench.failures else 0


def _target(text: str, secret: str, folder: Path) -> Target:
    name, _, place = text.partition("=")
    url, _, store = place.partition(",")
    return Target(name, Address(url, secret), folder, Path(store) if store else None)


def _settings(texts: Iterable[str]) -> dict[str, Any]:
    import tomllib

    return tomllib.loads("\n".join(texts))


if __name__ == "__main__":
    sys.exit(main())
