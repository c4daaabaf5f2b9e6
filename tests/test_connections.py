from __future__ import annotations

import ipaddress

import pytest

from hmac_file_server.web.client import Peer, Proxies, one_user
from hmac_file_server.web.connections import Connections, Limits
from hmac_file_server.web.errors import HTTPError

TRUSTED = [ipaddress.ip_network("10.0.0.0/8")]


@pytest.mark.parametrize(
    ("address", "user"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("unix", "unix"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("fe80::1", "fe80::1"),
        ("::1", "::1"),
        ("64:ff9b::c000:207", "64:ff9b::c000:207"),
    ],
)
def test_who_counts_as_one(address: str, user: str) -> None:
    """A user of IPv6 has a /64; where a /64 holds many users, each address is one."""
    assert one_user(address) == user


@pytest.mark.parametrize("trusted", [False, True])
def test_one_user_of_many_addresses(trusted: bool) -> None:
    """No number of addresses in its /64 lets one user hold more; its neighbours are not counted with it."""
    connections = Connections(Limits(per_address=3, proxies=Proxies(TRUSTED)))

    def enter(address: str) -> str:
        return connections.arrived(address) if trusted else connections.connected(Peer(address, trusted=False))

    users = [enter(f"2001:db8::{number}") for number in range(3)]
    with pytest.raises(HTTPError):
        enter("2001:db8::ffff:9")
    users.append(enter("2001:db8:0:1::9"))
    for user in users:
        connections.left(user)
    assert not connections._by_user
