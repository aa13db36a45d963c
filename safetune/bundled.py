"""Where recipes, data tools and launch configs lie: in the repository, or inside the installed wheel."""

from pathlib import Path

PACKAGE_DIR = Path(__file__).parent
FOLDERS = ("recipes", "data_tools", "launch")


def bundled_path(relative: str) -> Path:
    """Path of a file or folder under recipes/, data_tools/ or launch/, such as `launch/cpu.yaml`.

    A source checkout (also an editable install) answers with the repository's own file, so that edits count;
    an installed wheel with its copy. FileNotFoundError when neither has it.
    """
    repository = PACKAGE_DIR.parent
    root = repository if (repository / "pyproject.toml").is_file() else PACKAGE_DIR / "_bundled"
    path = root / relative
    if Path(relative).parts[:1] not in {(folder,) for folder in FOLDERS} or not path.exists():
        raise FileNotFoundError(
            f"{relative}: safetune bundles no such file; looked in {root}, under {', '.join(FOLDERS)}"
        )
    return path
