"""Each command in the documentation names files, make targets, subcommands and options that exist."""

import re
import shlex
from pathlib import Path

import pytest

from safetune.cli import SCRIPTS, build_parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("recipes/", "data_tools/", "launch/", "benchmarks/", "tests/", "docs/")


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return sorted(set(found))


def words_of(command: str) -> list[str]:
    """Words of a command without the variables set before it."""
    words = shlex.split(command, comments=True)
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    return words


def test_the_readme_shows_the_main_commands() -> None:
    shown = {" ".join(words_of(command)[:2]) for command in commands()}
    assert shown >= {
        "make demo",
        "make test",
        "safetune label",
        "accelerate launch",
        "safetune export",
        "safetune evaluate",
    }


@pytest.mark.parametrize("command", commands())
def test_command(command: str) -> None:
    program, *rest = words_of(command)
    for word in rest:
        if word.startswith(FOLDERS):
            assert (ROOT / word).exists(), f"{word} is not in the repository"
    if program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif program == "safetune" and rest[0] in SCRIPTS:
        source = (ROOT / SCRIPTS[rest[0]][0]).read_text()
        for word in rest[1:]:
            name = word[2:].split("=")[0]
            known = f'"--{name}"' in source or f"    {name.replace('-', '_')}: " in source
            assert known or word[:2] != "--", f"safetune {rest[0]} has no {word}"
    elif program == "safetune":
        build_parser().parse_args(rest)  # exits on a subcommand, option or argument that it does not know
    else:
        assert program in ("accelerate", "pip", "python", "git"), f"teach this test about {program}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
