"""Uploads as any XMPP client makes them."""

from __future__ import annotations

from urllib.parse import quote

from tests.support import Daemon, v, v2


def upload(daemon: Daemon, path: str, body: bytes, media_type: str = "") -> str:
    """Put a file; its URL."""
    if media_type:
        target = f"/upload/{quote(path)}?v2={v2(path, len(body), media_type)}"
        answer = daemon.request("PUT", target, body, Content_Type=media_type)
    else:
        answer = daemon.request("PUT", f"/upload/{quote(path)}?v={v(path, len(body))}", body)
    assert answer.status == 201
    return f"http://127.0.0.1:{daemon.port}/upload/{quote(path)}"
