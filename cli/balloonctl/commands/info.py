"""info: versions, paths, and where each setting comes from."""

from __future__ import annotations

import os
import sys
from typing import Any

import click
from click.core import ParameterSource

import balloonvq
from balloonctl.command import COMMON, CONFIGURATION, BalloonCommand, command
from balloonctl.config import LOCAL_FILE, Configuration, user_file
from balloonctl.context import App, pass_app

__all__ = ["core_version", "info", "version_line"]


def core_version() -> dict[str, Any]:
    """Version and ABI of the C core; None where it is not there."""
    try:
        told: dict[str, Any] = balloonvq.core_version()
    except ImportError:
        return {"version": None, "abi": None}
    return told


def version_line() -> str:
    """The answer to --version."""
    core = core_version()
    told = f"C core {core['version']}, ABI {core['abi']}" if core["version"] else "C core not told"
    return f"balloonctl {balloonvq.__version__} ({told}, Python {sys.version.split()[0]})"


def _settings(ctx: click.Context, configuration: Configuration) -> list[dict[str, Any]]:
    """Every option of every command that is not at its default, and the global ones."""
    from balloonctl.main import COMMANDS

    root = ctx.find_root()
    rows = []
    for name in COMMON:
        source = root.get_parameter_source(name)
        rows.append(_row((), name, root.params.get(name), source, configuration))
    for name, entry in COMMANDS.items():
        if entry.session_only:
            continue
        found = root.command.get_command(root, name)  # type: ignore[attr-defined]
        common = found.common if isinstance(found, BalloonCommand) else []
        own = [param for param in found.params if isinstance(param, click.Option) and param not in common]
        table = configuration.values.get(name, {})
        if isinstance(found, BalloonCommand):
            configuration.check((name,), [str(param.name) for param in own])
        for param in own:
            variable = f"BALLOONCTL_{name}_{param.name}".upper()
            if os.environ.get(variable):
                rows.append(
                    _row(
                        (name,), param.name, os.environ[variable], ParameterSource.ENVIRONMENT, configuration
                    )
                )
            elif param.name in table:
                rows.append(
                    _row((name,), param.name, table[param.name], ParameterSource.DEFAULT_MAP, configuration)
                )
    return rows


def _row(
    prefix: tuple[str, ...],
    name: str | None,
    value: Any,
    source: ParameterSource | None,
    configuration: Configuration,
) -> dict[str, Any]:
    """One setting and its origin."""
    path = (*prefix, str(name))
    match source:
        case ParameterSource.COMMANDLINE:
            origin = "command line"
        case ParameterSource.ENVIRONMENT:
            origin = "BALLOONCTL_" + "_".join(path).upper()
        case ParameterSource.DEFAULT_MAP:
            origin = str(configuration.files.get(path, "configuration"))
        case _:
            origin = "default"
    return {"name": ".".join(path), "value": None if value is None else str(value), "origin": origin}


def _runtime_dir() -> str | None:
    """Where background machines have their sockets."""
    try:
        from balloonctl import background
    except ImportError:
        return None
    return str(background.runtime_dir())


@command("info")
@pass_app
@click.pass_context
def info(ctx: click.Context, app: App, /) -> int:
    """Show versions, paths, and where each setting comes from."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from balloonctl.render.info import render_info
    from balloonctl.shell_history import history_file

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    configuration: Configuration = ctx.meta[CONFIGURATION]
    needs = ("click", "rich", "prompt_toolkit", "msgspec", "cffi", "bitmath")
    document = {
        "schema": "balloonctl/info/1",
        "versions": {
            "balloonctl": balloonvq.__version__,
            "core": core_version()["version"],
            "core_abi": core_version()["abi"],
            "python": platform.python_version(),
            "system": platform.platform(),
            **{name: installed(name) for name in needs},
        },
        "paths": {
            "program": sys.argv[0],
            "package": os.path.dirname(balloonvq.__file__),  # noqa: PTH120 - a string is what is shown
            "user_configuration": str(user_file()),
            "local_configuration": os.path.abspath(LOCAL_FILE),  # noqa: PTH100
            "configuration_read": [str(path) for path in configuration.read],
            "history": str(history_file()),
            "runtime": _runtime_dir(),
        },
        "settings": _settings(ctx, configuration),
    }
    app.emit(document, render_info)
    return 0
