"""Configuration files as Click's default_map.

``./balloonctl.toml`` wins over ``config.toml`` in the user's configuration
directory. Global options stand at the top, a command's in its table::

    output = "json"

    [start]
    ram = "4G"
    deflate-on-oom = false

A wrong file must not keep `--help` from working, so errors are kept until a
command is run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from balloonvq.errors import InvalidArgument

__all__ = ["LOCAL_FILE", "Configuration", "load", "user_file"]

LOCAL_FILE = "balloonctl.toml"


@dataclass(slots=True)
class Configuration:
    """Everything that was read."""

    values: dict[str, Any] = field(default_factory=dict)
    """Click's default_map: option -> value, command -> {option -> value}."""
    files: dict[tuple[str, ...], Path] = field(default_factory=dict)
    """Which file a value comes from, by its path of keys."""
    read: list[Path] = field(default_factory=list)
    error: InvalidArgument | None = None

    def check(self, prefix: tuple[str, ...], known: Iterable[str], tables: Iterable[str] = ()) -> None:
        """Complains about the first key that is no option, and about an option and a table in each other's place.

        Args:
            prefix: a command and, behind it, its own; empty for the top of the file.
            known: names of its options.
            tables: names of the commands below it.
        """
        tables = set(tables)
        names = {*known, *tables}
        section = " ".join(prefix)
        values: Any = self.values
        for depth, name in enumerate(prefix, 1):
            values = values.get(name, {})
            if not isinstance(values, Mapping):
                raise self._no_table(prefix[:depth])
        for key, value in values.items():
            if key in tables and not isinstance(value, Mapping):
                raise self._no_table((*prefix, key))
            if key in names - tables and isinstance(value, Mapping):
                raise InvalidArgument(
                    f"{self.files[(*prefix, key)]}: {'.'.join((*prefix, key))} has to be a value",
                    why=f"{key} is an option",
                    hint=f"write {key} = VALUE",
                )
            if key not in names:
                from difflib import get_close_matches

                close = get_close_matches(key, names, 1)
                raise InvalidArgument(
                    f"{self.files[(*prefix, key)]}: unknown option {'.'.join((*prefix, key))}",
                    why=f"balloonctl {section}".rstrip() + " has no such option",
                    hint=f"did you mean {close[0]}?"
                    if close
                    else f"balloonctl {section}".rstrip() + " --help",
                )

    def _no_table(self, path: tuple[str, ...]) -> InvalidArgument:
        """What to raise about a command that has a value in place of a table."""
        table = ".".join(path)
        return InvalidArgument(
            f"{self.files[path]}: {table} has to be a table",
            why=f"{' '.join(path)} is a command",
            hint=f"write [{table}] and its options below",
        )

    def listed(self, prefix: tuple[str, ...], name: str) -> None:
        """Makes a list of the single value of an option that may be given more than once."""
        values: Any = self.values
        for part in prefix:
            values = values.get(part, {})
        if isinstance(values.get(name), str):
            values[name] = [values[name]]


def user_file() -> Path:
    """The user's configuration file, there or not."""
    base = os.environ.get("XDG_CONFIG_HOME")
    if base and os.path.isabs(base):  # noqa: PTH117 - what platformdirs does, without its 15 ms in each command
        return Path(base) / "balloonctl" / "config.toml"
    if os.name == "posix" and os.uname().sysname == "Linux":
        return Path.home() / ".config" / "balloonctl" / "config.toml"
    import platformdirs

    return platformdirs.user_config_path("balloonctl") / "config.toml"


def load() -> Configuration:
    """Reads both files; what is wrong with them is kept in `error`."""
    configuration = Configuration()
    for path in (user_file(), Path(LOCAL_FILE)):
        try:
            _merge(configuration, path)
        except InvalidArgument as error:
            configuration.error = error
            configuration.values = {}
            break
    return configuration


def _merge(configuration: Configuration, path: Path) -> None:
    """Reads one file over what is there."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} cannot be read", why=str(error)) from error
    import tomllib

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(
            f"{path} is not TOML", why=str(error), hint="https://toml.io shows the format"
        ) from error
    configuration.read.append(path)
    _merge_table(configuration, (), configuration.values, document, path)


def _merge_table(
    configuration: Configuration,
    prefix: tuple[str, ...],
    into: dict[str, Any],
    table: Mapping[str, Any],
    path: Path,
) -> None:
    """Puts a table over what is there, and remembers which file each key came from."""
    for key, value in table.items():
        name = key.replace("-", "_")
        if isinstance(value, dict):
            known = into.get(name)
            inner: dict[str, Any] = known if isinstance(known, dict) else {}
            into[name] = inner
            _merge_table(configuration, (*prefix, name), inner, value, path)
        else:
            into[name] = value
        configuration.files[*prefix, name] = path
