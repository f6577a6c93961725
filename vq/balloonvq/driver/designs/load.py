"""Designs of the user: a class in a Python file."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType, ModuleType

from balloonvq.driver.designs.base import Design
from balloonvq.errors import BalloonError, DesignError, InvalidArgument
from balloonvq.runtime.frames import callers
from balloonvq.runtime.watchdog import Watchdog

__all__ = ["load", "run_file"]

#: How long it may take to import a file of the user.
IMPORT_S = 10.0

#: What is called, with the names of its arguments.
_OPERATIONS = {
    "probe": (),
    "fill": ("n",),
    "leak": ("n",),
    "migrate": ("new", "old"),
    "on_oom": (),
    "scan": ("nr",),
    "resize": (),
    "drain": (),
}


def load(name: str) -> type[Design]:
    """The design ``path/to/file.py:ClassName``; the file is run each time.

    Raises:
        InvalidArgument: if the name has no class in it.
        DesignError: if the file cannot be read or run, or has no such design.
    """
    file, _, wanted = name.rpartition(":")
    if not file or not wanted or wanted.endswith(".py"):
        raise InvalidArgument(
            f"{name!r} names a file and no class", hint=f"--design {name.rstrip(':')}:ClassName"
        )
    path = Path(file)
    module = run_file(path, "design", DesignError)
    found = getattr(module, wanted, None)
    if found is None:
        designs = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, Design) and value.__module__ == module.__name__
        ]
        near = difflib.get_close_matches(wanted, designs, cutoff=0.4) or designs[:1]
        raise DesignError(
            f"{path} has no class {wanted}",
            why=f"its designs are {', '.join(designs)}"
            if designs
            else "it has no class that derives from Design",
            hint=f"--design {path}:{near[0]}" if near else "",
        )
    where = f"{path}:{_line(path, wanted)}"
    if not isinstance(found, type) or not issubclass(found, Design):
        raise DesignError(
            f"{where}: {wanted} is no design",
            why="a design is a class that derives from balloonvq.driver.designs.Design",
        )
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise DesignError(
            f"{where}: the design {wanted} lacks {', '.join(missing)}",
            why="a design has fill, leak and migrate",
            hint="derive from a design that has them, such as balloonvq.driver.designs.modern.Modern",
        )
    for operation, arguments in _OPERATIONS.items():
        try:
            inspect.signature(getattr(found, operation)).bind(found, *arguments)
        except TypeError as error:
            raise DesignError(
                f"{path}:{_line(path, operation)}: the design {wanted} has another {operation} than is called",
                why=f"{operation}(self{''.join(f', {name}' for name in arguments)}) is called; {error}",
            ) from None
    if "name" not in vars(found):
        found.name = wanted
    if "summary" not in vars(found):
        found.summary = (found.__doc__ or "").strip().partition("\n")[0]
    if "kernels" not in vars(found):
        found.kernels = "yours"
    return found


def run_file(path: Path, what: str, error_class: type[BalloonError]) -> ModuleType:
    """A file of the user as a module of its own; what it prints goes to stderr, since stdout is for results.

    Args:
        path: the file.
        what: design or scenario.
        error_class: of what is raised.

    Raises:
        BalloonError: of that class, if it cannot be read or run, naming the line.
    """
    try:
        source = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise error_class(f"cannot read the {what} file {path}", why=why or str(error)) from None
    name = f"balloon_{what}_{path.stem}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    before = sys.modules.get(name)
    # Where dataclasses and pickles look for it.
    sys.modules[name] = module
    try:
        with Watchdog(_importing, _too_long, IMPORT_S), redirect_stdout(sys.stderr):
            exec(compile(source, str(path), "exec"), vars(module))  # noqa: S102 - the user's own file, named by the user
    except (Exception, SystemExit) as error:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        raise error_class(
            f"{path}:{_failed_at(error, path)} does not import", why=f"{type(error).__name__}: {why}"
        ) from error
    return module


def _importing(frame: FrameType) -> str | None:
    """The same for as long as a file of the user is imported."""
    return "import" if any(one.f_code is run_file.__code__ for one in callers(frame)) else None


def _too_long(frame: FrameType) -> TimeoutError:
    del frame
    return TimeoutError(f"it has not come to its end in {IMPORT_S:g} s")


def _failed_at(error: BaseException, path: Path) -> int:
    """The line of the file at which it failed."""
    if isinstance(error, SyntaxError) and error.filename == str(path) and error.lineno:
        return error.lineno
    line = 1
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _line(path: Path, name: str) -> int:
    """Where the file defines a name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node.lineno
    return 1
