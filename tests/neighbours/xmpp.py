"""A real XMPP client: asks its server for a slot, uploads there, and downloads."""

from __future__ import annotations

import asyncio
import io
from urllib.parse import quote, unquote_to_bytes, urlsplit

import aiohttp
import slixmpp

from tests.support import DEADLINE, Answer, Wire

PASSWORD = "correct-horse"

AWKWARD_NAMES = {
    "spaces": "my  holiday photo .jpg",
    "umlauts": "Größenübersicht Äöß.pdf",
    "percent": "100%25 of 50%.txt",
    "plus": "a+b + c.txt",
    "hash": "#1 song #2.mp3",
    "question": "what? really?x=1&v=2.txt",
    "emoji": "party 🎉👩‍👩‍👧.png",
    "signs": "a&b=c;d,e@f$g!h'i(j)k*l~m:n[o]p{q}r|s^t`u\"v<w>x.bin",
    "decomposed": "cafe\u0301 \u65e5\u672c\u8a9e.txt",
    "long": "n" * 196 + ".txt",
}


async def _upload(user: str, port: int, name: str, body: bytes, media_type: str | None) -> tuple[str, bytes]:
    client = slixmpp.ClientXMPP(
        user,
        PASSWORD,
        plugin_config={"feature_mechanisms": {"unencrypted_plain": True, "unencrypted_scram": True}},
    )
    client.enable_plaintext = True
    client.enable_starttls = client.enable_direct_tls = False
    client.register_plugin("xep_0363")
    client.connect("127.0.0.1", port)
    try:
        await client.wait_until("session_start", timeout=DEADLINE)
        upload = client.plugin["xep_0363"].upload_file
        url = await upload(name, len(body), media_type, input_file=io.BytesIO(body), timeout=DEADLINE)
    finally:
        await client.disconnect()
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200
        return url, await response.read()


def upload(user: str, port: int, name: str, body: bytes, media_type: str | None = None) -> tuple[str, bytes]:
    """Upload with slixmpp through the XMPP server at a port.

    :returns: the GET URL of the slot, and what the client's own HTTP library downloads from it.
    """
    return asyncio.run(asyncio.wait_for(_upload(user, port, name, body, media_type), DEADLINE))


def spellings(url: str) -> tuple[str, str]:
    """A URL's request target as it was given, and with every byte of its slot's path percent-encoded."""
    target = url.removeprefix("{0.scheme}://{0.netloc}".format(urlsplit(url)))
    prefix, slot = target[: len("/upload/")], target[len("/upload/") :]
    encoded = "/".join("".join(f"%{byte:02X}" for byte in unquote_to_bytes(part)) for part in slot.split("/"))
    assert quote(unquote_to_bytes(slot)) != encoded != slot
    return target, prefix + encoded


def fetch(port: int, target: str, **headers: str) -> Answer:
    """GET over a bare socket, so that nothing changes the spelling on its way."""
    lines = [f"GET {target} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    with Wire(port) as wire:
        return wire.send("\r\n".join([*lines, "", ""]).encode()).answer()
