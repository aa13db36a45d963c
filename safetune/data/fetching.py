"""One picture from the web: limits, redirects, opt-outs and the check that it is a picture."""

import asyncio
import hashlib
import io
from dataclasses import dataclass

import aiohttp
from PIL import Image
from yarl import URL

import safetune
from safetune.data.addresses import PrivateAddressError, PublicResolver, open_public_socket
from safetune.data.optout import refusal

AGENT = "safetune"
"""Our name in X-Robots-Tag headers."""
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
"""Extension by Pillow's name of the format; MPO is what Pillow calls JPEGs of some telephones."""
REDIRECTS = (301, 302, 303, 307, 308)
CHUNK = 1 << 16


class FetchError(Exception):
    """A picture that was not taken; its text is the reason."""


@dataclass(frozen=True)
class Limits:
    """What one URL may cost."""

    max_bytes: int = 20_000_000
    max_pixels: int = 64_000_000
    timeout: float = 30.0
    """Seconds for a URL, redirects included."""
    max_redirects: int = 5
    allow_private: bool = False
    """Private, loopback and link-local addresses too: for a server of one's own."""


@dataclass(frozen=True)
class Fetched:
    """A picture as it was served."""

    content: bytes
    extension: str
    """jpg, png or webp, by the content."""
    url: str
    """Where it came from after redirects."""
    status: int
    width: int
    height: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def open_session(limits: Limits, contact: str = "") -> aiohttp.ClientSession:
    """An HTTP client that names us, keeps no cookies, and connects to public addresses only.

    Call it inside of a running event loop; how many pictures are fetched at a time is the caller's to say.
    Proxies of the environment are not used: they would resolve names themselves.
    """
    connector = aiohttp.TCPConnector(
        resolver=aiohttp.ThreadedResolver() if limits.allow_private else PublicResolver(),
        socket_factory=None if limits.allow_private else open_public_socket,
        limit=0,
    )
    about = f"image data sets; obeys X-Robots-Tag and tdm-reservation{'; ' + contact if contact else ''}"
    headers = {
        "User-Agent": f"{AGENT}/{safetune.__version__} ({about})",
        "Accept": "image/webp,image/png,image/jpeg",
        # Compressed answers could grow beyond any limit when they are unpacked.
        "Accept-Encoding": "identity",
    }
    return aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=limits.timeout),
    )


async def fetch_picture(session: aiohttp.ClientSession, url: str, limits: Limits) -> Fetched:
    """A jpg, png or webp picture. Raises FetchError with the reason when it cannot or must not be taken."""
    try:
        async with asyncio.timeout(limits.timeout):
            content, final, status = await download(session, url, limits)
    except TimeoutError:
        raise FetchError("timeout") from None
    except PrivateAddressError:
        raise FetchError("private address") from None
    except (aiohttp.ClientError, OSError, ValueError) as failure:
        raise FetchError(f"connection: {type(failure).__name__}") from None
    extension, width, height = await asyncio.to_thread(check_picture, content, limits.max_pixels)
    return Fetched(content, extension, str(final), status, width, height)


async def download(session: aiohttp.ClientSession, url: str, limits: Limits) -> tuple[bytes, URL, int]:
    """Content, last URL and status. Every URL on the way is checked as the first one is."""
    where = URL(url)
    for _ in range(limits.max_redirects + 1):
        if where.scheme not in ("http", "https") or not where.host:
            raise FetchError("not an http or https URL")
        async with session.get(where, allow_redirects=False) as response:
            refused = refusal(
                response.headers.getall("X-Robots-Tag", []),
                response.headers.getall("tdm-reservation", []),
                AGENT,
            )
            if refused:
                raise FetchError(f"opted out ({refused})")
            if response.status in REDIRECTS and "Location" in response.headers:
                where = where.join(URL(response.headers["Location"]))
                continue
            return await read_content(response, limits.max_bytes), where, response.status
    raise FetchError(f"more than {limits.max_redirects} redirects")


async def read_content(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body, of a picture's type, read no further than `max_bytes`."""
    if response.status != 200:
        raise FetchError(f"status {response.status}")
    if not response.headers.get("Content-Type", "").lower().startswith("image/"):
        raise FetchError("content type is not image/*")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise FetchError("compressed, though not asked for")
    too_large = FetchError(f"larger than {max_bytes} bytes")
    if (response.content_length or 0) > max_bytes:
        raise too_large
    content = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK):
        content += chunk
        if len(content) > max_bytes:
            raise too_large
    return bytes(content)


def check_picture(content: bytes, max_pixels: int) -> tuple[str, int, int]:
    """Extension, width and height by the content itself, decoded to its end; FetchError when that fails."""
    too_many = FetchError(f"more than {max_pixels} pixels")
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP")) as picture:
            if picture.width * picture.height > max_pixels:
                raise too_many
            picture.load()
            return EXTENSIONS[str(picture.format)], picture.width, picture.height
    except Image.DecompressionBombError:
        raise too_many from None
    except FetchError:
        raise
    except Exception:  # broken bytes can raise anything: OSError, SyntaxError, EOFError, struct.error, ...
        raise FetchError("not a jpg, png or webp picture") from None
