"""Image folders: a broken line or file costs itself, whatever is wrong with it."""

import os
from pathlib import Path

import pytest

from safetune.pairs import Limits, Pair, Record, Rejection, mark_repeats, open_pairs, read_pair
from safetune.pairs.folders import inside
from tests.pairs.damaged import KINDS, NOTES, REASONS, content_of, write_damaged_corpus


def test_every_damage_and_every_conversion(tmp_path: Path) -> None:
    keys = write_damaged_corpus(tmp_path / "pool", 2 * len(KINDS))
    source = open_pairs(tmp_path / "pool")
    results = [read_pair(record, "pairs", Limits()) for record in mark_repeats(source)]
    assert source.length == len(results) == 2 * len(KINDS)
    assert [result.row for result in results] == list(range(len(results)))
    for number, result in enumerate(results):
        kind = KINDS[number % len(KINDS)]
        assert result.key == keys[kind][number // len(KINDS)]
        if isinstance(result, Pair):
            assert (kind, result.notes) == (kind, NOTES[kind])
            assert result.text == f"a cat in the forest, number {number}"
        else:
            assert (kind, result.reason) == (kind, REASONS[kind])


def test_the_order_is_that_of_the_lines_every_time(tmp_path: Path) -> None:
    write_damaged_corpus(tmp_path / "pool", 50)
    source = open_pairs(tmp_path / "pool")
    assert list(source) == list(source) == list(open_pairs(tmp_path / "pool"))


def write_folder(folder: Path, lines: str, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content_of("sound"))
    return folder


def test_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    lines = '\ufeff{"file_name": "a.png", "text": "a"}\r\n\r\n{"file_name": "./b/c.png", "text": "b"}'
    source = open_pairs(write_folder(tmp_path, lines, "a.png", "b/c.png"))
    assert list(source) == [
        Record(0, "a.png", "a", tmp_path / "a.png"),
        Record(1, "b/c.png", "b", tmp_path / "b" / "c.png"),
    ]


def test_an_endless_line_costs_itself(tmp_path: Path) -> None:
    long = '{"file_name": "a.png", "text": "' + "a" * 3 * 2**20 + '"}\n'
    source = open_pairs(write_folder(tmp_path, long + '{"file_name": "b.png", "text": "b"}\n'))
    first, second = source
    assert first.defect == "line is longer than 1048576 bytes"
    assert second.text == "b"


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    lines = [r'{"file_name": "\ud800.png", "text": "a"}', '{"file_name": "%s", "text": "a"}' % ("a" * 5_000)]
    source = open_pairs(write_folder(tmp_path, "\n".join(lines)))
    first, second = (read_pair(record, "pairs", Limits()) for record in source)
    assert first == Rejection(0, "\\ud800.png", "picture's file is missing")
    assert second == Rejection(1, "a" * 5_000, "picture's file cannot be read (File name too long)")


def test_a_key_column(tmp_path: Path) -> None:
    lines = '{"file_name": "a.png", "text": "a", "id": 7}\n{"file_name": "b.png", "text": "b", "id": null}\n'
    first, second = open_pairs(write_folder(tmp_path, lines), key_column="id")
    assert first.key == "7"
    assert second == Record(1, "b.png", None, None, "key is missing, or neither text nor a whole number")


def test_prompts_of_an_image_folder_need_no_file_names(tmp_path: Path) -> None:
    write_folder(tmp_path, '{"text": "a"}\n{"text": "b", "file_name": "b.png"}\n')
    assert list(open_pairs(tmp_path, kind="prompts")) == [
        Record(0, "metadata.jsonl:1", "a", None),
        Record(1, "b.png", "b", None),
    ]


def test_pictures_of_an_image_folder_need_no_captions(tmp_path: Path) -> None:
    write_folder(tmp_path, '{"file_name": "a.png"}\n', "a.png")
    assert list(open_pairs(tmp_path, kind="images")) == [Record(0, "a.png", None, tmp_path / "a.png")]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"file_name": "a.png", "caption": "a"}', "no column 'text'; its columns: caption, file_name"),
        ('{"image": "a.png", "text": "a"}', "no column 'file_name'; its columns: image, text"),
        ("broken", "no column 'text'; its columns: nothing"),
        ("\n\n", "has no rows"),
        ("", "is empty"),
    ],
)
def test_metadata_without_the_columns(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_pairs(write_folder(tmp_path, lines))


def test_plain_pictures_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/notes.txt", ".hidden/c.png", "._b.png", "c.tiff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content_of("sound"))
    (tmp_path / os.fsdecode(b"gr\xf6sse.png")).write_bytes(b"")
    source = open_pairs(tmp_path, kind="images")
    assert [record.key for record in source] == ["b.png", "c.tiff", "gr\\udcf6sse.png", "a/z.JPG"]
    assert source.length == 4
    kept = [read_pair(record, "images", Limits()) for record in source]
    assert [isinstance(pair, Pair) for pair in kept] == [True, True, False, True]
    assert isinstance(kept[2], Rejection) and kept[2].reason == "picture's file is empty"


@pytest.mark.parametrize("with_metadata", [True, False])
def test_the_fingerprint_follows_the_files(tmp_path: Path, with_metadata: bool) -> None:
    write_folder(tmp_path, '{"file_name": "a.png", "text": "a"}\n', "a.png", "b.png")
    if not with_metadata:
        (tmp_path / "metadata.jsonl").unlink()

    def fingerprint() -> str:
        return open_pairs(tmp_path, kind="pairs" if with_metadata else "images").fingerprint

    seen = [fingerprint()]
    assert fingerprint() == seen[0]
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "part-00000.parquet").write_bytes(b"labels are no data")
    assert fingerprint() == seen[0]
    (tmp_path / "a.png").write_bytes(content_of("sound") + b"longer")
    seen.append(fingerprint())
    facts = (tmp_path / "a.png").stat()
    os.utime(tmp_path / "a.png", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    seen.append(fingerprint())
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    seen.append(fingerprint())
    assert len(set(seen)) == 4


def test_a_moved_folder_keeps_its_fingerprint(tmp_path: Path) -> None:
    write_folder(tmp_path / "old", '{"file_name": "a.png", "text": "a"}\n', "a.png")
    before = open_pairs(tmp_path / "old").fingerprint
    (tmp_path / "old").rename(tmp_path / "new")
    assert open_pairs(tmp_path / "new").fingerprint == before


@pytest.mark.parametrize(
    "name",
    ["../a.png", "b/../../a.png", "/etc/a.png", "C:\\a.png", "\\\\host\\a.png", "..\\a.png", "a\0.png"],
)
def test_names_that_lead_out(name: str) -> None:
    assert inside(Path("pool"), name) is None


def test_names_with_dots_stay_inside() -> None:
    assert inside(Path("pool"), "b/..a.png") == Path("pool/b/..a.png")
