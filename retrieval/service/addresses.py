"""Where a request comes from: the peer's address, or what a proxy that is named in the settings says."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
SITE = 64
"""Bits of an IPv6 address that name its site; the others its holder chooses as he likes."""


def parsed(text: str) -> Address | None:
    """An address in its one form, or None if the text is none.

    Examples
    --------
    >>> parsed("::ffff:192.0.2.7"), parsed("[2001:db8::1]"), parsed("pacs, really")
    (IPv4Address('192.0.2.7'), IPv6Address('2001:db8::1'), None)
    """
    try:
        address = ipaddress.ip_address(text.strip().removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:  # free text, which a client may send
            return None
        return address.ipv4_mapped or address
    return address


def client(peer: str, headers: Headers, proxies: Collection[Address]) -> str:
    """The address of whoever asks; empty if there is none.

    ``X-Forwarded-For`` is read from its end, as long as a named proxy wrote what stands there.

    Parameters
    ----------
    peer : str
        The other end of the connection.
    headers : Headers
    proxies : collection of address
        Those that are believed.
    """
    found = parsed(peer)
    said = [part for line in headers.getlist("x-forwarded-for") for part in line.split(",")]
    for part in reversed(said):
        if found not in proxies:
            break
        further = parsed(part)
        if further is None:
            break
        found = further
    return "" if found is None else str(found)


def origin(address: str) -> str:
    """What limits are counted by: the address, or of an IPv6 address the site.

    Examples
    --------
    >>> origin("192.0.2.7"), origin("2001:db8:0:1:a:b:c:d")
    ('192.0.2.7', '2001:db8:0:1::/64')
    """
    found = parsed(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, SITE), strict=False))
    return "" if found is None else str(found)
