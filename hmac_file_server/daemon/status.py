"""What runs and what went wrong of late, as the status page tells it; of several workers, all of them together."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence

import attrs

from hmac_file_server.config import Config
from hmac_file_server.files.upload import Standing, Upload
from hmac_file_server.log import MOST_TROUBLES, Recent, Trouble

_MOST_UPLOADS = 20
_LONGEST_OWNER = 200


@attrs.frozen
class Running:
    """An upload that runs.

    :param host: whose it is, as the configuration names it.
    """

    host: str
    standing: Standing


@attrs.frozen
class Status:
    """What one process, or all together, have to tell.

    :param uploads: those that run, the oldest first; of many only so many.
    :param troubles: the last of them, the oldest first.
    """

    uploads: Sequence[Running] = ()
    troubles: Sequence[Trouble] = ()

    @classmethod
    def of(cls, hosts: Iterable[tuple[str, Mapping[Upload, None]]], recent: Recent) -> Status:
        """What this process has to tell.

        :param hosts: each by its name, with the uploads that run.
        """
        running: list[Running] = []
        for name, active in hosts:
            # They are in the order in which they began.
            known = (standing for upload in active if (standing := upload.standing()) is not None)
            running += (Running(name, _cut(standing)) for standing in itertools.islice(known, _MOST_UPLOADS))
        return cls.together([cls(running, recent.troubles)])

    @classmethod
    def together(cls, each: Iterable[Status]) -> Status:
        """What several have to tell."""
        uploads: list[Running] = []
        troubles: dict[tuple[str, str], Trouble] = {}
        for status in each:
            uploads += status.uploads
            for trouble in status.troubles:
                alike = (trouble.level, trouble.text)
                troubles[alike] = _both(trouble, troubles[alike]) if alike in troubles else trouble
        uploads.sort(key=lambda running: running.standing.begun)
        last = sorted(troubles.values(), key=lambda trouble: trouble.time)[-MOST_TROUBLES:]
        return cls(uploads[:_MOST_UPLOADS], last)

    def at_rest(self) -> Status:
        """The same when nothing runs any more."""
        return attrs.evolve(self, uploads=())

    def encode(self) -> bytes:
        """For another process; some 60 KiB at the most."""
        uploads = [(running.host, *attrs.astuple(running.standing)) for running in self.uploads]
        return zlib.compress(json.dumps([uploads, [attrs.astuple(each) for each in self.troubles]]).encode("ascii"))

    @classmethod
    def decode(cls, data: bytes) -> Status:
        """What :meth:`encode` has made."""
        uploads, troubles = json.loads(zlib.decompress(data))
        running = [Running(host, Standing(*standing)) for host, *standing in uploads]
        return cls(running, [Trouble(*each) for each in troubles])


IDLE = Status()


@attrs.frozen
class WorkerStatus:
    """How one of several workers does.

    :param late: whether it runs and does not answer.
    :param restarts: how often it had to be started again.
    :param problem: why nothing gets done in it; empty if it does.
    """

    number: int
    runs: bool
    late: bool
    restarts: int
    problem: str


@attrs.frozen
class Overview:
    """What the daemon knows of itself beside its figures.

    :param log_problem: why the log is not where it should be; empty if it is.
    :param workers: if there are several.
    """

    config: Config
    status: Status
    log_problem: str
    workers: Sequence[WorkerStatus] = ()


def _both(one: Trouble, other: Trouble) -> Trouble:
    """Two that say the same as one."""
    last = one if one.time >= other.time else other
    return attrs.evolve(last, count=one.count + other.count)


def _cut(standing: Standing) -> Standing:
    return attrs.evolve(standing, owner=standing.owner[:_LONGEST_OWNER])
