"""What README promises, and the pages and pictures that are made from the code."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import click
import jsonschema
import pytest

from balloonctl import failures
from balloonvq import errors

ROOT = Path(__file__).resolve().parent.parent.parent
SCHEMAS = ROOT / "docs/reference/schemas"


def test_readme_is_at_most_a_screen_and_a_half() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 75
    first_screen = "\n".join(lines[:20])
    assert "make try" in first_screen
    assert "make test" in first_screen
    assert "docs/images/tour.svg" in first_screen


def test_architecture_is_under_two_screens() -> None:
    assert len((ROOT / "docs/explanation/architecture.md").read_text().splitlines()) <= 100


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/explanation/architecture.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    path = ROOT / page
    text = path.read_text()
    links = {link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link}
    named = set(re.findall(r"`((?:csrc|vq|cli|docs|tests|scripts)/[\w./-]+)`", text))
    missing = [link for link in links if not (path.parent / link).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_the_recording_shows_the_tour_as_it_is() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/record_tour.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_recording_fetches_nothing() -> None:
    svg = (ROOT / "docs/images/tour.svg").read_text()
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)\S+|@font-face|@import", svg) == []


def test_generated_pages_and_schemas_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/generate_reference.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"stale, run `make generate`:\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
def test_a_schema_is_a_schema(path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text()))


def test_each_error_is_a_valid_document() -> None:
    schema = json.loads((SCHEMAS / "error-1.json").read_text())
    for name in errors.__all__:
        extra = {"errno": 12} if name == "CoreError" else {}
        error = getattr(errors, name)("something happened", why="as it is", hint="do this", **extra)
        jsonschema.validate(error.as_document(), schema)


def error_names() -> set[str]:
    """What `error` can be, by the sources: public subclasses of BalloonError, and names that failures.py writes."""
    bases: dict[str, set[str]] = {}
    for path in (*(ROOT / "vq").rglob("*.py"), *(ROOT / "cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names = {base.id for base in node.bases if isinstance(base, ast.Name)}
                names |= {base.attr for base in node.bases if isinstance(base, ast.Attribute)}
                bases.setdefault(node.name, set()).update(names)
    found = {"BalloonError"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    for node in ast.walk(ast.parse(inspect.getsource(failures))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Failure":
            first = node.args[0]
            if isinstance(first, ast.Name):
                found.add(getattr(failures, first.id))
            elif isinstance(first, ast.Constant):
                found.add(first.value)
    kinds = {name for name, kind in vars(click.exceptions).items() if isinstance(kind, type)}
    click_only = {
        name
        for name in kinds
        if issubclass(kind := getattr(click.exceptions, name), click.ClickException)
        and not issubclass(kind, click.UsageError)
    }
    # Click raises no bare ClickException, we neither; a broken pipe is never printed.
    return {name for name in found | click_only if not name.startswith("_")} - {
        "ClickException",
        "BrokenPipe",
    }


def test_every_class_that_an_error_can_have_is_in_the_reference() -> None:
    names = error_names()
    assert {"Nondeterminism", "ReplayDiffers", "ForeignPeer", "UsageError", "CannotWrite"} <= names
    page = (ROOT / "docs/reference/errors.md").read_text()
    listed = dict(re.findall(r"^\| (?:&emsp;)*`(\w+)` \| (\d+) \|", page, re.MULTILINE))
    assert set(listed) == names
    schema = json.loads((SCHEMAS / "error-1.json").read_text())
    assert set(schema["properties"]["error"]["examples"]) == names
    assert failures.describe(click.UsageError("wrong")).exit_code == int(listed["UsageError"])
    assert failures.describe(click.FileError("name")).exit_code == int(listed["FileError"])


def test_exit_codes_of_errors_are_on_the_page() -> None:
    page = (ROOT / "docs/reference/exit-codes.md").read_text()
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert {getattr(errors, name).exit_code for name in errors.__all__} <= listed


def balloonctl(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "balloonctl", *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


@pytest.mark.parametrize(
    ("schema", "command"),
    [
        ("status-1", ["status"]),
        ("wait-1", ["inflate", "16M"]),
        ("oom-1", ["oom", "1M"]),
        ("stats-1", ["stats"]),
        ("compact-1", ["compact"]),
        ("bench-1", ["bench", "inflate", "--size", "1M", "--runs", "1", "--warmup", "0"]),
    ],
)
def test_documents_of_a_machine_are_valid(schema: str, command: list[str], runtime_dir: Path) -> None:
    balloonctl("start", "--ram", "64M")
    document = json.loads(balloonctl("--json", *command))
    assert document["schema"] == f"balloonctl/{'/'.join(schema.rsplit('-', 1))}"
    jsonschema.validate(document, json.loads((SCHEMAS / f"{schema}.json").read_text()))


def tables_of(name: str) -> list[set[str]]:
    """The first column of each table of a document that is described by hand."""
    page = (ROOT / "docs/reference/json.md").read_text()
    section = page.partition(f"### `{name}`\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\|(.*?)\||(^$)", section, re.MULTILINE)
    tables: list[set[str]] = [set()]
    for cell, blank in rows:
        if blank or not cell:
            tables.append(set())
        tables[-1] |= set(re.findall(r"`([\w-]+)`", cell))
    return [table for table in tables if table]


def test_documents_of_the_commands_have_the_fields_that_the_page_tells(runtime_dir: Path) -> None:
    def fields(*command: str) -> tuple[str, set[str], dict]:
        document = json.loads(balloonctl("--json", *command))
        return document["schema"], set(document) - {"schema"}, document

    commands = [
        ["start", "--ram", "64M"],
        ["inflate", "8M", "--dry-run"],
        ["inflate", "8M", "--no-wait"],
        ["check"],
        ["info"],
        ["ps"],
        ["designs", "split"],
        ["stop"],
    ]
    seen = {}
    for command in commands:
        name, found, seen[command[0]] = fields(*command)
        assert tables_of(name)[0] == found, name
    _, members = tables_of("balloonctl/ps/1")
    assert members - {"trouble", "private"} == set(seen["ps"]["machines"][0])
    _, members = tables_of("balloonctl/designs/1")
    assert members == set(seen["designs"]["designs"][0])
