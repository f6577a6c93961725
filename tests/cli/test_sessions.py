"""Scripts, -c, pipes, recordings, configuration: many commands in one process."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_fakes import MIB, FakeMachine, World
from click.shell_completion import CompletionItem
from click.testing import CliRunner, Result

from balloonctl.context import Settings
from balloonctl.main import main
from balloonctl.session import split_line
from balloonctl.shell import Shell
from balloonvq.errors import InvalidArgument

Call = Callable[..., Result]


def script(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


# -- lines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "commands"),
    [
        ("inflate 64M", [["inflate", "64M"]]),
        ("inflate 64M; status", [["inflate", "64M"], ["status"]]),
        (";;status;", [["status"]]),
        ("status # all of it; really", [["status"]]),
        ("# nothing", []),
        ("", []),
        ("echo 'a; b' \"# c\" d#e", [["echo", "a; b", "# c", "d#e"]]),
        (r"echo a\;b \# c", [["echo", "a;b", "#", "c"]]),
        ("echo it\\'s", [["echo", "it's"]]),
    ],
)
def test_a_line_is_split_as_a_shell_would(line: str, commands: list[list[str]]) -> None:
    assert [words for _, words in split_line(line)] == commands


def test_an_open_quote_is_an_error(call: Call) -> None:
    with pytest.raises(InvalidArgument, match="quote"):
        split_line("echo 'a")
    assert call("-c", "echo 'a").exit_code == 2


# -- scripts ---------------------------------------------------------------------------------------------------------


def test_a_script_has_a_machine_of_its_own_on_a_virtual_clock(call: Call, world: World, home: Path) -> None:
    path = script(
        home / "tour.balloon",
        "#!/usr/bin/env -S balloonctl run\n\n# a comment\ninflate 64M   # takes memory\nexpect actual 64MiB\necho done\n",
    )
    result = call("run", path)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("done\n")
    assert "note: this session makes its own machine (1 GiB, design reference)" in result.stderr
    assert len(world.private) == 1
    assert world.private[0].stopped
    assert world.configs[0]["clock"] == "virtual"
    assert world.configs[0]["seed"] == 0
    assert world.started == []


def test_start_and_stop_in_a_script(call: Call, world: World) -> None:
    result = call("-c", "start --ram 2G --seed 5; inflate 1G; start; stop")
    assert result.exit_code == 1
    assert "has a machine already" in result.stderr
    assert world.configs[0]["ram_bytes"] == 2 << 30
    assert world.configs[0]["seed"] == 5
    assert world.private[0].stopped
    result = call("-c", "start; stop; start --ram 64M; ps; stop; stop")
    assert result.exit_code == 0
    assert result.stdout.count("stopped session") == 2
    assert "no machine was running" in result.stdout


def test_a_named_machine_is_driven_instead(call: Call, world: World) -> None:
    world.background["other"] = FakeMachine(name="other")
    assert call("-m", "other", "-c", "inflate 64M; expect target 64M").exit_code == 0
    assert world.background["other"].actual_pages == 16384
    assert world.private == []
    assert call("-c", "-m other status; inflate 64M -m other").exit_code == 0
    assert world.background["other"].actual_pages == 32768
    assert world.private == []


def test_a_failing_line_ends_the_script_and_names_itself(call: Call, world: World, home: Path) -> None:
    path = script(home / "s.balloon", "inflate 64M\n\ninflate 9G\necho never\n")
    result = call("run", path)
    assert result.exit_code == 2
    assert f"{path}:3: inflate 9G\nerror: 9G is more than the guest has\n" in result.stderr
    assert "never" not in result.stdout
    error = json.loads(call("--json", "run", path).stderr.splitlines()[-1])
    assert (error["file"], error["line"], error["command"]) == (path, 3, "inflate 9G")


def test_keep_going_ends_with_the_first_code(call: Call, home: Path) -> None:
    path = script(home / "s.balloon", "inflate 9G\nexpect actual 1M\nfrob\necho still here\n")
    result = call("run", "-k", path)
    assert result.exit_code == 2
    assert "still here" in result.stdout
    assert result.stderr.count("error: ") == 3


def test_a_failing_line_leaks_nothing_into_the_next(call: Call, home: Path) -> None:
    path = script(home / "s.balloon", "inflate 64M surplus\nstatus --json\ninflate 64M\n")
    result = call("run", "-k", path)
    assert result.stderr.count("error: ") == 1
    assert "outcome" in result.stdout


def test_expect_shows_both_values(call: Call, home: Path) -> None:
    result = call("-c", "inflate 64M; expect actual 32M")
    assert result.exit_code == 1
    assert "error: actual is 64 MiB, expected 32 MiB" in result.stderr


def test_settings_of_the_session_hold_for_every_line(call: Call) -> None:
    result = call("--json", "-q", "-c", "inflate 64M\nstatus\nstatus --output plain")
    assert result.stderr == ""
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(result.stdout)
    second, end = decoder.raw_decode(result.stdout, end + 1)
    assert first["schema"] == "balloonctl/wait/1"
    assert second["schema"] == "balloonctl/status/1"
    assert "ram_bytes\t" in result.stdout[end:]


def test_a_pipe_is_a_script(call: Call, world: World) -> None:
    result = call(stdin="# hello\n\ninflate 64M\nexpect actual 64M\necho ok\n")
    assert result.exit_code == 0
    assert result.stdout.endswith("ok\n")
    result = call(stdin="echo one\nfrob\n")
    assert result.exit_code == 2
    assert "stdin:2: frob" in result.stderr
    assert call("run", "-", stdin="echo one\n").stdout == "one\n"


def test_a_pipe_is_run_as_it_comes(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Slow(io.StringIO):
        def __next__(self) -> str:
            seen.append("read")
            return super().__next__()

    from balloonctl import session

    monkeypatch.setattr(session.sys, "stdin", Slow("echo a\necho b\n"))
    lines = iter(session.script_lines("-"))
    assert next(lines) == "echo a\n"
    assert seen == ["read"]


def test_nothing_at_all_shows_the_help(call: Call) -> None:
    result = call(stdin="")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: balloonctl")


def test_scripts_that_cannot_be_read(call: Call, home: Path) -> None:
    (home / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("nowhere", "binary", str(home)):
        result = call("run", name)
        assert result.exit_code == 1
        assert "cannot read the script" in result.stderr


def test_exit_ends_a_script_and_help_helps(call: Call) -> None:
    result = call("-c", "echo a; exit; echo b")
    assert (result.exit_code, result.stdout) == (0, "a\n")
    assert "sleep" in call("-c", "help").stdout
    assert "SIZE" in call("-c", "help inflate").stdout
    assert call("-c", "help frob").exit_code == 2


def test_what_makes_no_sense_inside_or_outside(call: Call) -> None:
    for name in ("sleep", "echo", "exit", "help"):
        assert call(name, "1").exit_code == 2
    assert call("-c", "shell").exit_code == 2
    assert call("-c", "--json").exit_code == 2
    assert "needs a terminal" in call("shell").stderr


def test_a_script_inside_a_script_shares_the_machine(call: Call, world: World, home: Path) -> None:
    inner = script(home / "inner", "inflate 64M\nexit\n")
    failing = script(home / "failing", "inflate 9G\n")
    assert call("-c", f"run {inner}; expect actual 64M").exit_code == 0
    assert len(world.private) == 1
    assert call("-c", f"run {failing}; echo never").exit_code == 2


def test_sleep_uses_the_machine_s_clock_where_it_can(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert call("-c", "sleep 90s").exit_code == 0
    assert slept == [90]
    asked: list[Any] = []
    from balloonvq.qmp.client import LocalClient

    execute = LocalClient.execute

    def spy(self: Any, verb: str, *args: Any, **kwargs: Any) -> Any:
        if verb == "x-sleep":
            asked.append(args)
            return {}
        return execute(self, verb, *args, **kwargs)

    monkeypatch.setattr(LocalClient, "execute", spy)
    assert call("-c", "start; sleep 2m").exit_code == 0
    assert asked == [({"seconds": 120},)]
    assert slept == [90]


def test_ctrl_c_ends_a_script_even_with_keep_going(
    call: Call, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("balloonctl.commands.status.status_of", interrupt)
    result = call("run", "-k", script(home / "s", "status\necho never\n"))
    assert result.exit_code == 130
    assert "never" not in result.stdout


# -- recordings ------------------------------------------------------------------------------------------------------


def test_a_recording_replays(call: Call, world: World, home: Path) -> None:
    path = script(home / "s.balloon", "# first\ninflate 64M # keep\nexpect actual 1M\nexpect actual 64M\n")
    assert call("run", "-k", path, "--record", "again.balloon").exit_code == 1
    text = Path("again.balloon").read_text()
    lines = text.splitlines()
    assert lines[0] == "#!/usr/bin/env -S balloonctl run"
    assert lines[2].startswith("start --ram 1073741824 --touch 1073741824")
    assert lines[3:] == ["inflate 64M # keep", "# exit code 1: expect actual 1M", "expect actual 64M"]
    assert Path("again.balloon").stat().st_mode & 0o100
    result = call("run", "again.balloon")
    assert result.exit_code == 0, result.output
    assert world.configs[1] == world.configs[0]


def test_a_recording_overwrites_only_recordings(call: Call, home: Path) -> None:
    path = script(home / "s.balloon", "echo a\n")
    assert call("run", path, "--record", "new").exit_code == 0
    assert call("run", path, "--record", "new").exit_code == 0
    assert call("run", path, "--record", path).exit_code == 2
    assert Path(path).read_text() == "echo a\n"
    assert call("run", path, "--record", "no/such/folder").exit_code == 1


def test_commands_given_twice_are_both_run(call: Call, world: World) -> None:
    assert call("-c", "echo a; echo b", "-c", "echo c").stdout == "a\nb\nc\n"
    assert "-c:2: inflate 9G\n" in call("-c", "echo a", "-c", "inflate 9G").stderr


def test_an_error_names_the_command_of_its_line(call: Call, world: World) -> None:
    result = call("-c", "echo a; inflate 9G ; echo b # never")
    assert (result.exit_code, result.stdout) == (2, "a\n")
    assert "-c:1: inflate 9G\n" in result.stderr
    result = call("--json", "-c", "echo a; inflate 9G")
    assert json.loads(result.stderr.splitlines()[-1])["command"] == "inflate 9G"


# -- configuration ---------------------------------------------------------------------------------------------------


def test_flag_environment_local_user_default(call: Call, world: World, home: Path) -> None:
    user = home / "config/balloonctl/config.toml"
    user.parent.mkdir(parents=True)
    user.write_text('[start]\nram = "512M"\nseed = 3\ndesign = "coarse"\n')
    Path("balloonctl.toml").write_text('[start]\nram = "256M"\ndeflate-on-oom = false\n')
    assert call("start", "a").exit_code == 0
    assert call("start", "b", env={"BALLOONCTL_START_RAM": "128M"}).exit_code == 0
    assert call("start", "c", "--ram", "64M", env={"BALLOONCTL_START_RAM": "128M"}).exit_code == 0
    assert [fields["ram_bytes"] // MIB for fields in world.started] == [256, 128, 64]
    assert (world.started[0]["seed"], world.started[0]["design"]) == (3, "coarse")
    assert world.started[0]["deflate_on_oom"] is False
    rows = json.loads(call("info", "--json").stdout)["settings"]
    origins = {row["name"]: row["origin"] for row in rows}
    assert origins["start.ram"] == "balloonctl.toml"
    assert origins["start.seed"] == str(user)
    call("-c", "status")
    assert world.configs[0]["ram_bytes"] == 256 * MIB
    call("status")
    assert world.started[-1]["ram_bytes"] == 256 * MIB


def test_global_options_in_a_file(call: Call) -> None:
    Path("balloonctl.toml").write_text('output = "jsonl"\n')
    assert call("ps").stdout.startswith("{")
    assert call("ps", "--output", "table").stdout.startswith("no machine")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("output = ", "is not TOML"),
        ("colour = 'never'", "unknown option colour"),
        ("[strat]\nram = '1G'", "unknown option strat"),
        ("start = 5", "has to be a table"),
        ("watch = 5", "has to be a table"),
        ("[start.ram]\nx = 1", "start.ram has to be a value"),
        ("[output]\nx = 1", "configuration file"),
        ("[start]\nrma = '1G'", "unknown option start.rma"),
        ("[start]\nram = '1Gb'", "configuration file"),
        ("output = 'yaml'", "configuration file"),
    ],
)
def test_a_wrong_file_is_a_clear_error(call: Call, world: World, text: str, says: str) -> None:
    Path("balloonctl.toml").write_text(text)
    result = call("start")
    assert result.exit_code == 2
    assert says in result.stderr
    assert world.started == []
    assert call("--help").exit_code == 0


@pytest.mark.parametrize("value", ['["insert=late"]', '"insert=late"'])
def test_options_of_a_design_in_a_file(call: Call, world: World, value: str) -> None:
    Path("balloonctl.toml").write_text(f'[start]\ndesign = "split"\nset = {value}\n')
    assert call("start").exit_code == 0
    assert world.started[0]["design_options"] == {"insert": "late"}
    assert call("start", "b", "--set", "count=before").exit_code == 0
    assert world.started[1]["design_options"] == {"count": "before"}
    variable = {"BALLOONCTL_START_SET": "insert=early count=before"}
    assert call("start", "c", env=variable).exit_code == 0
    assert world.started[2]["design_options"] == {"insert": "early", "count": "before"}
    assert call("run", "-", "--record", "r.bln", stdin="status\n").exit_code == 0
    assert " --set insert=late" in Path("r.bln").read_text()


def test_a_wrong_variable_is_named(call: Call) -> None:
    result = call("start", env={"BALLOONCTL_START_RAM": "lots"})
    assert result.exit_code == 2
    assert "BALLOONCTL_START_RAM" in result.stderr


def test_info_names_a_wrong_key_of_any_command(call: Call) -> None:
    Path("balloonctl.toml").write_text("[watch]\ninterva = '1s'\n")
    result = call("info")
    assert result.exit_code == 2
    assert "did you mean interval?" in result.stderr


def test_whether_a_script_may_be_read_is_found_out_by_reading_it(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Asked before, it was a usage error, where a script that is not there is none.
    monkeypatch.setattr(os, "access", lambda *_given, **_named: False)
    assert call("run", script(tmp_path / "a.balloon", "echo read")).stdout == "read\n"
    missing = call("run", str(tmp_path / "absent"))
    assert missing.exit_code == 1
    assert "why: No such file or directory" in missing.stderr


# -- completion at the prompt ----------------------------------------------------------------------------------------


def completions(text: str, machine: FakeMachine | None = None) -> dict[str, str]:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    from balloonctl.context import App
    from balloonctl.session import Session
    from balloonctl.shell import ShellCompleter

    session = Session(App(Settings()), None, clock="real")
    found = ShellCompleter(session).get_completions(Document(text), CompleteEvent())
    return {item.text: item.display_meta_text for item in found}


def test_a_space_follows_a_unique_whole_word_only(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(completions("infl")) == list(completions("inflate")) == ["inflate "]
    # More than one: the word may go on.
    assert list(completions("st")) == [name.strip() for name in completions("st")]
    assert len(completions("st")) > 1
    # Paths go on behind a slash, and a design may be a file.
    (tmp_path / "scripts").mkdir()
    (tmp_path / "script.balloon").touch()
    monkeypatch.chdir(tmp_path)
    assert list(completions("run scrip")) == ["t.balloon", "ts"]
    # What ends with a sign that more follows is not whole.
    monkeypatch.setattr(main, "shell_complete", lambda ctx, incomplete: [CompletionItem("state=")])
    assert list(completions("sta")) == ["state="]


def test_completion_at_the_prompt(world: World) -> None:
    assert "memory" in completions("infl")["inflate "]
    assert "sleep" in completions("")
    assert "start" in completions("inflate 64M; st")
    assert "more PFNs" not in completions("inflate 64M --dr")["--dry-run "]
    assert list(completions("start --design co")) == ["coarse "]
    assert set(completions("status --output ")) == {"table", "json", "jsonl", "plain"}
    assert completions("echo 'open") == {}
    assert completions("inflate 'open --d") == {} or "--dry-run " in completions("inflate 'open --d")


def test_the_toolbar() -> None:
    from balloonctl.shell import toolbar_text
    from balloonvq.counters import to_document

    assert "no machine yet" in toolbar_text(None)
    text = toolbar_text(to_document(FakeMachine(target_pages=256, actual_pages=256).status()))
    assert "1 MiB of     1 MiB" in text
    assert len(text) <= 100


def test_the_group_can_be_run_twice_in_a_process(world: World) -> None:
    runner = CliRunner()
    assert [runner.invoke(main, ["ps"]).exit_code for _ in range(2)] == [0, 0]


def test_regression_an_event_does_not_garble_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    # It went past the proxy that prints above the prompt, in pieces: stderr had been bound before.
    class Proxy(io.StringIO):
        def __init__(self) -> None:
            super().__init__()
            self.writes: list[str] = []

        def write(self, text: str) -> int:
            self.writes.append(text)
            return len(text)

    shell = Shell(SimpleNamespace(settings=Settings(color="always"), connection=None))  # type: ignore[arg-type]
    shell.voice.note("the console is bound")
    proxy = Proxy()
    monkeypatch.setattr("sys.stderr", proxy)
    shell._announce("BALLOON_CHANGE", {"actual": 120 << 20}, {"ram_bytes": 128 << 20})
    line = "balloon 8 MiB, 120 MiB left to the guest\n"
    assert proxy.writes == [f"\x1b[33mBALLOON_CHANGE:\x1b[0m {line}"]
    shell.session.settings = Settings(color="never")
    shell._announce("BALLOON_CHANGE", {"actual": 120 << 20}, {"ram_bytes": 128 << 20})
    assert proxy.writes[1:] == [f"BALLOON_CHANGE: {line}"]
    shell.session.settings = Settings(quiet=True)
    shell._announce("RESUME", {}, None)
    assert len(proxy.writes) == 2


def test_regression_a_script_that_runs_itself(call: Call, tmp_path: Path) -> None:
    # Python's recursion limit ended it, as a bug of balloonctl.
    file = script(tmp_path / "loop.balloon", "run loop.balloon\n")
    result = call("run", file)
    assert result.exit_code == 1
    assert "error: scripts run each other more than 16 deep\n" in result.stderr
    assert "internal error" not in result.stderr
    assert result.stderr.count("error: ") == 1
