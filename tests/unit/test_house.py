"""The rules of the house, checked on the source: layers point one way, and nothing names a machine or a registry."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
VQ = ROOT / "vq/balloonvq"
CSRC = ROOT / "csrc"

#: What a folder of Python must not import, at any depth and in any function.
BANNED = {
    "vq/balloonvq": {"balloonctl", "click", "prompt_toolkit", "rich"},
    "vq/balloonvq/driver": {
        "asyncio",
        "concurrent",
        "multiprocessing",
        "os",
        "queue",
        "random",
        "threading",
        "time",
    },
    "vq/balloonvq/guest": {
        "asyncio",
        "concurrent",
        "multiprocessing",
        "os",
        "queue",
        "random",
        "threading",
        "time",
    },
}


def imports(path: Path) -> set[str]:
    """The top-level names of all modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("folder", BANNED)
def test_no_python_file_imports_from_above(folder: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(bad)
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (bad := imports(path) & BANNED[folder])
    }
    assert wrong == {}


@pytest.mark.parametrize("folder", BANNED)
def test_ruff_bans_what_this_test_bans(folder: str) -> None:
    path = ROOT / folder / "ruff.toml"
    text = (path if path.exists() else path.parent.parent / "ruff.toml").read_text()
    named = set(re.findall(r'^"(\w+)"\.msg', text, re.MULTILINE))
    assert BANNED[folder] - named <= {"multiprocessing"}


def test_the_command_has_no_virtio_logic() -> None:
    # The command reaches the C core through balloonvq's objects, never through the binding.
    wrong = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "cli").rglob("*.py"))
        if re.search(r"balloonvq\.(ffi|_core)|import cffi|from cffi", path.read_text())
    ]
    assert wrong == []


def test_c_knows_nothing_of_python() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in sorted(CSRC.rglob("*.[ch]"))
        if re.search(r"#\s*include\s*[<\"](Python|py|cffi|ffi)\w*\.h|\bPy[A-Z]\w+\(", path.read_text())
    ]
    assert wrong == []


@pytest.mark.parametrize("call", ["printf", "fprintf", "exit", "abort", "perror"])
def test_the_core_neither_prints_nor_exits(call: str) -> None:
    wrong = [
        f"{path.name}:{number}"
        for path in sorted(CSRC.glob("*.c"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(rf"(?<![\w_]){call}\s*\(", line) and not line.lstrip().startswith(("*", "/*", "//"))
    ]
    assert wrong == []


def declared(text: str) -> set[str]:
    """The names of the functions that C text declares."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    text = re.sub(r"\{[^{}]*\}", " ", text)
    return set(re.findall(r"\b([a-z]\w*)\s*\([^()]*\)\s*;", text))


def test_each_function_python_uses_is_declared_in_a_header() -> None:
    headers = set().union(*(declared(path.read_text()) for path in CSRC.glob("*.h")))
    cdef = declared((CSRC / "balloonvq.cdef.txt").read_text())
    assert len(cdef) > 50
    assert set() == cdef - headers


def test_each_header_python_uses_is_included_by_the_binding() -> None:
    sections = set(re.findall(r"/\* (\w+\.h) \*/", (CSRC / "balloonvq.cdef.txt").read_text()))
    included = set(re.findall(r'#include "(\w+\.h)"', (CSRC / "balloonvq.csrc.c").read_text()))
    assert sections <= included


def tracked() -> list[Path]:
    """The files of the repository, new ones included; text only."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


#: Fragments are joined here so that this file does not match itself.
FORBIDDEN = {
    "a path of somebody's machine": re.compile(
        "|".join(["/ho" + "me/", "/ro" + "ot/", "/Us" + "ers/", "/wo" + "rk/"])
    ),
    "a registry's host": re.compile(
        "|".join(["pypi" + r"\.org", "pythonhosted" + r"\.org", "deb" + r"\.debian\.org"])
    ),
    "a registry's option": re.compile(
        "|".join(["--index" + "-url", "--extra-index" + "-url", "--find" + "-links"])
    ),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names(what: str) -> None:
    wrong = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if found := FORBIDDEN[what].search(text):
            wrong.append(f"{path.relative_to(ROOT)}: {found[0]}")
    assert wrong == []


def test_there_is_no_lock_file() -> None:
    # Lock files hold the hosts they were resolved from.
    locks = {"uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "pylock.toml", "package-lock.json"}
    assert [path for path in tracked() if path.name in locks] == []


def test_each_public_name_of_a_module_exists_and_is_documented() -> None:
    wrong = []
    for path in sorted((ROOT / "vq").rglob("*.py")):
        tree = ast.parse(path.read_text())
        listed = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
        ]
        if not listed:
            continue
        defined = {
            node.name: node
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
        wrong += [
            f"{path.relative_to(ROOT)}: {name} has no docstring"
            for name in listed[0]
            if name in defined and not ast.get_docstring(defined[name])
        ]
    assert wrong == []
