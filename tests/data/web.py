"""A web server on 127.0.0.1 with one page for each way in which a picture can go wrong."""

import io
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.data.pictures import draw_picture


def encoded(kind: str, size: int = 32) -> bytes:
    buffer = io.BytesIO()
    draw_picture(0, size).save(buffer, kind)
    return buffer.getvalue()


PNG, JPEG, WEBP, GIF = (encoded(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF"))
HEADERS: dict[str, list[tuple[str, str]]] = {
    "/noai": [("X-Robots-Tag", "noai")],
    "/second-tag": [("X-Robots-Tag", "nofollow"), ("X-Robots-Tag", "noimageindex")],
    "/noai-us": [("X-Robots-Tag", "safetune: noai")],
    "/noai-other": [("X-Robots-Tag", "otherbot: noai, noindex")],
    "/tdm": [("tdm-reservation", "1")],
    "/tdm-0": [("tdm-reservation", "0")],
    "/gzip": [("Content-Encoding", "gzip")],
}
BODIES: dict[str, tuple[str, bytes]] = {
    "/png": ("image/png", PNG),
    "/jpg": ("image/jpeg", JPEG),
    "/webp": ("image/webp", WEBP),
    "/wrong-type": ("image/png", JPEG),
    "/gif": ("image/gif", GIF),
    "/svg": ("image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "/html": ("text/html", PNG),
    "/lie": ("image/png", b"<html>not a picture</html>"),
    "/cut": ("image/png", PNG[: len(PNG) // 2]),
    "/big": ("image/png", PNG + bytes(200_000)),
    "/wide": ("image/png", encoded("PNG", 200)),
    **dict.fromkeys(HEADERS, ("image/png", PNG)),
}
TARGETS = {
    "/once": "/png",
    "/loop": "/loop",
    "/to-file": "file:///etc/passwd",
    "/to-private": "http://169.254.169.254/latest/meta-data",
    "/to-noai": "/noai",
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: Counter[str]
    agents: set[str]
    sent: list[int]

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked[path] += 1
        self.agents.add(self.headers["User-Agent"])
        if path in BODIES:
            kind, body = BODIES[path]
            self.answer(200, [("Content-Type", kind), *HEADERS.get(path, [])], body)
        elif path in TARGETS:
            self.answer(302, [("Location", TARGETS[path])], b"")
        elif path == "/endless":
            self.endless(pause=0.0)
        elif path == "/slow":
            self.endless(pause=0.2)
        else:
            self.answer(404, [], b"")

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def endless(self, pause: float) -> None:
        """A picture without length and without end, until the other side has enough."""
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        piece = PNG if pause else bytes(1 << 16)
        try:
            for _ in range(50 if pause else 4000):
                self.wfile.write(piece)
                self.sent.append(len(piece))
                time.sleep(pause)
        except OSError:
            return

    def log_message(self, *words: object) -> None:
        """Nothing."""


class Web:
    """A running server: its address, and what it was asked for."""

    def __init__(self, server: ThreadingHTTPServer, handler: type[Handler]) -> None:
        self.port = server.server_address[1]
        self.asked, self.agents, self.sent = handler.asked, handler.agents, handler.sent

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@contextmanager
def serve(host: str = "127.0.0.1", port: int = 0) -> Iterator[Web]:
    handler = type("Handler", (Handler,), {"asked": Counter(), "agents": set(), "sent": []})
    server = ThreadingHTTPServer((host, port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Web(server, handler)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
