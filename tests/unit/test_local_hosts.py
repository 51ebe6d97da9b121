"""Which of our addresses was asked, from what the socket says of a datagram."""

from __future__ import annotations

import socket
import struct
from collections.abc import Hashable

import pytest

from coapgw.net.udp import local_hosts


def in_pktinfo(local: str, destination: str = "0.0.0.0") -> bytes:
    return struct.pack("=I", 2) + socket.inet_aton(local) + socket.inet_aton(destination)


def in6_pktinfo(local: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, local) + struct.pack("=I", 2)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
@pytest.mark.parametrize(
    ("address", "local"),
    [
        (("10.0.0.1", 5000, in_pktinfo("192.0.2.10", "224.0.1.187")), "192.0.2.10"),
        (("2001:db8::2", 5000, 0, 0, in6_pktinfo("2001:db8::1")), "2001:db8::1"),
        (("::ffff:10.0.0.1", 5000, 0, 0, in6_pktinfo("::ffff:192.0.2.10")), "192.0.2.10"),
        (("fe80::2%eth0", 5000, 0, 2, in6_pktinfo("fe80::1")), "fe80::1"),
        (("10.0.0.1", 5000, b""), ""),
        (("10.0.0.1", 5000, b"odd"), ""),
        (("10.0.0.1", 5000), ""),
        (None, ""),
    ],
)
def test_wildcard_socket_says_it_for_every_datagram(host: str, address: Hashable, local: str) -> None:
    assert local_hosts(host)(address) == local


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.10", "192.0.2.10"),
    ],
)
def test_socket_with_an_address_has_no_other(host: str, local: str) -> None:
    assert local_hosts(host)(("10.0.0.1", 5000)) == local
