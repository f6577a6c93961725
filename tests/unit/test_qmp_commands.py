"""QMP's verbs: arguments, replies and refusals."""

from __future__ import annotations

from typing import Any

import pytest
from support.fake_machine import FakeMachine

from balloonvq.counters import STAT_NAMES
from balloonvq.errors import CommandFailed, MachineStopped
from balloonvq.qmp.commands import BALLOON_PATHS, UNREPORTED, Commands, MachineAPI
from balloonvq.qmp.messages import Greeting

GIB = 1 << 30


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def commands(machine: FakeMachine) -> Commands:
    api: MachineAPI = machine
    return Commands(api, version=Greeting(version=(0, 1, 0), package="balloonctl 0.1.0"))


@pytest.mark.parametrize(
    ("left_bytes", "pages"),
    [
        (GIB, 0),
        (GIB // 2, 131072),
        (GIB - 4096, 1),
        (GIB - 4095, 0),
        (GIB - 4097, 1),
        (2 * GIB, 0),
        (1, 262143),
    ],
)
def test_balloon_counts_what_is_left_and_rounds_as_qemu_does(
    machine: FakeMachine, commands: Commands, left_bytes: int, pages: int
) -> None:
    assert commands.execute("balloon", {"value": left_bytes}) == {}
    assert machine.target_pages == pages
    assert commands.execute("query-balloon") == {"actual": GIB - pages * 4096}


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        ("balloon", {}, "Parameter 'value' is missing"),
        ("balloon", {"value": 0}, "Parameter 'target' expects a size"),
        ("balloon", {"value": -1}, "Parameter 'target' expects a size"),
        ("balloon", {"value": 1 << 64}, "Parameter 'target' expects a size"),
        ("balloon", {"value": "1"}, "Invalid parameter type for 'value', expected: integer"),
        ("balloon", {"value": 1.0}, "Invalid parameter type for 'value', expected: integer"),
        ("balloon", {"value": True}, "Invalid parameter type for 'value', expected: integer"),
        ("balloon", {"value": None}, "Invalid parameter type for 'value', expected: integer"),
        ("balloon", {"value": 1, "x": 1}, "Parameter 'x' is unexpected"),
        ("query-balloon", {"x": 1}, "Parameter 'x' is unexpected"),
        ("x-wait", {"timeout": -0.1}, "Parameter 'timeout' expects a value of at least 0"),
        ("x-wait", {"timeout": "1"}, "Invalid parameter type for 'timeout', expected: number"),
        ("x-oom", {"size": 0}, "Parameter 'size' expects a value of at least 1"),
        ("x-oom", {"gfp-fs": 1}, "Invalid parameter type for 'gfp-fs', expected: boolean"),
        ("x-oom", {"gfp_fs": True}, "Parameter 'gfp_fs' is unexpected"),
        ("x-compact", {"pages": 0}, "Parameter 'pages' expects a value of at least 1"),
        ("x-fault", {"lose-kicks": 1 << 32}, "Parameter 'lose-kicks' expects a value of at most 4294967295"),
        ("qom-get", {"path": BALLOON_PATHS[0]}, "Parameter 'property' is missing"),
        (
            "qom-get",
            {"path": BALLOON_PATHS[0], "property": "foo"},
            "Property 'virtio-balloon-device.foo' not found",
        ),
        (
            "qom-set",
            {"path": BALLOON_PATHS[0], "property": "guest-stats", "value": 1},
            "Property 'virtio-balloon-device.guest-stats' is not writable",
        ),
        (
            "qom-set",
            {"path": BALLOON_PATHS[0], "property": "guest-stats-polling-interval", "value": -1},
            "timer value must be greater than zero",
        ),
        (
            "qom-set",
            {"path": BALLOON_PATHS[0], "property": "guest-stats-polling-interval", "value": 1 << 32},
            "timer value is too big",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_qemus_words(
    machine: FakeMachine, commands: Commands, verb: str, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(CommandFailed) as caught:
        commands.execute(verb, arguments)
    assert caught.value.what == words
    assert caught.value.error_class == "GenericError"
    assert (machine.target_pages, machine.faults, machine.stats_polling_interval) == (0, {}, 0)


def test_an_unknown_verb_is_not_found(commands: Commands) -> None:
    with pytest.raises(CommandFailed, match="The command foo has not been found") as caught:
        commands.execute("foo")
    assert caught.value.error_class == "CommandNotFound"


def test_an_unknown_object_is_not_found(commands: Commands) -> None:
    for verb in ("qom-list", "qom-get"):
        arguments = {"path": "/machine/x"} | ({"property": "guest-stats"} if verb == "qom-get" else {})
        with pytest.raises(CommandFailed, match="Device '/machine/x' not found") as caught:
            commands.execute(verb, arguments)
        assert caught.value.error_class == "DeviceNotFound"


@pytest.mark.parametrize(
    ("state", "status", "running"),
    [
        ("running", "running", True),
        ("deadlocked", "running", True),
        ("bug", "guest-panicked", False),
        ("stopping", "shutdown", False),
    ],
)
def test_query_status_has_qemus_states(
    machine: FakeMachine, commands: Commands, state: str, status: str, running: bool
) -> None:
    machine.state = state
    assert commands.execute("query-status") == {"status": status, "running": running}


def test_every_verb_is_listed(commands: Commands) -> None:
    names = [entry["name"] for entry in commands.execute("query-commands")]
    assert names == sorted(names)
    assert {"qmp_capabilities", "balloon", "quit", "x-status"} <= set(names)


def test_the_version_is_that_of_the_greeting(commands: Commands) -> None:
    assert commands.execute("query-version") == commands.version.as_document()["QMP"]["version"]


@pytest.mark.parametrize("path", BALLOON_PATHS)
def test_guest_stats_look_like_qemus(commands: Commands, path: str) -> None:
    stats = commands.execute("qom-get", {"path": path, "property": "guest-stats"})
    assert stats["last-update"] == 1795305600
    assert stats["stats"]["stat-free-memory"] == 4096
    assert stats["stats"]["stat-swap-in"] == UNREPORTED
    assert stats["stats"]["stat-unknown-77"] == 5
    assert set(STAT_NAMES) <= set(stats["stats"])


@pytest.mark.parametrize("path", BALLOON_PATHS)
def test_the_polling_interval_can_be_set_and_read(commands: Commands, path: str) -> None:
    where = {"path": path, "property": "guest-stats-polling-interval"}
    assert commands.execute("qom-set", where | {"value": 7}) == {}
    assert commands.execute("qom-get", where) == 7


def test_the_object_tree_leads_to_the_balloon(commands: Commands) -> None:
    path = ""
    while path not in BALLOON_PATHS:
        path += "/" + commands.execute("qom-list", {"path": path or "/"})[0]["name"]
    assert {"name": "guest-stats-polling-interval", "type": "int"} in commands.execute(
        "qom-list", {"path": path}
    )


def test_faults_are_passed_on_under_their_names_in_c(machine: FakeMachine, commands: Commands) -> None:
    assert commands.execute("x-fault", {"ack-delay-ns": 10**10, "lose-kicks": 2}) == {}
    assert machine.faults == {"ack_delay_ns": 10**10, "lose_kicks": 2}


def test_our_verbs_answer_with_their_documents(machine: FakeMachine, commands: Commands) -> None:
    assert commands.execute("x-status")["schema"] == "balloonctl/status/1"
    assert commands.execute("x-wait", {"timeout": 0})["schema"] == "balloonctl/wait/1"
    assert commands.execute("x-stats", {"refresh": True})["schema"] == "balloonctl/stats/1"
    assert machine.calls == ["statistics True"]
    assert commands.execute("x-compact", {"pages": 5})["migrated"] == 5
    assert commands.execute("x-check") == {"checked_pages": 10, "lost_pages": 0}
    assert commands.execute("x-deadlock") is None
    machine.state = "deadlocked"
    assert commands.execute("x-deadlock")["schema"] == "balloonctl/deadlock/1"


def test_oom_takes_the_faults_circumstances(commands: Commands) -> None:
    report = commands.execute("x-oom", {"size": 8192, "gfp-fs": False, "while-filling": True})
    assert (report["requested_bytes"], report["gfp_fs"], report["while_filling"]) == (8192, False, True)
    report = commands.execute("x-oom")
    assert (report["requested_bytes"], report["gfp_fs"], report["while_filling"]) == (GIB, True, False)


def test_wait_runs_into_its_time_limit(machine: FakeMachine, commands: Commands) -> None:
    machine.hold = True
    machine.set_target(5)
    assert commands.execute("x-wait", {"timeout": 0.02})["outcome"] == "timeout"


def test_an_abandoned_wait_ends(machine: FakeMachine, commands: Commands) -> None:
    machine.hold = True
    machine.set_target(5)
    with pytest.raises(MachineStopped):
        commands.execute("x-wait", {}, lambda: True)


def test_quit_asks_whoever_runs_the_machine(machine: FakeMachine) -> None:
    assert Commands(machine).execute("quit") == {}
    assert machine.calls == ["quit"]
    asked: list[str] = []
    Commands(machine, on_quit=lambda: asked.append("quit")).execute("quit")
    assert (machine.calls, asked) == (["quit"], ["quit"])
