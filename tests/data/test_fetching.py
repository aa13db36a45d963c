"""A picture from the web, and every reason why there is none."""

import asyncio
import hashlib
import socket
import time
from collections.abc import Iterator

import pytest

import safetune
from safetune.data import addresses
from safetune.data.fetching import Fetched, FetchError, Limits, fetch_picture, open_session
from tests.data.web import JPEG, PNG, WEBP, Web, serve

OWN = Limits(timeout=5.0, max_bytes=100_000, max_pixels=10_000, allow_private=True)
PUBLIC_ONLY = Limits(timeout=5.0)


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as running:
        yield running


def fetch(url: str, limits: Limits = OWN, contact: str = "") -> Fetched:
    async def run() -> Fetched:
        async with open_session(limits, contact) as session:
            return await fetch_picture(session, url, limits)

    return asyncio.run(run())


def why(url: str, limits: Limits = OWN) -> str:
    with pytest.raises(FetchError) as failure:
        fetch(url, limits)
    return str(failure.value)


@pytest.mark.parametrize(
    ("path", "content", "extension"),
    [
        ("/png", PNG, "png"),
        ("/jpg", JPEG, "jpg"),
        ("/webp", WEBP, "webp"),
        ("/wrong-type", JPEG, "jpg"),
        ("/noai-other", PNG, "png"),
        ("/tdm-0", PNG, "png"),
    ],
)
def test_taken_as_served(web: Web, path: str, content: bytes, extension: str) -> None:
    fetched = fetch(web.url(path))
    assert fetched.content == content and fetched.extension == extension
    assert (fetched.url, fetched.status, fetched.width, fetched.height) == (web.url(path), 200, 32, 32)
    assert fetched.sha256 == hashlib.sha256(content).hexdigest()


def test_we_say_who_we_are(web: Web) -> None:
    fetch(web.url("/png"), contact="mail@example.org")
    (agent,) = web.agents
    assert agent.startswith(f"safetune/{safetune.__version__} (") and "mail@example.org" in agent


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/noai", "opted out (x-robots-tag: noai)"),
        ("/noai-us", "opted out (x-robots-tag: noai)"),
        ("/second-tag", "opted out (x-robots-tag: noimageindex)"),
        ("/tdm", "opted out (tdm-reservation: 1)"),
        ("/to-noai", "opted out (x-robots-tag: noai)"),
        ("/html", "content type is not image/*"),
        ("/gzip", "compressed, though not asked for"),
        ("/lie", "not a jpg, png or webp picture"),
        ("/svg", "not a jpg, png or webp picture"),
        ("/gif", "not a jpg, png or webp picture"),
        ("/cut", "not a jpg, png or webp picture"),
        ("/wide", "more than 10000 pixels"),
        ("/big", "larger than 100000 bytes"),
        ("/endless", "larger than 100000 bytes"),
        ("/gone", "status 404"),
        ("/loop", "more than 5 redirects"),
        ("/to-file", "not an http or https URL"),
    ],
)
def test_not_taken(web: Web, path: str, reason: str) -> None:
    assert why(web.url(path)) == reason


def test_redirects_are_followed_and_counted(web: Web) -> None:
    fetched = fetch(web.url("/once"))
    assert fetched.content == PNG and fetched.url == web.url("/png")
    assert why(web.url("/once"), Limits(max_redirects=0, allow_private=True)) == "more than 0 redirects"
    why(web.url("/loop"))
    assert web.asked["/loop"] == 6


def test_an_endless_answer_is_left_early(web: Web) -> None:
    assert why(web.url("/endless")) == "larger than 100000 bytes"
    time.sleep(0.2)
    assert sum(web.sent) < 20_000_000  # what buffers hold; whole it would be 260 MB


def test_the_timeout_is_for_all_of_it(web: Web) -> None:
    started = time.perf_counter()
    assert why(web.url("/slow"), Limits(timeout=0.7, allow_private=True)) == "timeout"
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize(
    "url",
    ["ftp://example.org/a.png", "file:///etc/passwd", "data:image/png;base64,AA", "a.png", "http://", ""],
)
def test_other_schemes(url: str) -> None:
    assert why(url) == "not an http or https URL"


@pytest.mark.parametrize("url", ["http://[::1/a.png", "http://host:port/a.png"])
def test_no_url(url: str) -> None:
    assert why(url) == "connection: ValueError"


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert why(f"http://127.0.0.1:{port}/").startswith("connection: ClientConnect")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "0.0.0.0"])
def test_private_addresses_are_not_asked(web: Web, host: str) -> None:
    assert why(web.url("/png", host), PUBLIC_ONLY) == "private address"
    assert not web.asked


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0177.0.0.1"])
def test_odd_spellings_are_not_asked(web: Web, host: str) -> None:
    assert why(web.url("/png", host), PUBLIC_ONLY).startswith("connection: InvalidUrl")
    assert not web.asked


@pytest.mark.parametrize(
    "host", ["[::1]", "[::ffff:127.0.0.1]", "10.0.0.1", "169.254.169.254", "192.168.0.1"]
)
def test_other_private_addresses(host: str) -> None:
    assert why(f"http://{host}/a.png", PUBLIC_ONLY) == "private address"


@pytest.fixture
def public_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 counts as public; 127.0.0.2 and all else stay what they are."""
    real = addresses.is_public
    monkeypatch.setattr(addresses, "is_public", lambda host: host == "127.0.0.1" or real(host))


def test_redirects_are_checked_as_the_first_url(web: Web, public_loopback: None) -> None:
    assert fetch(web.url("/png"), PUBLIC_ONLY).content == PNG
    assert why(web.url("/to-private"), PUBLIC_ONLY) == "private address"


def test_a_name_that_changes_its_answer_gains_nothing(
    web: Web, public_loopback: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = []

    def rebinding(host: str, port: int, *rest: object, **options: object) -> list[tuple[object, ...]]:
        questions.append(host)
        address = "127.0.0.1" if len(questions) == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    with serve("127.0.0.2", web.port) as secret:
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        assert fetch(web.url("/png", "rebind.example"), PUBLIC_ONLY).content == PNG
        assert questions == ["rebind.example"] and web.asked["/png"] == 1
        assert why(web.url("/png", "rebind.example"), PUBLIC_ONLY) == "private address"
        assert not secret.asked


def test_one_private_answer_among_public_ones(
    web: Web, public_loopback: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both(host: str, port: int, *rest: object, **options: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("127.0.0.1", "10.0.0.1")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    assert why(web.url("/png", "both.example"), PUBLIC_ONLY) == "private address"
    assert not web.asked
