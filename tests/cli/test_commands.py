"""Every command on a fake machine: results, bad input, exit codes, formats."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from cli_fakes import CIRCLE, MIB, PAGE, FakeMachine, World
from click.testing import CliRunner, Result

from balloonctl import failures, peer
from balloonctl.commands.scripting import complete_figure, expect, figures
from balloonctl.main import COMMANDS, main
from balloonvq.counters import Counters, WaitResult, to_document
from balloonvq.errors import CommandFailed, DeviceBroken, NoSuchMachine

Call = Callable[..., Result]


def error_of(result: Result) -> dict[str, Any]:
    """The error object of a --json command."""
    document: dict[str, Any] = json.loads(result.stderr.strip().splitlines()[-1])
    assert document["schema"] == "balloonctl/error/1"
    assert document["exit_code"] == result.exit_code
    return document


# -- inflate, deflate, target -----------------------------------------------------------------------------------------


def test_inflate_and_deflate_are_relative_and_target_is_absolute(on: Call, machine: FakeMachine) -> None:
    for line, pages in (
        ("inflate 512M", 131072),
        ("deflate 128M", 98304),
        ("target 25%", 65536),
        ("target 0", 0),
    ):
        assert on(*line.split()).exit_code == 0
        assert machine.actual_pages == pages


def test_a_deflate_below_the_target_names_the_target(on: Call, machine: FakeMachine) -> None:
    assert on("target", "8M").exit_code == 0
    error = error_of(on("deflate", "9M", "--json"))
    assert error["what"] == "the balloon cannot shrink by 9M"
    assert error["why"].startswith("its target is 8 MiB, and deflate counts from that (state: target 8 MiB")
    assert error["hint"].startswith("balloonctl target 0")
    # Where the balloon is above its target, setting that again is no help.
    machine.target_pages, machine.stuck_pages = 0, machine.actual_pages
    machine.reason = "deadlocked"
    error = error_of(on("deflate", "1M", "--json"))
    assert (error["exit_code"], error["error"]) == (1, "BalloonError")
    assert error["why"].startswith("its target is 0 B")
    assert "the guest is deadlocked" in error["why"]
    assert error["hint"] == "balloonctl status shows the circle; balloonctl stop ends the machine"
    machine.stuck_pages = None
    error = error_of(on("deflate", "1M", "--json"))
    assert "deadlock" not in error["why"]
    assert error["hint"] == "balloonctl watch shows it on its way to its target"


def test_rules_that_the_driver_broke_are_an_error_of_oom(on: Call, machine: FakeMachine) -> None:
    result = on("oom")
    assert result.exit_code == 0
    assert "\u2713 relieved" in result.stdout
    assert json.loads(on("oom", "--json").stdout)["broken_rules"] == {}
    machine.broken_rules = {"pfns_duplicate": 135, "page_violations": 1}
    result = on("oom")
    assert result.exit_code == 3
    assert "\u2717 relieved" in result.stdout
    assert "\u2713" not in result.stdout
    error = error_of(on("oom", "--json"))
    assert error["error"] == "RuleBroken"
    assert error["why"].startswith("135 PFNs inflated that the balloon held already, 1 pages handled")


@pytest.mark.parametrize(
    "name", ["page_violations", "pfns_duplicate", "pfns_out_of_range", "pfns_never_inflated"]
)
def test_rules_that_the_driver_broke_are_an_error_of_check(on: Call, machine: FakeMachine, name: str) -> None:
    assert json.loads(on("check", "--json").stdout)["broken_rules"] == {}
    machine.counters = Counters(**{name: 7})
    result = on("check", "--json")
    assert json.loads(result.stdout)["broken_rules"] == {name: 7}
    assert error_of(result)["error"] == "RuleBroken"
    result = on("check")
    assert result.exit_code == 3
    assert "\u2717 broken rules: 7 " in result.stdout


def test_both_figures_are_shown(on: Call) -> None:
    result = on("inflate", "256M")
    assert "target 256 MiB, actual 256 MiB" in result.stdout
    assert "768 MiB of 1 GiB left to it" in result.stdout
    assert result.stderr == ""


def test_the_json_of_inflate(on: Call) -> None:
    document = json.loads(on("inflate", "64M", "--json").stdout)
    assert document["schema"] == "balloonctl/wait/1"
    assert document["outcome"] == "reached"
    assert document["target_bytes"] == document["actual_bytes"] == 64 * MIB
    assert document["guest_usable_bytes"] == 960 * MIB


def test_a_share_that_is_rounded_says_so(on: Call, machine: FakeMachine) -> None:
    result = on("inflate", "33%")
    assert "rounded down to 86,507 pages" in result.stderr
    assert machine.actual_pages == 86507


@pytest.mark.parametrize("verb", ["inflate", "deflate", "target"])
@pytest.mark.parametrize(
    "size", ["-5M", "-1", "nan", "inf", "64Mb", "64Mbit", "5000", "0.3", "", "64X", "101%", "-inf"]
)
def test_a_bad_size_is_a_usage_error_and_sends_nothing(
    on: Call, machine: FakeMachine, verb: str, size: str
) -> None:
    result = on(verb, size)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""
    assert machine.targets == []


@pytest.mark.parametrize("verb", ["inflate", "deflate"])
def test_nothing_is_no_size_to_move_by(on: Call, verb: str) -> None:
    assert on(verb, "0").exit_code == 2


def test_a_negative_size_is_called_so_and_not_an_option(on: Call) -> None:
    assert "-5M is negative" in on("inflate", "-5M").stderr
    assert "-5M is negative" in on("inflate", "--", "-5M").stderr
    assert "no such option" in on("inflate", "--frob").stderr


def test_more_than_the_guest_has(on: Call, machine: FakeMachine) -> None:
    result = on("inflate", "5G")
    assert result.exit_code == 2
    assert "why: the guest has 1 GiB of memory" in result.stderr
    assert on("target", "1G").exit_code == 2
    assert on("target", "262143p").exit_code == 0
    assert "leaves nothing" in on("inflate", "1p").stderr
    assert machine.targets == [262143]


def test_more_than_there_is_now(on: Call) -> None:
    on("inflate", "768M")
    result = on("inflate", "512M")
    assert result.exit_code == 1
    assert "hint: at most 256 MiB are left" in result.stderr
    result = on("deflate", "800M")
    assert result.exit_code == 1
    assert "target 768 MiB" in result.stderr
    assert "target 0" in result.stderr


def test_dry_run_shows_pages_and_requests_and_sends_nothing(on: Call, machine: FakeMachine) -> None:
    document = json.loads(on("inflate", "1M", "--dry-run", "--json").stdout)
    assert document["schema"] == "balloonctl/plan/1"
    assert (document["pages"], document["requests"], document["target_bytes"]) == (256, 1, MIB)
    assert json.loads(on("target", "257p", "--dry-run", "--json").stdout)["requests"] == 2
    assert machine.targets == []
    assert "nothing (dry run)" in on("inflate", "1M", "--dry-run").stdout


def test_no_wait_returns_at_once(on: Call, machine: FakeMachine) -> None:
    machine.hang = True
    result = on("inflate", "64M", "--no-wait", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["schema"] == "balloonctl/sent/1"
    assert machine.targets == [16384]
    assert on("inflate", "64M", "--no-wait", "--timeout", "1s").exit_code == 2


@pytest.mark.parametrize(
    ("reason", "code", "words"),
    [
        ("guest-has-no-free-pages", 1, "no free pages"),
        ("driver-stalled", 1, "does not move any more"),
        ("deflated-by-oom", 1, "out of memory"),
        ("deadlocked", 3, "deadlocked"),
        ("device-broken", 3, "reset"),
        ("kernel-bug", 3, "BUG()"),
        ("news", 1, "news"),
    ],
)
def test_stopping_short_says_why(on: Call, machine: FakeMachine, reason: str, code: int, words: str) -> None:
    machine.reachable_pages, machine.reason, machine.circle = 1024, reason, CIRCLE
    result = on("inflate", "64M")
    assert result.exit_code == code
    assert "error: the balloon stopped at 4 MiB of 64 MiB" in result.stderr
    assert words in result.stderr
    assert "hint: " in result.stderr
    assert ("size worker" in result.stderr) == (reason == "deadlocked")
    assert error_of(on("inflate", "64M", "--json"))["exit_code"] == code


def test_a_waiter_is_told_the_target_that_took_the_place_of_its_own(
    on: Call, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(timeout_ns: int | None, abandoned: Any) -> WaitResult:
        machine.target_pages = 8192
        return WaitResult(
            outcome="short",
            reason="target-changed",
            target_bytes=64 * MIB,
            actual_bytes=4 * MIB,
            elapsed_ns=1000,
        )

    monkeypatch.setattr(machine, "wait", wait)
    result = on("inflate", "64M")
    assert result.exit_code == 1
    assert "error: the target of 64 MiB was replaced" in result.stderr
    assert "why: somebody else set another one meanwhile, 32 MiB (state: " in result.stderr


def test_a_balloon_that_stops_above_its_target_is_not_called_short(on: Call, machine: FakeMachine) -> None:
    machine.actual_pages = machine.target_pages = 16384
    machine.reason, machine.circle = "deadlocked", CIRCLE
    machine.stuck_pages = 8192
    result = on("target", "16M")
    assert result.exit_code == 3
    assert "error: the balloon stopped at 32 MiB, above its target of 16 MiB" in result.stderr
    assert "✗ above its target: " in on("status").stdout
    assert "short" not in result.stdout + result.stderr + on("status").stdout


def test_the_time_limit(on: Call, machine: FakeMachine) -> None:
    machine.hang = True
    result = on("inflate", "64M", "--timeout", "50ms")
    assert result.exit_code == 124
    assert "not reached within 0.05 s" in result.stderr
    assert "goes on" in result.stderr
    assert on("inflate", "1M", "--timeout", "soon").exit_code == 2


def test_ctrl_c_says_that_the_machine_goes_on(
    on: Call, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("balloonctl.commands.resize.wait_for_target", interrupt)
    result = on("inflate", "64M")
    assert result.exit_code == 130
    assert "goes on towards its target of 64 MiB" in result.stderr


def test_ctrl_c_anywhere_else_is_130(on: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("balloonctl.commands.status.status_of", interrupt)
    result = on("status")
    assert result.exit_code == 130
    assert "error: interrupted" in result.stderr


# -- the other commands ----------------------------------------------------------------------------------------------


def test_status_as_json_is_exactly_the_document(on: Call) -> None:
    document = json.loads(on("--json", "status").stdout)
    assert document["schema"] == "balloonctl/status/1"
    assert {
        "machine",
        "design",
        "ram_bytes",
        "target_bytes",
        "actual_bytes",
        "guest_free_bytes",
    } <= document.keys()
    assert {"returned_acknowledged_bytes", "returned_measured_bytes", "counters", "queues"} <= document.keys()
    assert list(document["counters"]) == list(Counters.__dataclass_fields__)


def test_formats(on: Call) -> None:
    assert len(on("status", "--output", "jsonl").stdout.splitlines()) == 1
    assert "ram_bytes\t1073741824\n" in on("status", "--output", "plain").stdout
    assert on("--output", "yaml", "status").exit_code == 2
    assert on("status", env={"BALLOONCTL_OUTPUT": "json"}).stdout.startswith("{")
    assert on("status", "--output", "table", env={"BALLOONCTL_OUTPUT": "json"}).stdout.startswith("machine")


@pytest.mark.parametrize("line", ["{} {} designs", "designs {1} {0}", "{} designs {}", "{1} designs {0}"])
def test_formats_that_contradict_each_other(call: Call, line: str) -> None:
    # --json won, and nobody heard of it.
    result = call(*line.format("--json", "--output=plain").split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert error_of(result)["what"] == "--json is --output json, not --output plain; give one of them"
    assert call(*line.format("--json", "--output=json").split()).exit_code == 0


def test_a_format_on_the_command_line_goes_before_a_configured_one(call: Call) -> None:
    plain, json_ = "schema\tballoonctl/designs/1", '{\n  "schema"'
    assert call("designs", "--json", env={"BALLOONCTL_OUTPUT": "plain"}).stdout.startswith(json_)
    # These were JSON: --json won wherever it came from.
    for line in ("--output plain designs", "designs --output plain"):
        assert call(*line.split(), env={"BALLOONCTL_JSON": "1"}).stdout.startswith(plain), line
    Path("balloonctl.toml").write_text("json = true\n")
    assert call("designs").stdout.startswith(json_)
    assert call("designs", env={"BALLOONCTL_OUTPUT": "plain"}).stdout.startswith(plain)
    assert call("--output", "plain", "-c", "designs --json").stdout.startswith(json_)


def test_a_deadlocked_machine_shows_its_circle(on: Call, machine: FakeMachine) -> None:
    machine.state, machine.circle = "deadlocked", CIRCLE
    result = on("status")
    assert result.exit_code == 0
    assert "W: size worker" in result.stdout
    assert json.loads(on("status", "--json").stdout)["state"] == "deadlocked"


def test_oom(on: Call, machine: FakeMachine) -> None:
    assert "relieved" in on("oom").stdout
    assert on("oom", "64M", "--while-filling", "--no-fs").exit_code == 0
    assert machine.calls == [("oom", (None, True, False)), ("oom", (64 * MIB, False, True))]
    assert on("oom", "2G").exit_code == 2
    machine.oom_outcome = "killed"
    result = on("oom")
    assert result.exit_code == 0
    assert "hog" in result.stdout


def test_a_deadlock_prints_the_report_and_is_a_verdict(on: Call, machine: FakeMachine) -> None:
    machine.oom_outcome = "deadlocked"
    result = on("oom", "--while-filling")
    assert result.exit_code == 3
    assert "O: OOM caller" in result.stdout
    assert "why: 2 tasks wait for each other in a circle: W -> O -> W" in result.stderr
    result = on("oom", "--json")
    assert json.loads(result.stdout)["deadlock"]["tasks"][0]["task"] == "W"
    assert error_of(result)["error"] == "Deadlock"


def test_a_livelock_is_a_verdict(on: Call, machine: FakeMachine) -> None:
    # Its line had no sign and ended after a colon, and the exit code was 0.
    machine.oom_outcome = "livelocked"
    result = on("oom", "--no-fs")
    assert result.exit_code == 3
    assert "✗ livelocked: it may not kill, and retried in vain" in result.stdout
    assert "why: it retried 4 times and was given up" in result.stderr
    assert error_of(on("oom", "--no-fs", "--json"))["error"] == "RuleBroken"


def test_lost_pages_are_a_verdict(on: Call, machine: FakeMachine) -> None:
    assert on("check").exit_code == 0
    machine.lost_pages = 2
    assert on("check").exit_code == 3
    assert on("oom").exit_code == 3


def test_stats_and_compact(on: Call, machine: FakeMachine) -> None:
    assert "stat-unknown-99" in on("stats").stdout
    assert json.loads(on("stats", "--no-refresh", "--json").stdout)["stats"]["stat-major-faults"] == 17
    assert "isolated 32 pages" in on("compact").stdout
    assert on("compact", "7").exit_code == 0
    assert on("compact", "0").exit_code == 2
    assert machine.calls == [("stats", True), ("stats", False), ("compact", None), ("compact", 7)]


def test_watch_on_a_pipe(on: Call) -> None:
    lines = on("watch", "--count", "3", "--interval", "1ms").stdout.splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1
    documents = [
        json.loads(line)
        for line in on("watch", "--json", "--count", "2", "--interval", "1ms").stdout.splitlines()
    ]
    assert [document["schema"] for document in documents] == ["balloonctl/status/1"] * 2
    assert documents[1]["monotonic_ns"] > documents[0]["monotonic_ns"]
    assert on("watch", "--interval", "0").exit_code == 2
    assert on("watch", "--count", "0").exit_code == 2


def test_events(machine: FakeMachine, world: World, on: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from balloonvq.qmp.client import LocalClient

    def arrived(self: Any, timeout: float | None = None) -> Any:
        yield from [("BALLOON_CHANGE", {"actual": 5}), ("X_DEADLOCK", {"design": "coarse"})]

    monkeypatch.setattr(LocalClient, "events", arrived)
    documents = [json.loads(line) for line in on("events", "--count", "2").stdout.splitlines()]
    assert [document["event"] for document in documents] == ["BALLOON_CHANGE", "X_DEADLOCK"]
    assert "BALLOON_CHANGE" in on("events", "--count", "1", "--text").stdout


def test_expect_alone(on: Call) -> None:
    on("inflate", "64M")
    for line in (
        "actual 64MiB",
        "target 64M",
        "free 909MiB",
        "requests 64",
        "actual_pages 16384",
        "state running",
    ):
        assert on("expect", *line.split()).exit_code == 0, line
    for line in (
        "oom-events 0",
        "deflate_on_oom true",
        "balloon.state settled",
        "actual >= 50M",
        "free >1%",
        "kicks != 0",
    ):
        assert on("expect", *line.split()).exit_code == 0, line
    result = on("expect", "actual", "32M")
    assert result.exit_code == 1
    assert "error: actual is 64 MiB, expected 32 MiB" in result.stderr
    assert on("expect", "requests", "<", "64").exit_code == 1
    result = on("expect", "acutal", "32M")
    assert result.exit_code == 2
    assert "did you mean actual" in result.stderr
    for line in ("requests many", "deflate_on_oom 3", "actual 1Mb", "actual ="):
        assert on("expect", *line.split()).exit_code == 2, line


# -- a machine that is no balloonctl ---------------------------------------------------------------------------------


class Qemu:
    """What a QEMU answers."""

    is_local = False

    def __init__(self, *, knows_memory: bool = True, moves: bool = True) -> None:
        self.left, self.knows_memory, self.moves = 1 << 30, knows_memory, moves
        self.wanted = self.left

    def execute(
        self, verb: str, arguments: Any = None, on_event: Any = None, timeout: float | None = None
    ) -> Any:
        if verb == "query-balloon":
            if self.moves:
                self.left += (self.wanted > self.left) * 64 * MIB - (self.wanted < self.left) * 64 * MIB
            return {"actual": self.left}
        if verb == "balloon":
            self.wanted = arguments["value"]
            return {}
        if verb == "query-status":
            return {"status": "running"}
        if verb == "query-memory-size-summary" and self.knows_memory:
            return {"base-memory": 1 << 30, "plugged-memory": 0}
        raise CommandFailed(f"The command {verb} has not been found", error_class="CommandNotFound")

    def events(self, timeout: float | None = None) -> Any:
        yield from ()

    def close(self) -> None:
        """Nothing to close."""


class ToQemu:
    def __init__(self, qemu: Qemu) -> None:
        self.qemu = qemu

    def client(self, app: Any, *, start: bool, timeout: float | None) -> Qemu:
        return self.qemu

    def close(self) -> None:
        """Nothing is ours."""


def test_a_qemu_is_polled(world: World) -> None:
    qemu = Qemu()
    run = CliRunner(catch_exceptions=False).invoke
    result = run(main, ["inflate", "256M"], obj=ToQemu(qemu))
    assert result.exit_code == 0
    assert qemu.left == 768 * MIB
    assert "does not tell its target" in result.stderr
    assert "actual 256 MiB" in result.stdout
    document = json.loads(run(main, ["status", "--json"], obj=ToQemu(qemu)).stdout)
    assert document["actual_bytes"] == 256 * MIB
    assert "counters" not in document
    assert run(main, ["watch", "--count", "1"], obj=ToQemu(qemu)).exit_code == 0
    result = run(main, ["oom"], obj=ToQemu(qemu))
    assert result.exit_code == 1
    assert "not a balloonctl machine" in result.stderr


def test_a_qemu_that_stalls(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "STALLED_AFTER", 0.01)
    run = CliRunner(catch_exceptions=False).invoke
    result = run(main, ["inflate", "256M"], obj=ToQemu(Qemu(moves=False)))
    assert result.exit_code == 1
    assert "does not move any more" in result.stderr
    monkeypatch.setattr(peer, "STALLED_AFTER", 60)
    assert run(main, ["inflate", "256M", "--timeout", "10ms"], obj=ToQemu(Qemu(moves=False))).exit_code == 124
    assert run(main, ["inflate", "256M"], obj=ToQemu(Qemu(knows_memory=False))).exit_code == 1


# -- machines in the background --------------------------------------------------------------------------------------


def test_the_default_machine_is_started_and_announced(call: Call, world: World) -> None:
    result = call("inflate", "64M")
    assert result.exit_code == 0
    assert "note: no machine runs: starting default (1 GiB, design reference)" in result.stderr
    assert world.background["default"].actual_pages == 16384
    assert call("inflate", "64M").stderr == ""
    assert world.background["default"].actual_pages == 32768


def test_quiet_and_json_notices(call: Call, world: World) -> None:
    assert call("-q", "status").stderr == ""
    world.background.clear()
    assert json.loads(call("status", "--json").stderr)["schema"] == "balloonctl/note/1"


def test_another_machine_is_never_started(call: Call, world: World) -> None:
    result = call("-m", "other", "status")
    assert result.exit_code == 1
    assert "hint: balloonctl start other" in result.stderr
    assert world.started == []
    assert call("inflate", "64M", "--dry-run").exit_code == 1
    assert world.started == []


@pytest.mark.parametrize("words", [[], ["start"], ["bench"], ["bench", "ring"], ["help"]])
def test_help_is_a_command_too(call: Call, words: list[str]) -> None:
    assert call("help", *words).stdout == call(*words, "--help").stdout


def test_help_on_what_is_no_command(call: Call) -> None:
    for line, says in (
        ("strat", "no such command: 'strat'; did you mean"),
        ("bench rnig", "no such command: 'rnig'; did you mean ring?"),
        ("start x", "start has no commands of its own"),
        ("exit", "'exit' works in a shell or a script only"),
    ):
        result = call("help", *line.split())
        assert result.exit_code == 2
        assert says in result.stderr


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--design", "nosuch"], "there is no locking design 'nosuch'"),
        (["--design", "./nosuch.py:X"], "cannot read the design file"),
        (["--set", "nosuch=1"], "no option 'nosuch'"),
    ],
)
def test_a_wrong_design_is_told_before_a_machine_that_is_in_the_way(
    call: Call, world: World, wrong: list[str], says: str
) -> None:
    assert call("start").exit_code == 0
    assert says in call("start", *wrong).stderr
    assert says in call("-c", f"start; start {' '.join(wrong)}").stderr
    assert "is running" in call("start", "--design", "coarse").stderr
    assert len(world.started) == 1


def test_start_passes_its_options_on(call: Call, world: World) -> None:
    result = call(
        *[
            "start",
            "big",
            "--ram",
            "4G",
            "--touch",
            "50%",
            "--used",
            "128M",
            "--fragmented",
            "--design",
            "coarse",
            "--no-deflate-on-oom",
            "--no-must-tell-host",
            "--no-event-idx",
            "--no-indirect",
            "--queue-size",
            "256",
            "--discard",
            "none",
            "--seed",
            "7",
            "--stats-interval",
            "2",
            "--no-pin",
            "--clock",
            "real",
        ]
    )
    assert result.exit_code == 0
    assert "started big in the background: 4 GiB of memory, 2 GiB touched, design coarse" in result.stdout
    assert world.started == [
        {
            "name": "big",
            "ram_bytes": 4 << 30,
            "touch_bytes": 2 << 30,
            "used_bytes": 128 * MIB,
            "fragmented": True,
            "design": "coarse",
            "deflate_on_oom": False,
            "must_tell_host": False,
            "event_idx": False,
            "indirect": False,
            "queue_size": 256,
            "discard": "none",
            "seed": 7,
            "stats_interval": 2,
            "pin": False,
            "clock": "real",
            "memory": "memfd",
            "design_options": {},
        }
    ]


def test_a_machine_in_the_background_has_no_virtual_clock(call: Call, world: World) -> None:
    result = call("start", "--clock", "virtual")
    assert result.exit_code == 2
    assert "virtual clock" in result.stderr
    assert world.started == []


def test_the_defaults_of_start_are_those_of_the_machine(call: Call, world: World) -> None:
    import ast
    import inspect
    from pathlib import Path

    import balloonvq

    source = Path(inspect.getfile(balloonvq)).with_name("machine.py")
    tree = ast.parse(source.read_text())
    fields = {
        node.target.id: ast.literal_eval(node.value)
        for item in tree.body
        if isinstance(item, ast.ClassDef) and item.name == "MachineConfig"
        for node in item.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    call("start")
    started = world.started[0]
    shared = fields.keys() & started.keys() - {"touch_bytes", "used_bytes"}
    assert len(shared) > 8
    assert {name: fields[name] for name in shared} == {name: started[name] for name in shared}


@pytest.mark.parametrize(
    "options",
    [
        "--ram 0",
        "--ram -1G",
        "--ram 50%",
        "--ram 1000",
        "--touch 2G",
        "--used 101%",
        "--queue-size 100",
        "--queue-size 0",
        "--queue-size 65536",
        "--discard all",
        "--seed x",
        "--stats-interval -1",
        "--clock fast",
        "a b",
    ],
)
def test_bad_options_of_start(call: Call, world: World, options: str) -> None:
    result = call("start", *options.split())
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert world.started == []


def test_a_second_start_stop_and_ps(call: Call, world: World) -> None:
    assert call("ps").stdout == "no machine is running\n"
    assert call("start").exit_code == 0
    assert call("start").exit_code == 1
    assert call("start", "two").exit_code == 0
    assert [row["name"] for row in json.loads(call("ps", "--json").stdout)["machines"]] == ["default", "two"]
    assert "two" in call("ps").stdout
    assert call("stop", "nobody").exit_code == 1
    assert call("stop", "two", "--all").exit_code == 2
    assert call("stop", "two").stdout == "stopped two\n"
    assert json.loads(call("stop", "--all", "--json").stdout)["stopped"] == ["default"]
    assert call("stop", "--all").stdout == "no machine was running\n"


def test_a_socket_that_is_not_there(call: Call, world: World) -> None:
    result = call("--connect", "nothing.sock", "status")
    assert result.exit_code == 1
    assert error_of(call("--connect", "nothing.sock", "--json", "status"))["error"] == "NoSuchMachine"
    assert world.started == []
    assert call("--connect", "x" * 200, "status").exit_code == 2


# -- errors ----------------------------------------------------------------------------------------------------------


def test_usage_errors(call: Call) -> None:
    for line in (
        "frob",
        "inflate",
        "inflate 1M 2M",
        "--frob",
        "status --frob",
        "inflate 1M --timeout",
        "-c status status",
    ):
        result = call(*line.split())
        assert result.exit_code == 2, line
        assert result.stderr.startswith("error: "), line
        assert "hint: balloonctl" in result.stderr, line
        assert error_of(call("--json", *line.split()))["error"] == "UsageError"
    assert error_of(call("status", "--output", "json", "--frob"))["error"] == "UsageError"


def test_a_bug_asks_for_a_report(on: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any) -> None:
        raise ZeroDivisionError("half a page")

    monkeypatch.setattr("balloonctl.commands.status.status_of", explode)
    result = on("status")
    assert result.exit_code == 1
    assert "error: internal error: ZeroDivisionError: half a page" in result.stderr
    assert "report" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in on("status", env={"BALLOONCTL_DEBUG": "1"}).stderr


def test_an_error_of_the_machine_keeps_its_words_and_code(on: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    document = DeviceBroken("ring broken", why="descriptor loop", hint="balloonctl stop").as_document()

    def refuse(*_: Any) -> None:
        raise CommandFailed("no", document=document)

    monkeypatch.setattr("balloonctl.commands.status.status_of", refuse)
    result = on("status")
    assert result.exit_code == 3
    assert result.stderr == "error: ring broken\nwhy: descriptor loop\nhint: balloonctl stop\n"


def test_a_closed_pipe_is_quiet(on: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("balloonctl.commands.status.status_of", gone)
    monkeypatch.setattr(failures, "silence", lambda *_: None)
    result = on("status")
    assert result.exit_code == 141
    assert result.output == ""


def test_the_exit_codes_of_the_errors() -> None:
    assert failures.describe(NoSuchMachine("x")).exit_code == 1
    assert failures.describe(KeyboardInterrupt()).exit_code == 130
    assert {code for code, _ in failures.EXIT_CODES} == {0, 1, 2, 3, 4, 5, 124, 130, 141}


# -- colour ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "env", "coloured"),
    [
        ("auto", {}, False),
        ("always", {}, True),
        ("always", {"NO_COLOR": "1"}, True),
        ("never", {"FORCE_COLOR": "1"}, False),
        ("auto", {"FORCE_COLOR": "1"}, True),
        ("auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ("auto", {"NO_COLOR": "", "FORCE_COLOR": "1"}, True),
    ],
)
def test_colour(on: Call, flag: str, env: dict[str, str], coloured: bool) -> None:
    assert ("\x1b[" in on("status", "--color", flag, env=env).stdout) == coloured
    assert ("\x1b[" in on("inflate", "9G", "--color", flag, env=env).stderr) == coloured


# -- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, entry in COMMANDS.items() if not entry.session_only])
def test_every_command_has_help_and_its_line_in_the_list(call: Call, name: str) -> None:
    result = call(name, "-h")
    assert result.exit_code == 0
    assert f"Usage: balloonctl {name}" in result.stdout
    assert COMMANDS[name].help[:20] in call("--help").stdout.replace("\n", " ")


@pytest.mark.parametrize("name", ["", *(name for name, entry in COMMANDS.items() if not entry.session_only)])
def test_help_fits_80_columns(call: Call, name: str) -> None:
    assert max(map(len, call(*filter(None, [name]), "--help").stdout.splitlines())) <= 80


def test_help_keeps_its_layout(call: Call) -> None:
    # A raw docstring made click print its mark "\\b" and run the lines together.
    for name, entry in COMMANDS.items():
        if not entry.session_only:
            assert "\\b" not in call(name, "-h").stdout, name
    assert "\\b" not in call("-h").stdout
    assert "\n    balloonctl status               see what it did" in call("-h").stdout
    assert "\n    expect oom_kills 0\n" in call("expect", "-h").stdout


def test_help_shows_the_exit_codes(call: Call) -> None:
    text = call("--help").stdout
    for code, meaning in failures.EXIT_CODES:
        assert f"{code:>3}  {meaning}" in text


def test_version_and_info(call: Call, world: World) -> None:
    assert call("--version").stdout.startswith("balloonctl 0.1.0 (C core ")
    document = json.loads(call("info", "--json", env={"BALLOONCTL_START_RAM": "2G"}).stdout)
    assert {"name": "start.ram", "value": "2G", "origin": "BALLOONCTL_START_RAM"} in document["settings"]
    assert "versions" in call("info").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(call: Call, shell: str) -> None:
    assert "_BALLOONCTL_COMPLETE" in call("completion", shell).stdout


def test_completion_of_the_command_line(call: Call, world: World) -> None:
    def complete(line: str) -> list[str]:
        words = line.split(" ")
        env = {"_BALLOONCTL_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        return [item.partition(",")[2] for item in call(env=env).stdout.split()]

    world.background["alpha"] = FakeMachine(name="alpha")
    assert "inflate" in complete("balloonctl in")
    assert "sleep" not in complete("balloonctl ")
    assert "--dry-run" in complete("balloonctl inflate --d")
    assert complete("balloonctl start --design m") == ["modern"]
    assert complete("balloonctl -m a") == ["alpha"]
    assert complete("balloonctl stop a") == ["alpha"]
    assert complete("balloonctl expect oom_k") == ["oom_kills"]
    assert complete("balloonctl start --design split --set ins") == ["insert=early", "insert=late"]
    assert complete("balloonctl start --design split --set insert=late --set ins") == []
    assert complete("balloonctl start --set ins") == []  # the default design has no options


@pytest.mark.parametrize(
    ("words", "items"),
    [
        (["--set", "insert", "="], ["early", "late"]),
        (["--set", "insert", "=", "e"], ["early"]),
        (["--set", "=", "ins"], ["insert=early", "insert=late"]),
        (["--set", "=", "insert", "=", "l"], ["late"]),
        (["--set", "insert", "=", "late", "--set", "count", "="], ["after", "before"]),
    ],
)
def test_bash_cuts_words_at_equals_signs(
    call: Call, world: World, words: list[str], items: list[str]
) -> None:
    for before in (["start", "--design", "split"], ["explore", "split"]):
        line = ["balloonctl", *before, *words]
        env = {
            "_BALLOONCTL_COMPLETE": "bash_complete",
            "COMP_WORDS": "\n".join(line),
            "COMP_CWORD": str(len(line) - 1),
        }
        assert [item.partition(",")[2] for item in call(env=env).stdout.split()] == items


def test_expect_completes_exactly_the_figures_of_a_status(machine: FakeMachine) -> None:
    offered = complete_figure(click.Context(expect), expect.params[0], "")
    assert sorted(offered) == sorted(figures(to_document(machine.status())))


def test_every_option_is_called_in_files_and_variables_what_it_is_on_the_command_line() -> None:
    root = click.Context(main)
    found = [main.get_command(root, name) for name in COMMANDS]
    while found:
        command = found.pop()
        if isinstance(command, click.Group):
            found += [command.get_command(root, name) for name in command.list_commands(root)]
        for option in command.params if command else ():
            words = {
                word.removeprefix("--").replace("-", "_") for word in option.opts if word.startswith("--")
            }
            assert option.name in words or not words, (command.name, option.name)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (["start", "--ram", "64M", "--used", "65M"], "--used 50%"),
        (["start", "--ram", "64M", "--touch", "65M"], "--touch 100%"),
        (["oom", "-5M"], "balloonctl oom --help"),
        (["compact", "-5"], "balloonctl compact --help"),
        (["inflate", "2G"], "50% takes half of it"),
        (["deflate", "2G"], "balloonctl target 0 gives everything back"),
        (["inflate", "-5M"], "`deflate SIZE` makes the balloon smaller, `inflate SIZE` larger"),
    ],
)
def test_a_hint_leads_to_something_that_works(on: Call, line: list[str], hint: str) -> None:
    result = on(*line)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"hint: {hint}"


def test_verbose_says_what_the_machine_is_asked_and_twice_what_it_answers(on: Call) -> None:
    for line in (["-v", "inflate", "64M"], ["inflate", "64M", "-v"]):
        logged = [text for text in on(*line).stderr.splitlines() if text.startswith("log: ")]
        assert logged[0] == "log: > x-status"
        assert re.fullmatch(r"log: < x-status done after \d+\.\d ms", logged[1])
        assert logged[2].startswith('log: > balloon {"value": ')
    assert 'log: < {"schema": "balloonctl/status/1", ' in on("-vv", "status").stderr
    notes = [json.loads(text) for text in on("-v", "--json", "status").stderr.splitlines()]
    assert {(note["schema"], note["level"]) for note in notes} == {("balloonctl/note/1", "log")}


def test_time_is_not_wasted(on: Call) -> None:
    begun = time.monotonic()
    on("status")
    assert time.monotonic() - begun < 5
    assert PAGE == 4096


def test_regression_a_command_of_a_group_has_its_own_table(
    call: Call, tmp_path: Path, monkeypatch: Any
) -> None:
    # [inflate] was read for `bench inflate`, and the size of [bench.inflate] not at all.
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "balloonctl.toml"
    file.write_text('[inflate]\ntimeout = "5s"\n[bench.inflate]\nsize = "1000"\n')
    result = call("bench", "inflate")
    assert result.exit_code == 2
    assert "1000 is not a whole number of pages" in result.stderr
    file.write_text("[bench.inflate]\nsizes = 1\n")
    result = call("bench", "inflate")
    assert result.exit_code == 2
    assert "unknown option bench.inflate.sizes" in result.stderr


def test_regression_a_group_alone_prints_its_help(call: Call) -> None:
    # All of it stood on the line of the error.
    result = call("bench")
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: balloonctl bench [OPTIONS] COMMAND")
    assert "\n  inflate  How long an inflate takes" in result.stderr
    assert error_of(call("--json", "bench"))["what"] == "balloonctl bench needs a command"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("inflat", "no such command: 'inflat'; did you mean inflate?"),
        ("statsu", "no such command: 'statsu'; did you mean stats or status or start?"),
        ("e", "no such command: 'e'; did you mean events or expect or explore?"),
        ("frobnicate", "no such command: 'frobnicate'"),
        ("sleep", "'sleep' works in a shell or a script only"),
    ],
)
def test_a_command_that_does_not_exist(call: Call, typed: str, said: str) -> None:
    result = call(typed, "64M")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {said}\n")


def test_help_for_a_command_that_does_not_exist(call: Call) -> None:
    assert "did you mean inflate?" in call("-c", "help inflat").stderr
