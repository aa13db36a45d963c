"""Webdataset tars: samples, damage in every place, and memory that does not grow."""

import io
import json
import tarfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest

from safetune.pairs import FilePart, Limits, Pair, Record, Rejection, mark_repeats, open_pairs, read_pair
from tests.pairs.damaged import content_of

IMAGE = content_of("sound")
DAMAGED = "tar is damaged or cut short: its samples from here on are lost"


def write_tar(path: Path, files: Iterable[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def samples(count: int, image: bytes = IMAGE) -> list[tuple[str, bytes]]:
    return [
        file
        for n in range(count)
        for file in ((f"{n:05d}.png", image), (f"{n:05d}.txt", f"cat {n}\n".encode()))
    ]


def read_all(source: Iterable[Record]) -> list[Pair | Rejection]:
    return [read_pair(record, "pairs", Limits()) for record in source]


def test_samples_of_one_tar(tmp_path: Path) -> None:
    source = open_pairs(write_tar(tmp_path / "a.tar", samples(3)))
    records = list(source)
    assert records == list(source)
    assert source.length is None
    assert [(record.row, record.key, record.text) for record in records] == [
        (n, f"{n:05d}", f"cat {n}\n".encode()) for n in range(3)
    ]
    pairs = read_all(source)
    assert all(isinstance(pair, Pair) and pair.text == f"cat {n}" for n, pair in enumerate(pairs))


def test_only_captions_are_read_while_iterating(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(1))
    (record,) = open_pairs(path)
    assert isinstance(record.image, FilePart)
    assert path.read_bytes()[record.image.offset :][: record.image.size] == IMAGE


def test_tars_of_a_folder_and_of_a_pattern_have_their_names_in_the_keys(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"{number:05d}.tar", samples(1))
    keys = ["00000/00000", "00001/00000", "00002/00000"]
    assert [record.key for record in open_pairs(tmp_path)] == keys
    assert [record.key for record in open_pairs(f"{tmp_path}/{{00000..00002}}.tar")] == keys
    assert [record.row for record in open_pairs(f"{tmp_path}/{{00002,00001}}.tar")] == [0, 1]
    with pytest.raises(ValueError, match=r"2 of 3 files are not there: .*00003.tar, .*00004.tar"):
        open_pairs(f"{tmp_path}/{{00002..00004}}.tar")


def test_captions_and_keys_in_json(tmp_path: Path) -> None:
    cells = {"caption": "from json", "id": 9}
    files = [
        ("a.jpg", IMAGE),
        ("a.json", json.dumps(cells).encode()),
        ("a.txt", b"from txt"),
        ("b.jpg", IMAGE),
        ("b.json", b"{broken"),
        ("b.txt", b"from txt"),
        ("c.jpg", IMAGE),
        ("c.json", json.dumps({"caption": 5, "id": "c"}).encode()),
    ]
    path = write_tar(tmp_path / "a.tar", files)
    assert [record.text for record in open_pairs(path)] == [b"from txt", b"from txt", None]
    named = list(open_pairs(path, text_column="caption"))
    assert [record.text for record in named] == ["from json", b"from txt", None]
    assert named[2].defect == "caption is not text"
    keyed = list(open_pairs(path, key_column="id"))
    assert [record.key for record in keyed] == ["9", "b", "c"]
    assert keyed[1].defect == "key is missing, or neither text nor a whole number"


def test_incomplete_and_odd_samples(tmp_path: Path) -> None:
    files = [
        ("whole.PNG", IMAGE),
        ("whole.txt", b"a"),
        ("no_caption.png", IMAGE),
        ("no_picture.txt", b"b"),
        ("long.png", IMAGE),
        ("long.txt", b"c" * (2**20 + 1)),
        ("evil.__key__", b"d"),
        ("evil.png", b""),
        ("evil.txt", b"caf\xe9"),
        ("folder.v2/a.cam0.png", IMAGE),
        ("folder.v2/a.txt", b"e"),
        ("noextension", b"f"),
    ]
    results = read_all(open_pairs(write_tar(tmp_path / "a.tar", files)))
    assert [(result.key, getattr(result, "reason", "")) for result in results] == [
        ("whole", ""),
        ("no_caption", "caption is missing"),
        ("no_picture", "picture is missing"),
        ("long", "caption's file is larger than 1048576 bytes"),
        ("evil", "caption is not UTF-8"),
        ("folder.v2/a", ""),
    ]


def test_a_sample_that_comes_twice_is_a_repeat(tmp_path: Path) -> None:
    files = [*samples(1), *samples(1), *samples(2)]
    results = read_all(mark_repeats(open_pairs(write_tar(tmp_path / "a.tar", files))))
    repeat = "key was there before"
    assert [(result.key, getattr(result, "reason", "")) for result in results] == [
        ("00000", ""),
        ("00000", repeat),
        ("00000", repeat),
        ("00001", ""),
    ]


@pytest.mark.parametrize("block", range(8))
def test_a_tar_cut_at_any_block_gives_what_is_whole(tmp_path: Path, block: int) -> None:
    picture = IMAGE.ljust(1_000, b"\0")  # two blocks; with header, caption and its header 5 blocks a sample
    path = write_tar(tmp_path / "a.tar", samples(4, picture))
    path.write_bytes(path.read_bytes()[: (5 + block) * 512])
    results = read_all(open_pairs(path))
    kept = [result.key for result in results if isinstance(result, Pair)]
    assert kept == ["00000", "00001"][: (5 + block) // 5]
    assert results[len(kept) :] == [Rejection(len(kept), "a.tar", DAMAGED)]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_broken_header_in_the_middle_is_not_the_end(tmp_path: Path, format: int) -> None:
    for name in "abc":
        write_tar(tmp_path / f"{name}.tar", samples(4, IMAGE.ljust(1_000, b"\0")), format)
    content = bytearray((tmp_path / "b.tar").read_bytes())
    content[10 * 512 + 100 : 10 * 512 + 200] = b"\xff" * 100
    (tmp_path / "b.tar").write_bytes(content)
    results = read_all(open_pairs(tmp_path))
    assert len(results) == 4 + 3 + 4
    assert results[6] == Rejection(6, "b.tar", DAMAGED)
    assert sum(isinstance(result, Pair) for result in results) == 10


def test_files_that_are_no_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(1))
    (tmp_path / "b.tar").write_bytes(b"")
    (tmp_path / "c.tar").write_bytes(b"no tar" * 1_000)
    write_tar(tmp_path / "d.tar", [])
    results = read_all(open_pairs(tmp_path))
    assert [result.key for result in results] == ["a/00000", "b.tar", "c.tar"]
    assert results[1:] == [Rejection(1, "b.tar", DAMAGED), Rejection(2, "c.tar", DAMAGED)]


def test_a_header_of_negative_size_does_not_loop(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(1), tarfile.GNU_FORMAT)
    member = tarfile.TarInfo("loop.png")
    member.size = -1024
    content = path.read_bytes().rstrip(b"\0")
    content += bytes(-len(content) % 512) + member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    path.write_bytes(content)
    results = read_all(open_pairs(path))
    assert [result.key for result in results] == ["00000", "a.tar"]


def test_links_and_devices_are_no_samples(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(1))
    with tarfile.open(path, "a") as archive:
        for name, kind in (
            ("x.png", tarfile.SYMTYPE),
            ("y.png", tarfile.LNKTYPE),
            ("z.png", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert [record.key for record in open_pairs(path)] == ["00000"]


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "few.tar", samples(500))
    write_tar(tmp_path / "many.tar", samples(4_000))
    peaks = []
    for name, count in (("few.tar", 500), ("many.tar", 4_000)):
        source = open_pairs(tmp_path / name)
        tracemalloc.start()
        assert sum(1 for _ in source) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 20_000  # bytes; the 7,000 headers in between would take two megabytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"text_column": "caption", "kind": "prompts"},
            r"no \.txt and no \.json with a column 'caption'; found: \.json, \.mp4; ",
        ),
        ({"key_column": "id"}, r"no pictures \(\.png"),
        ({"key_column": "id", "kind": "prompts"}, r"no \.json with a column 'id'; .*columns of \.json: text"),
        ({"image_column": "jpg"}, r"have no \.jpg; found"),
        ({"kind": "images"}, r"no pictures .*found: \.json, \.mp4"),
    ],
)
def test_tars_without_captions_or_pictures(tmp_path: Path, options: dict[str, str], message: str) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.mp4", b"film"), ("a.json", b'{"text": "a"}')])
    with pytest.raises(ValueError, match=message):
        open_pairs(path, **options)  # type: ignore[arg-type]


def test_a_named_picture(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.mask.png", b"mask"), ("a.photo.png", IMAGE), ("a.txt", b"a")])
    (record,) = open_pairs(path, image_column="photo.png")
    assert isinstance(read_pair(record, "pairs", Limits()), Pair)


def test_the_fingerprint_follows_the_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(1))
    before = open_pairs(tmp_path).fingerprint
    assert open_pairs(tmp_path / "a.tar").fingerprint == before
    write_tar(tmp_path / "b.tar", samples(1))
    assert open_pairs(tmp_path).fingerprint != before
