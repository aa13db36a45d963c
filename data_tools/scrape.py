"""Fetch the pictures of a list of URLs into webdataset shards; run again, it goes on where it stopped.

    safetune scrape urls.csv --out data/web --contact "mail@example.org"

URLS is a .txt (one URL a line), .csv, .jsonl or .parquet file with columns url and text. Pictures are kept as
they were served, a tar for each format: OUT/00000-jpg.tar holds KEY.jpg, KEY.txt with the caption and
KEY.json with url, status and sha256. OUT/scrape/failed.parquet (url, text, reason) tells what was not taken
and why; it can be given as URLS again. A shard that is done is not fetched again.

Servers that opt out are obeyed (X-Robots-Tag: noai, noimageai, noindex, noimageindex; tdm-reservation: 1),
our User-Agent says who we are, and only addresses of the public internet are connected to. Whether you may
use the pictures is a question of their licences, which no header answers.
"""

import argparse
import asyncio
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import aiohttp
import pandas as pd
from tqdm.auto import tqdm

import safetune
from safetune.data.fetching import Fetched, FetchError, Limits, fetch_picture, open_session
from safetune.data.urls import Link, read_links
from safetune.data.webshards import Sample, write_shard
from safetune.files import check_settings, fingerprint_of, write_json, write_parquet

logger = logging.getLogger("scrape")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safetune scrape", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    limits = Limits()
    parser.add_argument("urls", type=Path, help=".txt, .csv, .jsonl or .parquet file of URLs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--url-column", default="url", help="column of the URLs (default: %(default)s)")
    parser.add_argument("--text-column", default="text", help="column of the captions (default: %(default)s)")
    parser.add_argument(
        "--contact", default="", help="mail or web address for the User-Agent, so that servers can ask you"
    )
    parser.add_argument(
        "--concurrency", type=int, default=32, help="pictures fetched at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--per-host", type=int, default=4, help="of them from one server (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=limits.timeout,
        help="seconds for a picture, redirects included (default: %(default)s)",
    )
    parser.add_argument(
        "--max-bytes", type=int, default=limits.max_bytes, help="largest picture (default: %(default)s)"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=limits.max_pixels, help="width times height (default: %(default)s)"
    )
    parser.add_argument(
        "--max-redirects", type=int, default=limits.max_redirects, help="for a URL (default: %(default)s)"
    )
    parser.add_argument(
        "--allow-private",
        action="store_true",
        help="private and loopback addresses too: only for a list that you wrote, on a server of yours",
    )
    parser.add_argument("--shard-size", type=int, default=1000, help="URLs of a shard (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        scrape(args)
    except (ValueError, FileNotFoundError) as mistake:
        print(f"safetune scrape: {mistake}", file=sys.stderr)
        return 2
    return 0


def scrape(args: argparse.Namespace) -> None:
    for name in ("concurrency", "per_host", "timeout", "max_bytes", "max_pixels", "shard_size"):
        if getattr(args, name) <= 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: give more than 0")
    limits = Limits(args.max_bytes, args.max_pixels, args.timeout, args.max_redirects, args.allow_private)
    links = read_links(args.urls, args.url_column, args.text_column)
    state = args.out / "scrape"
    settings = {
        "links": fingerprint_of([link.url, link.text] for link in links),
        "shard_size": args.shard_size,
    }
    check_settings(state / "scrape.json", settings)
    facts = {**settings, "urls": len(links), "limits": asdict(limits), "safetune": safetune.__version__}
    write_json(state / "scrape.json", facts)

    asyncio.run(fetch_all(args, limits, links))

    shards = len(range(0, len(links), args.shard_size))
    table = pd.concat([pd.read_parquet(part_path(args.out, number)) for number in range(shards)])
    failed = table[table.reason != ""]
    write_parquet(failed, state / "failed.parquet")
    reasons = Counter(failed.reason.str.replace(r" \(.*", "", regex=True))
    write_json(state / "scrape.json", {**facts, "taken": len(table) - len(failed), "failed": dict(reasons)})
    print(
        f"scrape: {len(table) - len(failed)} pictures of {len(links)} URLs in {args.out}; "
        f"{len(failed)} not taken, reasons in {state / 'failed.parquet'}"
    )


async def fetch_all(args: argparse.Namespace, limits: Limits, links: Sequence[Link]) -> None:
    """Fetch the shards that are not there, one after the other."""
    async with open_session(limits, args.contact) as session:
        with tqdm(total=len(links), desc="scrape", unit="URL") as bar:
            for number, start in enumerate(range(0, len(links), args.shard_size)):
                chunk = links[start : start + args.shard_size]
                if part_path(args.out, number).is_file():
                    bar.update(len(chunk))
                    continue
                results = await fetch_shard(session, chunk, limits, args.concurrency, args.per_host, bar)
                write_results(args.out, number, start, chunk, results)


async def fetch_shard(
    session: aiohttp.ClientSession,
    links: Sequence[Link],
    limits: Limits,
    concurrency: int,
    per_host: int,
    bar: tqdm,
) -> list[Fetched | FetchError]:
    """A picture, or why there is none, for each link; waiting for a turn is no part of a picture's time."""
    turns = asyncio.Semaphore(concurrency)
    hosts: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(per_host))

    async def fetch(link: Link) -> Fetched | FetchError:
        async with hosts["".join(link.url.split("/")[2:3])], turns:
            try:
                return await fetch_picture(session, link.url, limits)
            except FetchError as reason:
                return reason
            finally:
                bar.update()

    return list(await asyncio.gather(*map(fetch, links)))


def write_results(
    out: Path, number: int, start: int, links: Sequence[Link], results: Sequence[Fetched | FetchError]
) -> None:
    """Write a shard: a tar for each format, since `datasets` wants the same columns in all of a tar.

    The table of reasons is written last: the shard is done when it is there.
    """
    for left in out.glob(f"{number:05d}-*.tar"):  # by a run that was killed before its table
        left.unlink()
    samples = [
        as_sample(start + row, link, result)
        for row, (link, result) in enumerate(zip(links, results, strict=True))
        if isinstance(result, Fetched)
    ]
    for extension in {sample.extension for sample in samples}:
        same = [sample for sample in samples if sample.extension == extension]
        write_shard(out / f"{number:05d}-{extension}.tar", same)
    columns = {
        "url": [link.url for link in links],
        "text": [link.text for link in links],
        "reason": [str(result) if isinstance(result, FetchError) else "" for result in results],
    }
    write_parquet(pd.DataFrame(columns), part_path(out, number))


def part_path(out: Path, number: int) -> Path:
    return out / "scrape" / f"part-{number:05d}.parquet"


def as_sample(number: int, link: Link, fetched: Fetched) -> Sample:
    facts = {
        "url": link.url,
        "final_url": fetched.url,
        "status": fetched.status,
        "sha256": fetched.sha256,
        "width": fetched.width,
        "height": fetched.height,
    }
    return Sample(f"{number:09d}", fetched.content, fetched.extension, link.text, facts)


if __name__ == "__main__":
    raise SystemExit(main())
