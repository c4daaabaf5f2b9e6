"""The oldest files of a store that is too large, found with little memory by walking through it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from hmac_file_server.stores.local.walk import Entry

_BUCKETS = 4096
_MOST_AT_HAND = 20_000

Walk = Callable[[], Iterator[Entry]]


def oldest(walk: Walk, limit: int, first: int, last: int, most: int = _MOST_AT_HAND) -> Iterator[Entry]:
    """The oldest files, so many that the sizes of the others are not above a limit.

    Each walk counts the bytes of each span of time, until so few files are in the span in which the last one lies that
    they can be put in order. It counts all anew: others may remove files meanwhile, and none is to go for that.

    :param walk: begins a walk through all files.
    :param limit: bytes.
    :param first: when the oldest file was uploaded, in nanoseconds since 1970.
    :param last: when the newest was.
    :param most: how many files may be put in order.
    """
    low, high = first, last + 1
    while True:
        found = _narrower(walk, limit, low, high)
        if found is None:
            return
        low, high, need, files = found
        if files <= most or high - low == 1:
            break
    among = []
    for entry in walk():
        if entry.mtime_ns < low:
            yield entry
        elif entry.mtime_ns < high:
            among.append(entry)
    for entry in sorted(among, key=lambda entry: entry.mtime_ns):
        if need <= 0:
            return
        need -= entry.size
        yield entry


def _narrower(walk: Walk, limit: int, low: int, high: int) -> tuple[int, int, int, int] | None:
    """The part of a span of time in which the last of the files lies that have to go.

    :returns: its begin and end, how many bytes of it have to go, and how many files it has; None if there is none.
    """
    width = max(1, -(-(high - low) // _BUCKETS))
    sizes, files = Counter[int](), Counter[int]()
    need = -limit
    for entry in walk():
        if entry.mtime_ns >= low:
            need += entry.size
            if entry.mtime_ns < high:
                bucket = (entry.mtime_ns - low) // width
                sizes[bucket] += entry.size
                files[bucket] += 1
    for bucket in sorted(sizes) if need > 0 else ():
        if need <= sizes[bucket]:
            begin = low + bucket * width
            return begin, min(high, begin + width), need, files[bucket]
        need -= sizes[bucket]
    return None
