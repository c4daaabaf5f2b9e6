"""Which names a file system can hold, found by trying: what it says of itself is not always true."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import attrs

from hmac_file_server.slots.path import MAX_NAME, RESERVED
from hmac_file_server.stores.errors import BadName
from hmac_file_server.stores.faults import refuses_name

_SUSPECTED = '\\:*?"<>|\N{GRINNING FACE}'
_SUSPECTED_LAST = ". "


@attrs.frozen
class Names:
    """The names that can be.

    :param longest: bytes in one of them.
    :param refused: characters that none may have.
    :param refused_last: characters that none may end with.
    """

    longest: int = MAX_NAME
    refused: str = ""
    refused_last: str = ""

    @classmethod
    def of(cls, folder: int) -> Names:
        """Those that can be in a folder.

        :param folder: its descriptor; the names are made there and removed again.
        """
        if _takes(folder, RESERVED.ljust(MAX_NAME, b"-")):
            longest = MAX_NAME
        else:
            # The longest is not below the first figure and is below the second.
            longest, too_long = len(RESERVED), MAX_NAME
            while too_long - longest > 1:
                middle = (longest + too_long) // 2
                if _takes(folder, RESERVED.ljust(middle, b"-")):
                    longest = middle
                else:
                    too_long = middle
        refused = "".join(c for c in _SUSPECTED if not _takes(folder, RESERVED + f"-{c}-".encode()))
        refused_last = "".join(c for c in _SUSPECTED_LAST if not _takes(folder, RESERVED + f"-{c}".encode()))
        return cls(longest, refused, refused_last)

    def check(self, names: Sequence[bytes]) -> None:
        """:raises BadName: if one of them can not be."""
        if self == _ALL:
            return
        for name in names:
            if len(name) > self.longest:
                raise BadName(f"the file system takes names of {self.longest} bytes, one of these has {len(name)}")
            text = name.decode("utf-8")
            bad = next((c for c in text if c in self.refused), "") or (
                text[-1] if text[-1] in self.refused_last else ""
            )
            if bad:
                raise BadName(f"the file system takes no name with {bad!r} there")


_ALL = Names()


def _takes(folder: int, name: bytes) -> bool:
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:  # Another daemon is trying it too.
        return True
    except OSError as error:
        return not refuses_name(error)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=folder)
    return True
