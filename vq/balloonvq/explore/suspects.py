"""What in a user's file may be why a design did something else with the same observed values.

Only what is written in the file is looked at, not what runs, so each finding is a guess: a list that one task alone
uses is as good as any local variable.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

from balloonvq.driver.designs import Design
from balloonvq.explore.world import FROM_RUNTIME, Nondeterminism
from balloonvq.runtime.controlled import SHIPPED

__all__ = ["suspected", "suspects"]

#: Where chance, time and locks come from that are not the runtime's.
_MODULES: Final = frozenset(
    {"_random", "_thread", "datetime", "random", "secrets", "threading", "time", "uuid"}
)

#: Calls and displays that make something that can be changed.
_MAKERS: Final = frozenset(
    {"Counter", "OrderedDict", "bytearray", "count", "defaultdict", "deque", "dict", "iter", "list", "set"}
)
_DISPLAYS: Final = (ast.List, ast.ListComp, ast.Dict, ast.DictComp, ast.Set, ast.SetComp, ast.GeneratorExp)
_CONTAINERS: Final = (list, dict, set, bytearray)

#: So many are named.
_NAMED: Final = 3


@contextlib.contextmanager
def suspected(design: type[Design]) -> Iterator[None]:
    """Adds to a `Nondeterminism` of unknown cause what in the design's file may be that."""
    try:
        yield
    except Nondeterminism as error:
        found = suspects(design) if error.hint == FROM_RUNTIME else []
        if found:
            error.hint = f"perhaps it is {' or '.join(found[:_NAMED])}; {error.hint}"
        raise


def suspects(design: type[Design]) -> list[str]:
    """What may not be a function of what the design observes, in words, each with its first ``file:line``."""
    found: list[str] = []
    for names in _files(design):
        file = names["__file__"]
        try:
            tree = ast.parse(Path(file).read_text())
        except (OSError, ValueError, SyntaxError):
            # It has changed since it was loaded.
            continue
        lines = _Look(tree, names).lines
        found += [f"{what} at {file}:{line}" for what, line in sorted(lines.items(), key=lambda one: one[1])]
    return found


def _files(design: type[Design]) -> Iterator[dict[str, Any]]:
    """The global names of the user's files that a design and its bases are from."""
    known = set(SHIPPED)
    for base in design.__mro__:
        for function in vars(base).values():
            if isinstance(function, FunctionType):
                names = function.__globals__
                if (
                    names.get("__file__", "?") not in known
                    and names["__file__"] == function.__code__.co_filename
                ):
                    known.add(names["__file__"])
                    yield names


class _Look(ast.NodeVisitor):
    """Looks through the functions of a file.

    Args:
        tree: the file.
        names: its global names.

    Attributes:
        lines: what was found, each with its first line.
    """

    def __init__(self, tree: ast.Module, names: dict[str, Any]) -> None:
        self.lines: dict[str, int] = {}
        self._names = names
        nodes = list(ast.walk(tree))
        self._rebound = {name for node in nodes if isinstance(node, ast.Global) for name in node.names}
        self._module = {
            name.id
            for statement in tree.body
            if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign)
            for name in ast.walk(statement)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        }
        #: Attributes in which functions put what can be changed.
        self._made = {
            target.attr
            for node in nodes
            if isinstance(node, ast.Assign | ast.AnnAssign) and _makes(node.value)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Attribute)
        }
        classes = [value for value in names.values() if self._is_own_class(value)]
        #: Attributes of classes that hold what can be changed.
        self._shared = {
            name
            for value in classes
            for name, held in vars(value).items()
            if isinstance(held, _CONTAINERS) and name not in {"options", *self._made}
        }
        #: Attributes of classes that functions set again.
        self._set = {
            node.attr
            for node in nodes
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and self._is_class(node.value)
        }
        self._local: set[str] = set()
        self._function = ""
        self.visit(tree)

    def _is_own_class(self, value: object) -> bool:
        return isinstance(value, type) and value.__module__ == self._names.get("__name__")

    def _is_class(self, node: ast.expr) -> bool:
        """Whether an expression is a class of this file: its name, type(self) or self.__class__."""
        if isinstance(node, ast.Name):
            return node.id == "cls" or self._is_own_class(self._names.get(node.id))
        if isinstance(node, ast.Call):
            return isinstance(node.func, ast.Name) and node.func.id == "type" and len(node.args) == 1
        return isinstance(node, ast.Attribute) and node.attr == "__class__"

    def _found(self, what: str, node: ast.expr) -> None:
        self.lines[what] = min(node.lineno, self.lines.get(what, node.lineno))

    # -- nodes -------------------------------------------------------------------

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = self._local, self._function
        inside = list(ast.walk(node))
        bound = {one.arg for one in inside if isinstance(one, ast.arg)}
        bound |= {one.id for one in inside if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
        self._local = self._local | (bound - self._rebound)
        self._function = self._function or node.name
        for statement in node.body:
            self.visit(statement)
        self._local, self._function = outer

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if self._function and not self._look_at_attribute(node):
            self.visit(node.value)

    def visit_Name(self, node: ast.Name) -> None:
        if not self._function or node.id in self._local:
            return
        value = self._names.get(node.id)
        if node.id in self._rebound or (node.id in self._module and _changes(value)):
            self._found(f"the global variable {node.id}", node)
        elif _from_outside(value):
            self._found(node.id, node)
        elif node.id in {"hash", "id"} and node.id not in self._names:
            self._found(f"{node.id}()", node)

    def visit_For(self, node: ast.For) -> None:
        self._ordered(node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._ordered(node.iter)
        self.generic_visit(node)

    def _ordered(self, node: ast.expr) -> None:
        called = node.func if isinstance(node, ast.Call) else None
        makes = isinstance(called, ast.Name) and called.id in {"frozenset", "set"}
        if self._function and (makes or isinstance(node, ast.Set | ast.SetComp)):
            self._found("the order of a set", node)

    def _look_at_attribute(self, node: ast.Attribute) -> bool:
        """Whether anything is to be said of an attribute as a whole."""
        root: ast.expr = node
        while isinstance(root, ast.Attribute):
            root = root.value
        module = (
            self._names.get(root.id) if isinstance(root, ast.Name) and root.id not in self._local else None
        )
        if isinstance(module, ModuleType) and module.__name__ in _MODULES:
            self._found(ast.unparse(node), node)
        elif (self._is_class(node.value) and node.attr in self._set | self._shared) or (
            isinstance(node.value, ast.Name) and node.value.id == "self" and node.attr in self._shared
        ):
            self._found(f"the class attribute {node.attr}", node)
        elif (
            isinstance(node.value, ast.Name)
            and node.attr in self._made
            and self._function not in {"__init__", "probe"}
        ):
            self._found(f"what {ast.unparse(node)} holds", node)
        else:
            return False
        return True


def _makes(node: ast.expr | None) -> bool:
    """Whether an expression makes something that can be changed."""
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return name in _MAKERS
    return isinstance(node, _DISPLAYS)


def _changes(value: object) -> bool:
    """Whether a value can be changed in place, or is none of those that cannot."""
    if isinstance(value, tuple):
        return any(map(_changes, value))
    return value is not None and not isinstance(
        value, int | float | str | bytes | frozenset | type | FunctionType | ModuleType
    )


def _from_outside(value: object) -> bool:
    """Whether a function or class is one of chance, time or threads."""
    bound = getattr(value, "__self__", None)
    module = type(bound).__module__ if bound is not None and not isinstance(bound, ModuleType) else None
    return callable(value) and (module or getattr(value, "__module__", None)) in _MODULES
