"""Where a request comes from: an address, or nothing."""

from __future__ import annotations

import ipaddress

import pytest
from starlette.datastructures import Headers

from indexer.errors import CbirError
from retrieval.service.addresses import client, origin, parsed
from retrieval.service.settings import Settings
from retrieval.service.strangers import RATE, REMEMBERED, Strangers

PROXIES = frozenset(map(ipaddress.ip_address, ("127.0.0.1", "10.0.0.1")))


@pytest.mark.parametrize(
    ("peer", "said", "expected"),
    [
        ("192.0.2.7", None, "192.0.2.7"),
        ("192.0.2.7", "198.51.100.1", "192.0.2.7"),  # nobody believes a stranger
        ("127.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "1.1.1.1, 198.51.100.1", "198.51.100.1"),  # what the client wrote is not read
        ("127.0.0.1", "1.1.1.1, 198.51.100.1, 10.0.0.1", "198.51.100.1"),
        ("127.0.0.1", "any text\u00e4 <script>", "127.0.0.1"),
        ("127.0.0.1", "x" * 60_000, "127.0.0.1"),
        ("127.0.0.1", "198.51.100.1:4711", "127.0.0.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "2001:DB8::1", "2001:db8::1"),
        ("127.0.0.1", "fe80::1%eth0</a>", "127.0.0.1"),
        ("127.0.0.1", "::ffff:198.51.100.1", "198.51.100.1"),
        ("a socket", "198.51.100.1", ""),
    ],
)
def test_an_address_is_one_only_if_it_parses_and_comes_from_a_named_proxy(peer, said, expected):
    raw = [] if said is None else [(b"x-forwarded-for", said.encode("utf-8"))]
    assert client(peer, Headers(raw=raw), PROXIES) == expected
    assert client(peer, Headers(raw=raw), frozenset()) == ("" if parsed(peer) is None else peer)


def test_several_lines_are_read_as_one():
    raw = [(b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-for", b"198.51.100.1")]
    assert client("127.0.0.1", Headers(raw=raw), PROXIES) == "198.51.100.1"


def test_one_site_is_one_origin():
    assert origin("2001:db8::1") == origin("2001:db8::ffff:1") != origin("2001:db8:0:1::1")
    assert origin("text") == ""


def test_a_proxy_is_an_address(tmp_path):
    with pytest.raises(CbirError, match="no address of a proxy; give its IP"):
        Settings(tmp_path, proxies=("proxy.example.org",))
    assert Settings(tmp_path, proxies=("::1",)).trusted == {ipaddress.ip_address("::1")}


def test_strangers_may_ask_so_often_each_by_itself():
    now = [0.0]
    strangers = Strangers(100, clock=lambda: now[0])
    assert sum(strangers.admit("a") for _ in range(1000)) == 100
    assert strangers.admit("b")
    now[0] = 1.0
    assert sum(strangers.admit("a") for _ in range(1000)) == 100 * RATE
    for n in range(2 * REMEMBERED):
        strangers.admit(str(n))
    assert len(strangers._left) == REMEMBERED
