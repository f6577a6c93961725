"""The group of commands, and the entry point.

A command's module is imported when the command is run, so that `--help` needs
neither Rich nor prompt_toolkit, and `status` does not pay for the shell.
"""

from __future__ import annotations

try:
    import gc
    import os
    import signal
    import sys
    from collections.abc import Callable, Mapping, Sequence
    from importlib import import_module
    from typing import Any, NamedTuple, NoReturn

    import click

    from balloonctl import config
    from balloonctl.command import CONFIGURATION, changes, global_options
    from balloonctl.context import App, Settings, Voice, colour_wanted
    from balloonctl.failures import EXIT_CODES, Leave, report
    from balloonctl.output import Format
    from balloonctl.streams import prepare, silence
except KeyboardInterrupt:  # Ctrl-C while Python still reads files
    raise SystemExit(130) from None

__all__ = ["COMMANDS", "Entry", "execute", "main", "run"]

PROGRAM = "balloonctl"

#: With it a shell asks what could stand at the cursor.
COMPLETE_VARIABLE = "_BALLOONCTL_COMPLETE"

#: Where a context notes whether it is a line of a session.
_IN_SESSION = "balloonctl.session"


class Entry(NamedTuple):
    """A command that has not been imported."""

    section: str
    module: str
    """Below balloonctl.commands; the function has the command's name."""
    help: str
    """Its line in the list of commands."""
    attribute: str = ""
    """Name of the function where it is not the command's."""
    session_only: bool = False
    """Makes sense inside a shell or a script only."""


_MACHINES, _BALLOON, _LOOK, _SESSION, _TOOL = (
    "Machines",
    "The balloon",
    "What it does",
    "Shell and scripts",
    "The tool",
)

COMMANDS: dict[str, Entry] = {
    "start": Entry(_MACHINES, "machines", "Start a machine in the background."),
    "serve": Entry(_MACHINES, "serve", "Offer the balloon to a guest elsewhere, over vhost-user."),
    "ps": Entry(_MACHINES, "machines", "List the machines that run."),
    "stop": Entry(_MACHINES, "machines", "End a machine, or all."),
    "inflate": Entry(_BALLOON, "resize", "Make the balloon larger BY a size: takes memory from the guest."),
    "deflate": Entry(
        _BALLOON, "resize", "Make the balloon smaller BY a size: gives memory back to the guest."
    ),
    "target": Entry(_BALLOON, "resize", "Make the balloon as large AS a size, whatever it is now."),
    "oom": Entry(_BALLOON, "oom", "Let a guest task allocate until memory is out."),
    "compact": Entry(_BALLOON, "compact", "Let the guest's compaction move balloon pages."),
    "status": Entry(_LOOK, "status", "Show where the balloon stands, and all counters."),
    "stats": Entry(_LOOK, "stats", "Show the statistics that the guest sent."),
    "watch": Entry(_LOOK, "watch", "Show the counters live."),
    "events": Entry(_LOOK, "events", "Print events as they come, a JSON object a line."),
    "check": Entry(_LOOK, "compact", "Let the guest's tasks verify the content of their pages."),
    "expect": Entry(_LOOK, "scripting", "Compare a figure of the status; exit 1 if it differs."),
    "shell": Entry(_SESSION, "shell", "Type commands at a prompt, on a machine of its own.", "shell_command"),
    "run": Entry(_SESSION, "scripting", "Run the commands in a file.", "run_command"),
    "sleep": Entry(_SESSION, "scripting", "Let time pass on the machine's clock.", session_only=True),
    "echo": Entry(_SESSION, "scripting", "Print words.", session_only=True),
    "help": Entry(_SESSION, "scripting", "Explain the commands, or one.", "help_command"),
    "exit": Entry(_SESSION, "scripting", "Leave the session.", "exit_command", session_only=True),
    "bench": Entry(_TOOL, "bench", "Measure, as ratios to what cannot be cheaper."),
    "explore": Entry(_TOOL, "explore", "Look at every interleaving of a locking design: proof or bug."),
    "replay": Entry(_TOOL, "replay", "Show a schedule that explore found, from its string."),
    "designs": Entry(_TOOL, "designs", "List the locking designs, or explain one."),
    "info": Entry(_TOOL, "info", "Show versions, paths, and where each setting comes from."),
    "completion": Entry(_TOOL, "completion", "Print the completion script of a shell."),
}


def _epilog() -> str:
    """The exit codes, for the end of the help."""
    rows = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES)
    return (
        f"\b\nExit codes:\n{rows}\n\n\b\nWithout a command: a shell on a terminal, else the script on stdin."
    )


class BalloonGroup(click.Group):
    """Imports a command when it is needed, and ends every run with our exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        inside = ctx.meta.get(_IN_SESSION, False)
        return [name for name, entry in COMMANDS.items() if inside or not entry.session_only]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command's object; this imports it."""
        entry = COMMANDS.get(cmd_name)
        if entry is None or (entry.session_only and not ctx.meta.get(_IN_SESSION, False)):
            return None
        module = import_module(f"balloonctl.commands.{entry.module}")
        found: click.Command = getattr(module, entry.attribute or cmd_name)
        found.short_help = entry.help
        return found

    def unknown(self, ctx: click.Context, name: str) -> str:
        """What to say about a name that is no command: those that it may have been meant for."""
        if name in COMMANDS:
            return f"{name!r} works in a shell or a script only"
        from difflib import get_close_matches

        names = self.list_commands(ctx)
        near = get_close_matches(name, names, n=3, cutoff=0.65) or [
            known for known in names if known.startswith(name)
        ]
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"no such command: {name!r}{meant}"

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names, or an error that names its neighbours."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            raise click.UsageError(self.unknown(ctx, name), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table alone: nothing is imported for it."""
        names = self.list_commands(ctx)
        width = max(map(len, names))
        for section in dict.fromkeys(COMMANDS[name].section for name in names):
            rows = [
                (name.ljust(width), COMMANDS[name].help)
                for name in names
                if COMMANDS[name].section == section
            ]
            with formatter.section(section):
                formatter.write_dl(rows)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Reads the configuration before the options, and tells a session's line from a command line."""
        obj = extra.get("obj")
        configuration = getattr(obj, "configuration", None) or config.load()
        settings = {"default_map": configuration.values, **self.context_settings, **extra}
        ctx = click.Context(self, info_name=info_name, parent=parent, **settings)
        ctx.meta[CONFIGURATION] = configuration
        ctx.meta[_IN_SESSION] = hasattr(obj, "dispatch")
        with ctx.scope(cleanup=False):
            self.parse_args(ctx, args)
        return ctx

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command line; in standalone mode every ending has our exit code.

        Click's own handling of exceptions is left out: it knows other exit codes, and takes EPIPE for itself.
        """
        del prog_name
        argv = list(sys.argv[1:] if args is None else args)

        def call() -> Any:
            instruction = os.environ.get(complete_var or COMPLETE_VARIABLE)
            if instruction and standalone_mode:
                from click.shell_completion import add_completion_class, shell_complete

                from balloonctl.bash_completion import Bash

                add_completion_class(Bash)
                return shell_complete(self, extra, PROGRAM, COMPLETE_VARIABLE, instruction)
            try:
                with self.make_context(PROGRAM, list(argv), **extra) as ctx:
                    return self.invoke(ctx)
            except click.exceptions.Exit as ending:
                return ending.exit_code

        if not standalone_mode:
            return call()
        sys.exit(execute(call, argv))


def _names_a_file(argv: Sequence[str], position: int) -> bool:
    """Whether the --json at this position has a FILE: that of a benchmark does, unless an option follows."""
    before, after = argv[:position], argv[position + 1 : position + 2]
    return "bench" in before and "compare" not in before and bool(after) and not after[0].startswith("-")


def _voice_of(argv: Sequence[str]) -> Voice:
    """How to speak about a command line that may not even have been parsed."""
    output, color = Format.TABLE, "auto"
    environment = os.environ.get("BALLOONCTL_OUTPUT", "")
    if environment in {form.value for form in Format}:
        output = Format(environment)
    for position, word in enumerate(argv):
        following = argv[position + 1] if position + 1 < len(argv) else ""
        name, _, value = word.partition("=")
        value = value or following
        if (word == "--json" and not _names_a_file(argv, position)) or (
            name == "--output" and value in {"json", "jsonl"}
        ):
            output = Format.JSON
        elif name == "--color" and value in {"always", "never"}:
            color = value
    return Voice(Settings(output=output, color=color))


def execute(
    call: Callable[[], Any],
    argv: Sequence[str],
    voice: Voice | None = None,
    extra: Mapping[str, Any] | None = None,
) -> int:
    """Runs something that may fail in any way.

    Args:
        call: what to run; an int that it returns is its exit code.
        argv: its command line, to find out how to speak when it fails early.
        voice: how to speak otherwise.
        extra: further members for the error's JSON object.

    Returns:
        The exit code.
    """
    try:
        value = call()
        sys.stdout.flush()
    except Leave:
        raise
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - the last door: Ctrl-C and bugs too
        return report(error, voice or _voice_of(argv), extra)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Prints the versions of tool and core."""
    del param
    if not value or ctx.resilient_parsing:
        return
    from balloonctl.commands.info import version_line

    click.echo(version_line())
    ctx.exit()


@click.group(
    cls=BalloonGroup,
    invoke_without_command=True,
    epilog=_epilog(),
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "BALLOONCTL",
        "max_content_width": 100,
    },
)
@click.option(
    "-c",
    "commands",
    metavar="COMMANDS",
    multiple=True,
    help="Run commands, separated by semicolons, as a script; may be given again.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show versions."
)
@click.pass_context
def main(ctx: click.Context, /, commands: tuple[str, ...], **options: Any) -> int:
    """Drive, watch and test a virtio balloon.

    \b
    The balloon's size is target (asked for) and actual (reached);
    what is left to the guest is its memory minus the balloon.

    \b
      balloonctl inflate 512M         take 512 MiB from the guest
      balloonctl status               see what it did, and what the host got back
      balloonctl oom                  run the guest out of memory
      balloonctl -c 'inflate 64M; status'
    """  # noqa: D301 - a real backspace is click's mark for lines that stay as they are
    configuration: config.Configuration = ctx.meta[CONFIGURATION]
    if configuration.error is not None:
        raise configuration.error
    known = [str(param.name) for param in main.params]
    configuration.check((), known, [name for name, entry in COMMANDS.items() if not entry.session_only])
    session = ctx.obj if ctx.meta[_IN_SESSION] else None
    app = _make_app(ctx, options)
    ctx.obj = app
    ctx.color = colour_wanted(app.settings.color, sys.stdout)
    ctx.call_on_close(app.close)
    if app.settings.verbose and session is None:
        app.log()
    if ctx.invoked_subcommand is not None:
        if commands:
            raise click.UsageError(
                f"-c runs a script of its own; {ctx.invoked_subcommand} cannot follow", ctx
            )
        return 0
    from balloonctl.commands.shell import bare

    return bare(app, ctx, "\n".join(commands) if commands else None)


main.params[-1:-1] = global_options()


def _make_app(ctx: click.Context, options: dict[str, Any]) -> App:
    """The invocation: what a line of a session does not say, its session said."""
    if not ctx.meta[_IN_SESSION]:
        json, output = (ctx.get_parameter_source(name) for name in ("json", "output"))
        assert json is not None
        assert output is not None
        if output < json:
            # Both are one setting, and --output was said nearer to the command line.
            options["json"] = None
        return App(Settings(**changes(options)), connection=ctx.obj)
    from click.core import ParameterSource

    session = ctx.obj
    typed = {
        name: value
        for name, value in options.items()
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    app = App(session.settings, session=session, connection=session.connection)
    with ctx:
        if typed:
            app.adjust(**changes(typed))
    return app


def run() -> NoReturn:
    """The entry point of the command."""
    code = 1
    gc.set_threshold(20_000)  # loading modules makes many objects and no garbage
    prepare()
    try:
        main(sys.argv[1:])
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 0 if ending.code is None else 1
    except KeyboardInterrupt:
        code = 130
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            silence(stream)
            code = code or (141 if isinstance(error, BrokenPipeError) else 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # too late for Ctrl-C to change the exit code
    gc.freeze()  # everything goes with the process: no last look at every object, which takes 15 ms
    sys.exit(code)
