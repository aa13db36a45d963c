"""Prompts alone, from files of lines."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from safetune.pairs import Limits, Pair, Rejection, open_pairs, read_pair


def read(path: Path, **options: str) -> list[tuple[str, str]]:
    """Key, and text or reason, of each row."""
    results = [
        read_pair(record, "prompts", Limits())
        for record in open_pairs(path, kind="prompts", **options)  # type: ignore[arg-type]
    ]
    assert [result.row for result in results] == list(range(len(results)))
    return [(result.key, result.text if isinstance(result, Pair) else result.reason) for result in results]


def test_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfa cat\r\n\ncaf\xe9\n" + b"a" * 10_000 + b"\n" + b"b" * 2**21 + b"\na dog")
    assert read(path) == [
        ("0", "a cat"),
        ("1", "caption is empty"),
        ("2", "caption is not UTF-8"),
        ("3", "caption has 10000 characters, more than 2000"),
        ("4", "line is longer than 1048576 bytes"),
        ("5", "a dog"),
    ]
    assert open_pairs(path, kind="prompts").length == 6


def test_a_line_as_long_as_allowed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * (2**20 - 1) + b"\nb\n" + b"c" * 2**20)
    assert [record.defect for record in open_pairs(tmp_path / "a.txt", kind="prompts")] == ["", "", ""]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_bytes(
        b"\xef\xbb\xbfid,prompt\n"
        b'1,"a cat, ""sitting""\nin the forest"\n'
        b"2,a dog,too many\n"
        b"\n"
        b"3,caf\xe9\n"
        b'4,"a" fox\n'
        b"5,\n"
        b",a hen\n"
        b"7,a cow\n"
    )
    assert read(path, text_column="prompt") == [
        ("0", 'a cat, "sitting"\nin the forest'),
        ("1", "row has 3 cells, the header 2"),
        ("2", "caption is not UTF-8"),
        ("3", "row is not CSV"),
        ("4", "caption is empty"),
        ("5", "a hen"),
        ("6", "a cow"),
    ]
    keys = [key for key, _ in read(path, text_column="prompt", key_column="id")]
    assert keys == ["1", "1", "3", "3", "5", "5", "7"]
    assert open_pairs(path, kind="prompts", text_column="prompt").length == 7


def test_a_quote_that_never_ends_costs_128_kilobytes_at_most(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_bytes(b'text\n"a cat\n' + b"a dog\n" * 50_000)
    results = read(path)
    assert results[0] == ("0", "row is not CSV")
    assert results[1] == ("1", "a dog")
    assert len(results) > 25_000


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [
        json.dumps({"text": "a cat", "id": "x"}).encode(),
        b"",
        b'{"text": "a dog"',
        b'{"text": "caf\xe9"}',
        b'{"text": "\\ud800"}',
        b'"a fox"',
        b'{"text": ["a hen"]}',
        b'{"id": true, "text": "a cow"}',
        b"[" * 100_000,
        b'{"text": ' + b"1" * 10_000 + b"}",
    ]
    path.write_bytes(b"\n".join(lines))
    assert read(path) == [
        ("0", "a cat"),
        ("1", "line is not JSON"),
        ("2", "line is not UTF-8"),
        ("3", "caption is not UTF-8"),
        ("4", "line is not a JSON object"),
        ("5", "caption is not text"),
        ("6", "a cow"),
        ("7", "line is not JSON"),
        ("8", "line is not JSON"),
    ]
    assert read(path, key_column="id")[0] == ("x", "a cat")
    assert read(path, key_column="id")[6] == ("6", "key is missing, or neither text nor a whole number")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"prompt,id\na cat,1\n", "has no column 'text'; its columns: id, prompt"),
        ("a.csv", b"text\n", "has no rows"),
        ("a.csv", b'"te"xt\na cat\n', "the header is not CSV"),
        ("a.jsonl", b'{"prompt": "a cat"}\n', "has no column 'text'; its columns: prompt"),
        ("a.jsonl", b"", "is empty"),
        ("a.txt", "a cat".encode("utf-16"), "is UTF-16: save it as UTF-8"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_pairs(tmp_path / name, kind="prompts")


def test_plain_text_has_no_key_column(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat\n")
    with pytest.raises(ValueError, match="leave out the key column 'id'"):
        open_pairs(tmp_path / "a.txt", kind="prompts", key_column="id")


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_the_fingerprint_follows_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"text": "a cat"}\n' if name == "a.jsonl" else "text\na cat\n")
    fingerprint: Callable[[], str] = lambda: open_pairs(path, kind="prompts").fingerprint  # noqa: E731
    before = fingerprint()
    assert fingerprint() == before
    with path.open("a") as file:
        file.write("\n")
    assert fingerprint() != before


def test_reasons_never_hold_the_prompt(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "secret"}\n{"text": "secret" broken\n{"text": ["secret"]}\n')
    results = [read_pair(record, "prompts", Limits()) for record in open_pairs(path, kind="prompts")]
    assert not any("secret" in result.reason for result in results if isinstance(result, Rejection))
