"""How long files stay."""

from __future__ import annotations

import attrs

from hmac_file_server.slots.slot import Attributes


@attrs.frozen
class Lifetime:
    """What a host's settings say; the end that is kept with a file counts beside them.

    :param keep_for: seconds for which a file stays from its upload on; 0 for ever.
    :param keep_large_for: the same for large ones.
    :param large_from: bytes from which on a file is large.
    """

    keep_for: float = 0.0
    keep_large_for: float = 0.0
    large_from: int = 0

    def end(self, size: int, mtime_ns: int, about: Attributes) -> float | None:
        """When a file may be served for the last time, in seconds since 1970; None if it stays. The earliest counts.

        :param size: in bytes.
        :param mtime_ns: when it was uploaded, in nanoseconds since 1970.
        :param about: what is kept with it.
        """
        ends = [] if about.end is None else [float(about.end)]
        if self.keep_for:
            ends.append(mtime_ns / 1e9 + self.keep_for)
        if self.keep_large_for and size >= self.large_from:
            ends.append(mtime_ns / 1e9 + self.keep_large_for)
        return min(ends, default=None)
