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

    def check(self, section: str | None, known: Iterable[str]) -> None:
        """Complains about the first key that is no option.

        Args:
            section: a command, None for the top of the file.
            known: names of its options and, at the top, of the commands.
        """
        prefix = () if section is None else (section,)
        names = set(known)
        values = self.values if section is None else self.values.get(section, {})
        if not isinstance(values, Mapping):
            raise InvalidArgument(
                f"{self.files[prefix]}: {section} has to be a table",
                why=f"{section} is a command",
                hint=f"write [{section}] and its options below",
            )
        for key in values:
            if key not in names:
                from difflib import get_close_matches

                close = get_close_matches(key, names, 1)
                raise InvalidArgument(
                    f"{self.files[(*prefix, key)]}: unknown option {'.'.join((*prefix, key))}",
                    why=f"balloonctl {section or ''}".rstrip() + " has no such option",
                    hint=f"did you mean {close[0]}?"
                    if close
                    else f"balloonctl {section or ''}".rstrip() + " --help",
                )


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
    for key, value in document.items():
        name = key.replace("-", "_")
        if isinstance(value, dict):
            known = configuration.values.get(name)
            table = known if isinstance(known, dict) else configuration.values.setdefault(name, {})
            for inner, setting in value.items():
                table[inner.replace("-", "_")] = setting
                configuration.files[name, inner.replace("-", "_")] = path
        else:
            configuration.values[name] = value
        configuration.files[name,] = path
