"""The endpoints of the Hugging Face hub that pushing and loading a model calls, on 127.0.0.1."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: files of each by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.called: list[str] = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.removeprefix("/api/").split("?")[0]
        if path == "validate-yaml":
            self.server.called.append("validate-yaml")
            self.validate(json.loads(body)["content"])
        elif self.headers.get("Authorization") != "Bearer hf_test":
            self.answer({"error": "Invalid username or password."}, 401)
        elif path == "repos/create":
            self.server.called.append("create")
            name = json.loads(body)["name"]
            self.server.repositories.setdefault(f"me/{name}", {})
            self.answer({"url": f"{self.server.endpoint}/me/{name}", "name": f"me/{name}"})
        elif path.endswith("/preupload/main"):
            self.server.called.append("preupload")
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in files]
            self.answer({"files": modes})
        elif path.endswith("/commit/main"):
            self.server.called.append("commit")
            name = path.removeprefix("models/").removesuffix("/commit/main")
            self.commit(name, [json.loads(line) for line in body.splitlines()])
        else:
            self.answer({"error": f"no such endpoint: {path}"}, 404)

    def do_HEAD(self) -> None:
        self.serve()

    def do_GET(self) -> None:
        self.serve()

    def validate(self, content: str) -> None:
        """Is the front matter a mapping with a library, tags and, where there is one, a licence as text?"""
        data = yaml.safe_load(content.split("---\n")[1])
        good = isinstance(data, dict) and isinstance(data["tags"], list) and data["library_name"]
        good = good and isinstance(data.get("license", ""), str)
        self.answer({"errors": [], "warnings": []} if good else {"errors": ["bad"]}, 200 if good else 400)

    def commit(self, name: str, lines: list[dict]) -> None:
        for line in lines:
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.repositories[name][line["value"]["path"]] = content
        url = f"{self.server.endpoint}/{name}/commit/{COMMIT}"
        self.answer({"commitUrl": url, "commitOid": COMMIT, "success": True})

    def serve(self) -> None:
        name, _, file = self.path[1:].partition("/resolve/main/")
        if file not in self.server.repositories.get(name, {}):
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.server.repositories[name][file]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.server.called.append(f"download {file}")
            self.wfile.write(content)

    def answer(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Tests print no requests."""


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
