"""The documentation: what it names is there, and what is made of it is whole. Sphinx (make docs) checks the rest."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from hmac_file_server.command.main import main
from tests.support import need

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.rst"))
TEXTS = [*sorted(ROOT.glob("*.rst")), ROOT / "benchmarks/results.rst", *PAGES]
LINK = re.compile(r"`[^`<]*<([^>`]+)>`__?")
FOLDERS = "benchmarks|contrib|docs|etc|hmac_file_server|newsfragments|tests"
PATH = re.compile(rf"(?<![\w./-])(?:\.\./)*(?:{FOLDERS})/[\w./-]*\w")
SHOWN = re.compile(
    r"(?:^ *\.\. (?:literalinclude|include|image):: |:download:`[^`<]*<)([^\s>]+)(?:$|>`)", re.MULTILINE
)
FRAGMENTS = sorted(path for path in (ROOT / "newsfragments").iterdir() if path.name[0] != ".")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def links(text: Path) -> list[str]:
    """What a text links to beside it."""
    return [target for target in LINK.findall(text.read_text()) if "://" not in target]


@pytest.mark.parametrize("text", TEXTS, ids=name)
def test_what_is_named_is_there(text: Path) -> None:
    """Each file that a text links to, shows or names is in the repository."""
    beside = [text.parent / target for target in links(text) + SHOWN.findall(text.read_text())]
    named = [ROOT / path.replace("../", "") for path in PATH.findall(text.read_text())]
    assert [str(path) for path in beside + named if not path.exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pages_link_by_roles(page: Path) -> None:
    """A page links to others by :doc: and :ref:, which Sphinx checks: as files they are not on the site."""
    assert links(page) == []


def test_every_configuration_file_is_shown() -> None:
    """Each file for others to use is on a page, or can be had from one, as it is tested, and none is copied."""
    shown = {(page.parent / path).resolve() for page in PAGES for path in SHOWN.findall(page.read_text())}
    files = {path for path in (ROOT / "contrib").rglob("*") if path.is_file()} | {ROOT / "etc/config.toml"}
    assert files - shown == {ROOT / "contrib/prometheus/rules_test.yml"}


def types() -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    return [kind["directory"] for kind in settings["type"]]


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=name)
def test_name_of_a_newsfragment(fragment: Path) -> None:
    """ISSUE.TYPE.rst or ISSUE.TYPE.N.rst, with a type that the changelog has: others towncrier passes over."""
    assert re.fullmatch(rf"\d+\.({'|'.join(types())})(\.\d+)?\.rst", fragment.name)
    assert fragment.read_text().strip()


def test_changelog() -> None:
    """towncrier makes the next part of the changelog, with all newsfragments in it."""
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "99.0"]
    made = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "99.0 (" in made
    for fragment in FRAGMENTS:
        assert fragment.read_text().split()[-1] in made


# The manual page


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, str(ROOT / "docs/manpage.py"), str(folder)], check=True)
    return folder / "hmac-file-server.1"


def test_manual_has_all_commands(manual: Path) -> None:
    """Each subcommand that is not hidden has a section, with all its options."""
    text = manual.read_text().replace("\\-", "-")
    for command in main.commands.values():
        if not command.hidden:
            assert f"\n.SS {command.name}\n" in text
            section = text.partition(f"\n.SS {command.name}\n")[2].partition("\n.S")[0]
            given = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
            assert all(option.opts[-1] in section for option in given)


@pytest.mark.parametrize(
    "command",
    [["man", "--warnings", "-l"], ["groff", "-ww", "-man", "-Tutf8"], ["mandoc", "-Tlint"]],
    ids=lambda command: command[0],
)
def test_manual_is_clean(manual: Path, command: list[str]) -> None:
    """man, groff and mandoc find nothing to warn of."""
    need(command[0])
    made = subprocess.run([*command, str(manual)], check=True, capture_output=True, text=True)
    assert made.stderr == ""
    if command[0] == "mandoc":
        assert made.stdout == ""
    else:
        assert "Without a subcommand it runs the daemon." in made.stdout
