"""What `data` may be, and what is said where it is none of it."""

from pathlib import Path

import pytest

from safetune.pairs import Kind, open_pairs
from safetune.pairs.folders import ImageFolder, PictureFolder
from safetune.pairs.lines import PromptFile
from tests.pairs.damaged import content_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}\n')
    (tmp_path / "a.png").write_bytes(content_of("sound"))
    (tmp_path / "a.txt").write_text("a cat\n")
    return tmp_path


def test_the_reader_follows_what_is_there(folder: Path) -> None:
    assert isinstance(open_pairs(folder), ImageFolder)
    assert isinstance(open_pairs(str(folder), kind="images"), ImageFolder)
    assert isinstance(open_pairs(folder / "a.txt", kind="prompts"), PromptFile)
    (folder / "metadata.jsonl").unlink()
    assert isinstance(open_pairs(folder, kind="images"), PictureFolder)


@pytest.mark.parametrize("kind", ["pairs", "prompts"])
def test_a_folder_without_anything_to_read_is_listed(tmp_path: Path, kind: Kind) -> None:
    for number in range(12):
        (tmp_path / f"{number:02d}.png").write_bytes(content_of("sound"))
    (tmp_path / "00").mkdir()
    with pytest.raises(ValueError, match=f"holds nothing to read {kind} from") as caught:
        open_pairs(tmp_path, kind=kind)
    text = str(caught.value)
    assert "found: 00.png, 00/, 01.png, 02.png, 03.png, 04.png, 05.png, 06.png and 5 more" in text
    assert "a folder with metadata.jsonl, with *.parquet or with *.tar" in text


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="from; found: nothing; allowed: a folder of pictures"):
        open_pairs(tmp_path, kind="images")


def test_two_kinds_of_source_in_one_folder(folder: Path) -> None:
    (folder / "a.tar").touch()
    with pytest.raises(ValueError, match=r"holds metadata.jsonl and \*.tar: keep one of them"):
        open_pairs(folder)


def test_plain_pictures_have_no_key_column(folder: Path) -> None:
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="leave out the key column 'id'"):
        open_pairs(folder, kind="images", key_column="id")


@pytest.mark.parametrize(
    "data",
    [
        "./nowhere",
        "/nowhere/at/all",
        "pool.parquet",
        "a/b/c",
        "pipe:cat /etc/passwd",
        "http://a.b/c",
        "../a",
        "",
    ],
)
def test_paths_that_are_not_there(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no such file or folder|nothing to read") as caught:
        open_pairs(data)
    assert "a data set of the hub" in str(caught.value)


def test_a_path_is_never_a_name_of_the_hub() -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        open_pairs(Path("owner/name"))


@pytest.mark.parametrize(("name", "kind"), [("a.txt", "pairs"), ("a.txt", "images"), ("a.png", "images")])
def test_files_of_another_kind(folder: Path, name: str, kind: Kind) -> None:
    with pytest.raises(ValueError, match=f"{kind} are not read from such a file; allowed: "):
        open_pairs(folder / name, kind=kind)


def test_only_tars_are_named_by_patterns(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"only names of \.tar files are expanded"):
        open_pairs(
            f"{folder}/{{a,metadata}}.{{txt,jsonl}}".replace("{a,metadata}.{txt,jsonl}", "{a.png,a.txt}")
        )


def test_an_unknown_kind(folder: Path) -> None:
    with pytest.raises(ValueError, match="no kind 'captions'; allowed: pairs, prompts, images"):
        open_pairs(folder, kind="captions")  # type: ignore[arg-type]
