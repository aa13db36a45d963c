"""Only addresses of the public internet, in whatever form they come."""

import asyncio
import socket

import pytest

from safetune.data.addresses import PrivateAddressError, PublicResolver, is_public, open_public_socket

PRIVATE = """
    127.0.0.1 127.8.9.1 0.0.0.0 10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1
    192.0.2.1 198.18.0.1 224.0.0.1 239.1.2.3 240.0.0.1 255.255.255.255
    :: ::1 fe80::1 fe80::1%eth0 fc00::1 fd12:3456::1 ff02::1 2001:db8::1
    ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe
    2002:7f00:1:: 2002:c0a8:101::1 2001:0:4136:e378:8000:63bf:f5ff:fffe ::127.0.0.1
""".split()
PUBLIC = "8.8.8.8 1.1.1.1 172.32.0.1 2606:4700:4700::1111 64:ff9b::808:808 ::ffff:8.8.8.8".split()


@pytest.mark.parametrize("address", PRIVATE)
def test_private(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["example.org", "127.1", "0x7f000001", "2130706433", ""])
def test_what_is_no_address_is_not_public(host: str) -> None:
    assert not is_public(host)


def test_sockets() -> None:
    info = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    open_public_socket((*info, ("8.8.8.8", 80))).close()
    with pytest.raises(PrivateAddressError):
        open_public_socket((*info, ("127.0.0.1", 80)))
    with pytest.raises(PrivateAddressError):
        open_public_socket((*info, ("0177.0.0.1", 80)))


def resolve(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    def answer(host: str, port: int, **options: object) -> list[tuple[object, ...]]:
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [
            (family, socket.SOCK_STREAM, 6, "", (address, port))
            for family, address in zip(families, addresses, strict=True)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, *rest, **options: answer(host, port))

    async def ask() -> list[str]:
        return [found["host"] for found in await PublicResolver().resolve("example.org", 80)]

    return asyncio.run(ask())


def test_every_answer_has_to_be_public(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(monkeypatch, "8.8.8.8", "1.1.1.1") == ["8.8.8.8", "1.1.1.1"]
    with pytest.raises(PrivateAddressError):
        resolve(monkeypatch, "8.8.8.8", "127.0.0.1")
    with pytest.raises(PrivateAddressError):
        resolve(monkeypatch, "192.168.1.1", "8.8.8.8")
