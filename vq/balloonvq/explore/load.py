"""Scenarios by name: shipped, a combination of actors, or ``path/to/file.py:NAME``."""

from __future__ import annotations

import ast
import difflib
from dataclasses import replace
from pathlib import Path

from balloonvq.driver.designs import is_file
from balloonvq.driver.designs.load import run_file
from balloonvq.errors import InvalidArgument, ScenarioError
from balloonvq.explore import scenarios as shipped
from balloonvq.explore.scenarios import PARTS, Scenario, check_scenario, combination

__all__ = ["find_scenario"]


def find_scenario(name: str) -> Scenario:
    """The scenario of that name.

    Args:
        name: a key of `SCENARIOS`, a combination such as ``fill+oom+compaction``, or ``path/to/file.py:NAME``.

    Raises:
        InvalidArgument: if there is none, naming the near matches.
        ScenarioError: if the file cannot be read or run, or has no such scenario, naming the line.
    """
    found = shipped.SCENARIOS.get(name) or combination(name)
    if found is not None:
        return found
    if is_file(name):
        return _load(name)
    if "+" in name:
        groups = " + ".join("|".join(group) for group in PARTS)
        raise InvalidArgument(
            f"there is no combination {name!r}",
            why=f"one is made of 2 to 4 actors, at most one of each group, in this order: {groups}",
            hint="--scenario fill+oom+compaction",
        )
    near = difflib.get_close_matches(name, shipped.SCENARIOS, cutoff=0.5)
    raise InvalidArgument(
        f"there is no scenario {name!r}",
        why=f"near it are {', '.join(near)}" if near else f"none of the {len(shipped.SCENARIOS)} is near it",
        hint=f"--scenario {near[0]}; --list shows all" if near else "balloonctl explore --list shows all",
    )


def _load(name: str) -> Scenario:
    file, _, wanted = name.rpartition(":")
    if not file or not wanted or wanted.endswith(".py"):
        raise InvalidArgument(
            f"{name!r} names a file and no scenario", hint=f"--scenario {name.rstrip(':')}:NAME"
        )
    path = Path(file)
    module = run_file(path, "scenario", ScenarioError)
    found = vars(module).get(wanted)
    if found is None:
        known = [key for key, value in vars(module).items() if isinstance(value, Scenario)]
        near = difflib.get_close_matches(wanted, known, cutoff=0.4) or known[:1]
        raise ScenarioError(
            f"{path} has no scenario {wanted}",
            why=f"its scenarios are {', '.join(known)}" if known else "no name in it is a Scenario",
            hint=f"--scenario {path}:{near[0]}" if near else "",
        )
    where = f"{path}:{_line(path, wanted)}"
    if not isinstance(found, Scenario):
        raise ScenarioError(
            f"{where}: {wanted} is no scenario",
            why=f"it is of {type(found).__name__}; a scenario is a balloonvq.explore.scenarios.Scenario",
        )
    try:
        check_scenario(found)
    except InvalidArgument as error:
        raise ScenarioError(f"{where}: {error.what}", why=error.why, hint=error.hint) from None
    return replace(found, file=name)


def _line(path: Path, name: str) -> int:
    """Where the file gives a value to a name for the last time."""
    line = 1
    for node in ast.parse(path.read_text()).body:
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            line = node.lineno
    return line
