"""Look at what the labeler is unsure about, pair by pair, and decide: c clean, h harmful, s skip, u undo.

    safetune review data/pool
    safetune review data/pool --all

Opens a page on 127.0.0.1 that sends nothing out. Pictures stay blurred until you click them or press b. Each
decision is in LABELS/review.parquet at once; stop with Ctrl+C and go on whenever you like.
"""

import argparse
import secrets
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs

import pandas as pd
import uvicorn
from PIL.Image import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.routing import Route

from safetune.labeling.finished import read_finished
from safetune.labeling.pictures import find_records, read_picture
from safetune.labeling.review import Review, describe_review, review_queue
from safetune.pairs import Record, open_pairs
from safetune.reporting.review_page import Progress, render_review_page

HOST = "127.0.0.1"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""Nothing is loaded from elsewhere, sent elsewhere, or left in the browser's cache."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safetune review", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="the labelled pairs: whatever `safetune label` read")
    parser.add_argument("--labels", type=Path, help="folder of the labels (default: DATA/labels)")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="after the uncertain pairs, show all the others")
    parser.add_argument("--no-blur", action="store_true", help="show pictures at once")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        serve(args)
    except (ValueError, FileNotFoundError) as mistake:
        print(f"safetune review: {mistake}", file=sys.stderr)
        return 2
    return 0


def serve(args: argparse.Namespace) -> None:
    folder = args.labels or Path(args.data) / "labels"
    desk = open_desk(args.data, folder, args.all, not args.no_blur)
    try:
        listener = socket.create_server((HOST, args.port))
    except (OSError, OverflowError) as error:
        raise ValueError(f"--port {args.port}: {error}; give another one, or 0 for a free one") from None
    url = f"http://{HOST}:{listener.getsockname()[1]}/"
    print(f"review: {desk.limit} pairs at {url} (Ctrl+C ends)", flush=True)
    server = uvicorn.Server(uvicorn.Config(desk.app(), log_level="warning", access_log=False))
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    print(f"review: {desk.summary()}; decisions in {desk.review.path}")


def open_desk(data: str, folder: Path, everything: bool, blur: bool) -> "Desk":
    """Labels, decisions so far, and where the pictures of both lie; ValueError when nothing is to be done."""
    labels, facts = read_finished(folder)
    rows = review_queue(labels)
    limit = len(rows) if everything else int((rows.label == "uncertain").sum())
    if not limit:
        raise ValueError(f"no pair in {folder} is uncertain: give --all to look at the others")
    review = Review(folder, rows.key)
    records: dict[str, Record] = {}
    if rows.image_score.notna().any():
        names = ("image_column", "key_column", "split")
        options = facts.get("options", {})
        columns = {name: options[name] for name in names if name in options}
        source = open_pairs(data, kind="images", **columns)
        records = find_records(source, {*rows.key[:limit], *review.decisions()})
        if not records:
            raise ValueError(f"{data} has none of the keys of {folder}: give the data that was labelled")
    return Desk(rows, limit, review, records, blur)


class Desk:
    """What lies before the reviewer: rows in the order of review; the first `limit` are asked for."""

    def __init__(
        self, rows: pd.DataFrame, limit: int, review: Review, records: dict[str, Record], blur: bool
    ) -> None:
        self.rows, self.limit, self.review, self.records, self.blur = rows, limit, review, records, blur
        self.keys = rows.key.tolist()
        self.uncertain = int((rows.label == "uncertain").sum())
        # Another site may send a form to this port, but cannot read the token off the page.
        self.token = secrets.token_urlsafe(16)

    def app(self) -> Starlette:
        """Three routes, for this machine's own browser only."""
        routes = [
            Route("/", self.show),
            Route("/decide", self.decide, methods=["POST"]),
            Route("/undo", self.undo, methods=["POST"]),
        ]
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
        return Starlette(routes=routes, middleware=[hosts])

    def show(self, request: Request) -> HTMLResponse:
        """The pair asked for, or the first that nobody decided about."""
        decisions = self.review.decisions()
        row = self.row_of(request.query_params["row"]) if "row" in request.query_params else None
        if row is None:
            row = next((row for row in range(self.limit) if self.keys[row] not in decisions), None)
        pair = None if row is None else self.rows.iloc[row].to_dict()
        picture = None if row is None else self.picture(self.keys[row])
        page = render_review_page(
            pair, row or 0, picture, self.progress(decisions), self.summary(), self.token, self.blur
        )
        return HTMLResponse(page, headers=HEADERS)

    async def decide(self, request: Request) -> RedirectResponse:
        """Write the decision down and go on."""
        form = await self.form(request)
        try:
            self.review.record(self.keys[self.row_of(form.get("row", ""))], form.get("label", ""))
        except ValueError as mistake:
            raise HTTPException(400, str(mistake)) from None
        return RedirectResponse("/", 303, HEADERS)

    async def undo(self, request: Request) -> RedirectResponse:
        """Take the last decision back and show its pair."""
        await self.form(request)
        key = self.review.undo()
        return RedirectResponse(
            "/" if key not in self.keys else f"/?row={self.keys.index(key)}", 303, HEADERS
        )

    async def form(self, request: Request) -> dict[str, str]:
        """Fields of a form that came from this server's own page."""
        fields = parse_qs((await request.body()).decode("utf-8", "replace"))
        form = {name: values[-1] for name, values in fields.items()}
        if not secrets.compare_digest(form.get("token", "").encode(), self.token.encode()):
            raise HTTPException(403, "this page is of an earlier review: open it anew")
        return form

    def row_of(self, text: str) -> int:
        if not text.isdecimal() or len(text) > 12 or int(text) >= len(self.keys):
            raise HTTPException(404, "no such row: open the page anew")
        return int(text)

    def picture(self, key: str) -> Image | None:
        return read_picture(self.records[key]) if key in self.records else None

    def progress(self, decisions: dict[str, str]) -> Progress:
        done = [key in decisions for key in self.keys[: self.limit]]
        uncertain, others = done[: self.uncertain], done[self.uncertain :]
        return Progress(sum(uncertain), len(uncertain), sum(others), len(others))

    def summary(self) -> str:
        return describe_review(self.rows, self.review.decisions())


if __name__ == "__main__":
    raise SystemExit(main())
