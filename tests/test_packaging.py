"""The wheel carries all that the installed command needs, and finds it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from safetune.bundled import bundled_path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A folder that holds what the wheel would install."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "--quiet",
    ]
    subprocess.run([*build, "--wheel-dir", folder, repository], check=True, stdin=subprocess.DEVNULL)
    (wheel,) = folder.glob("safetune_diffusion-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def tracked(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in paths}


@pytest.mark.parametrize("folder", ["recipes", "data_tools", "launch"])
def test_wheel_bundles_the_top_level_folders(installed: Path, repository: Path, folder: str) -> None:
    assert tracked(installed / "safetune" / "_bundled" / folder) == tracked(repository / folder)
    assert not (installed / folder).exists()


def test_wheel_holds_the_package_with_its_data(installed: Path, repository: Path) -> None:
    bundled = {path for path in tracked(installed / "safetune") if path.startswith("_bundled/")}
    files = tracked(installed / "safetune") - bundled
    assert files == tracked(repository / "safetune")
    assert {"py.typed", "tinysd/sprites/cartoon.png", "tinysd/sprites/flat.png"} <= files


def test_wheel_holds_the_licence_and_the_command(installed: Path) -> None:
    (information,) = installed.glob("*.dist-info")
    assert tracked(information / "licenses") == {"LICENSE", "NOTICE"}
    assert "safetune = safetune.cli:main" in (information / "entry_points.txt").read_text()


def test_installed_wheel_finds_its_bundled_files(installed: Path, tmp_path: Path) -> None:
    code = "from safetune.bundled import bundled_path; print(bundled_path('launch/cpu.yaml'))"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(answer.stdout.strip()) == installed / "safetune" / "_bundled" / "launch" / "cpu.yaml"


def test_checkout_finds_the_repositorys_own_files(repository: Path) -> None:
    assert bundled_path("launch/cpu.yaml") == repository / "launch" / "cpu.yaml"
    assert bundled_path("recipes") == repository / "recipes"


@pytest.mark.parametrize("relative", ["launch/none.yaml", "README.md", "", "/etc/hostname"])
def test_what_is_not_bundled_is_an_error(relative: str) -> None:
    with pytest.raises(FileNotFoundError, match="bundles no such file"):
        bundled_path(relative)
