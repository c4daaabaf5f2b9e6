"""xmpp-http-upload (horazont's): below DATA_ROOT, at the path of a file's URL, ``<name>.data`` and ``<name>.meta``.

The second is written when the first is whole. It is JSON, and has the headers that the file is served with.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator

from hmac_file_server import media_types
from hmac_file_server.importing.source import Found, Names, Refused, Skipped, Source
from hmac_file_server.slots.slot import Attributes
from hmac_file_server.stores.faults import explain

_DATA, _META = b".data", b".meta"
_DEEPEST = 32
_LONGEST_META = 1 << 16


def xmpp_http_upload(source: Source, folder: Names = ()) -> Iterator[Found | Skipped]:
    """What there is.

    :param folder: where to look, with all folders in it.
    :raises OSError: if the outermost folder can not be read.
    """
    kinds = dict(source.listed(folder))
    for name, kind in kinds.items():
        names = (*folder, name)
        if kind == stat.S_IFDIR:
            yield from _in(source, names)
        elif name.endswith(_DATA):
            yield _found(source, names)
        elif kind == stat.S_IFLNK and not name.endswith(_META):
            yield Skipped(b"/".join(names), "it is a symbolic link, which is not followed")


def _in(source: Source, names: Names) -> Iterator[Found | Skipped]:
    try:
        if len(names) > _DEEPEST:
            raise Refused("it lies too deep")
        yield from xmpp_http_upload(source, names)
    except (OSError, Refused) as error:
        yield Skipped(b"/".join(names), explain(error))


def _found(source: Source, names: Names) -> Found | Skipped:
    stem = names[-1].removesuffix(_DATA)
    try:
        meta = json.loads(source.read((*names[:-1], stem + _META), _LONGEST_META))
        media_type = meta["headers"]["Content-Type"].encode("utf-8")
    except FileNotFoundError:
        return Skipped(b"/".join(names), "it has no .meta beside it: its upload never came to its end")
    except (Refused, OSError) as error:
        return Skipped(b"/".join(names), f"its .meta: {explain(error)}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Skipped(b"/".join(names), "its .meta is torn, or names no type")
    return Found((*names[:-1], stem), names, Attributes(media_types.parse(media_type) if media_type else None))
