"""Network addresses that a list of URLs from anywhere may lead to: public ones, and no others.

A URL, a redirect or a DNS answer can point into the network that we run in: at a router, at a cloud machine's
metadata service, at a database without password. Names are resolved once, every answer is checked, and the
connection goes to an address that was checked: a name whose answer changes in between gains nothing.
"""

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from aiohttp import AddrInfoType
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

NAT64 = IPv6Network("64:ff9b::/96")


class PrivateAddressError(Exception):
    """The address is not public. It is no OSError: aiohttp would wrap and try others."""


def is_public(address: str) -> bool:
    """True for an address of the public internet, whatever form it is written in.

    False for private, loopback, link-local, multicast, reserved and unspecified ones, for IPv6 addresses that
    stand for such an IPv4 one, and for what is no address.
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    inner = embedded(ip) if isinstance(ip, IPv6Address) else None
    if inner is not None:
        ip = inner
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def embedded(ip: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one leads to: mapped, 6to4, Teredo or NAT64."""
    if ip in NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    teredo = ip.teredo
    return ip.ipv4_mapped or ip.sixtofour or (teredo[1] if teredo else None)


def open_public_socket(info: AddrInfoType) -> socket.socket:
    """A socket for aiohttp's connector; PrivateAddressError when it would connect to no public address.

    Every connection passes here, also one to a host that is an address, which the resolver never sees.
    """
    family, kind, protocol, _, address = info
    if not is_public(str(address[0])):
        raise PrivateAddressError
    return socket.socket(family, kind, protocol)


class PublicResolver(AbstractResolver):
    """The system's resolver, whose answer counts only when every address in it is public.

    aiohttp connects to what it returns and asks no second time.
    """

    def __init__(self) -> None:
        self.system = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of a name. Raises PrivateAddressError when any of them is not public."""
        answers = await self.system.resolve(host, port, family)
        if not all(is_public(answer["host"]) for answer in answers):
            raise PrivateAddressError
        return answers

    async def close(self) -> None:
        await self.system.close()
