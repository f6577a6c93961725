"""completion: the script that makes a shell complete our command line."""

from __future__ import annotations

import click

from balloonctl.command import command
from balloonvq.errors import InternalError

__all__ = ["completion"]


@command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the completion script of a shell.

    \b
      bash:  eval "$(balloonctl completion bash)"       in ~/.bashrc
      zsh:   eval "$(balloonctl completion zsh)"        in ~/.zshrc
      fish:  balloonctl completion fish | source        in config.fish
    """  # noqa: D301 - a real backspace is click's mark for lines that stay as they are
    from click.shell_completion import get_completion_class

    from balloonctl.main import main

    kind = get_completion_class(shell)
    if kind is None:
        raise InternalError(f"Click has no completion for {shell}")
    click.echo(kind(main, {}, "balloonctl", "_BALLOONCTL_COMPLETE").source())
    return 0
