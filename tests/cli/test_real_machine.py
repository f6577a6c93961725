"""The command on real machines: what the issue calls the main job, and every bad input that needs one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jsonschema
import pexpect
import pytest
from support.waiting import until

BALLOONCTL = [sys.executable, "-m", "balloonctl"]
MIB = 1 << 20


def run(*args: str, code: int | None = 0, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """A command line, whose exit code is checked unless it is None."""
    done = subprocess.run(
        [*BALLOONCTL, *args],
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "100"},
    )
    assert "Traceback" not in done.stderr + done.stdout
    if code is not None:
        assert done.returncode == code, (args, done.stdout, done.stderr)
    return done


def document(*args: str, code: int | None = 0) -> Any:
    return json.loads(run(*args, "--json", code=code).stdout)


def three_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the error says, label by label."""
    return [
        line.partition(":")[0] for line in done.stderr.splitlines() if re.match("(error|why|hint):", line)
    ]


def ends(pid: int) -> bool:
    """Whether a process is gone, or has only its exit code left to tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def machine(runtime_dir: Path) -> Iterator[Path]:
    """A small default machine; its socket."""
    run("start", "--ram", "64M", "--used", "4M")
    yield runtime_dir / "default.sock"
    run("stop", code=None)
    left = [path.name for path in runtime_dir.iterdir() if path.suffix != ".log"]
    assert left == []


def test_the_main_job_inflate_deflate_oom_and_memory_that_really_comes_back(
    machine: Path, root: Path
) -> None:
    inflated = document("inflate", "32M")
    assert (inflated["outcome"], inflated["actual_bytes"]) == ("reached", 32 * MIB)
    status = document("status")
    assert status["returned_acknowledged_bytes"] == status["returned_measured_bytes"] == 32 * MIB
    assert status["counters"]["inflated_pages"] == 8192
    assert status["counters"]["requests"] == 32
    schema = json.loads((root / "docs/reference/schemas/status-1.json").read_text())
    jsonschema.validate(status, schema)

    assert document("deflate", "8M")["actual_bytes"] == 24 * MIB
    relieved = document("oom")
    assert relieved["outcome"] == "relieved"
    assert relieved["balloon_pages"] > 0
    assert relieved["lost_pages"] == 0
    status = document("status")
    assert status["counters"]["oom_deflated_pages"] == relieved["balloon_pages"]
    assert status["balloon"] == {"state": "short", "reason": "deflated-by-oom"}
    assert document("check")["lost_pages"] == 0


@pytest.mark.parametrize("kind", ["anon", "huge", "./guest", "./"])
def test_memory_of_any_kind_really_comes_back(runtime_dir: Path, tmp_path: Path, kind: str) -> None:
    run("start", "--ram", "32M", "--memory", kind)
    run("inflate", "16M")
    status = document("status")
    assert status["returned_acknowledged_bytes"] == status["returned_measured_bytes"] == 16 * MIB
    # A path is meant from where the command was given.
    assert status["memory"] == (str(tmp_path / kind) if "/" in kind else kind)
    run("stop")
    assert not (tmp_path / "guest").exists()


def test_memory_that_cannot_be_is_refused(runtime_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    for options in (
        ["--memory", "paper"],
        ["--memory", "./precious"],
        ["--memory", "/dev/null"],
        ["--memory", "anon", "--discard", "punch"],
    ):
        assert three_lines(run("start", "--ram", "32M", *options, code=2))[0] == "error"
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize(
    "line",
    [
        "--connect gone/file status",
        "bench compare gone/file gone/file",
        "bench ring --csv gone/file",
        "bench ring --ringtest gone/file",
        "designs gone/file.py:Mine",
        "explore gone/file.py:Mine",
        "explore modern --html gone/file",
        "explore modern --scenario two-ooms --resume gone/file",
        "explore modern --scenario gone/file.py:MINE",
        "run gone/file",
        "run --record gone/file -",
        "serve --vhost-user gone/file",
        "serve --vhost-user gone/file --background vm",
        "serve --vhost-user socket --qmp gone/file",
        "start --design gone/file.py:Mine",
        "start --memory gone/file",
    ],
)
def test_a_file_that_is_missing_is_no_wrong_command_line(runtime_dir: Path, line: str) -> None:
    # It was exit code 2 for guest memory, the socket of serve, a checkpoint and ringtest, and 1 for the others.
    done = run(*line.split(), code=1)
    assert done.stdout == ""
    assert three_lines(done)[:2] == ["error", "why"]
    assert "gone/file" in done.stderr


def test_without_deflate_on_oom_the_killer_comes(runtime_dir: Path) -> None:
    run("start", "--ram", "32M", "--no-deflate-on-oom")
    run("inflate", "8M")
    killed = document("oom")
    assert (killed["outcome"], killed["killed"], killed["balloon_pages"]) == ("killed", "hog", 0)


def test_the_2017_deadlock_is_reported_with_both_columns_and_the_machine_still_stops(
    runtime_dir: Path,
) -> None:
    run("start", "--design", "coarse", "--ram", "32M")
    done = run("oom", "--while-filling", code=3)
    for word in ("size worker", "GFP_NOFS", "balloon_lock", "fs_lock", "oom_lock", "coarse.py:"):
        assert word in done.stdout
    assert three_lines(done) == ["error", "why", "hint"]
    status = document("status")
    assert status["state"] == "deadlocked"
    assert status["balloon"] == {"state": "short", "reason": "deadlocked"}
    run("inflate", "1M", code=3)
    run("stop")
    assert document("ps")["machines"] == []


def test_modern_is_relieved_where_coarse_deadlocks(runtime_dir: Path) -> None:
    run("start", "--ram", "32M", "--design", "modern")
    assert document("oom", "--while-filling")["outcome"] == "relieved"
    assert document("status")["state"] == "running"


CARELESS = """from balloonvq.driver.designs.coarse import Coarse

class Careless(Coarse):
    name = "careless"

    def leak(self, n):
        leaked = super().leak(n)
        if leaked:
            self.vb.tell_host(self.vb.deflate_vq, self.pfns)  # once more
        return leaked
"""


def test_a_driver_that_breaks_rules_is_told_of(runtime_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "careless.py").write_text(CARELESS)
    run("start", "--ram", "32M", "--design", "./careless.py:Careless")
    run("inflate", "8M")
    run("check")
    done = run("oom", "1M", code=0)  # all of it was free
    assert "fitted" in done.stdout
    done = run("oom", "--json", code=3)
    report = json.loads(done.stdout)
    assert report["outcome"] == "relieved"
    assert report["broken_rules"] == {"pfns_never_inflated": report["balloon_pages"]}
    assert json.loads(done.stderr.splitlines()[-1])["error"] == "RuleBroken"
    assert "PFNs deflated that the balloon did not hold" in run("check", code=3).stderr
    # What was broken before is not broken again.
    run("oom", "1M", code=0)
    run("status")


def test_a_command_starts_the_default_machine_and_says_so(runtime_dir: Path) -> None:
    environment = {"BALLOONCTL_START_RAM": "32M"}
    done = subprocess.run(
        [*BALLOONCTL, "inflate", "4M"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "default" in done.stderr
    assert document("status")["actual_bytes"] == 4 * MIB


def test_the_balloon_stops_short_when_the_guest_has_nothing_left(machine: Path) -> None:
    done = run("inflate", "63M", code=1)
    assert "no free pages" in done.stderr + done.stdout
    assert document("status")["balloon"]["reason"] == "guest-has-no-free-pages"


def test_a_wait_that_runs_out_of_time_ends_with_124(machine: Path) -> None:
    with QMP(machine) as qmp:
        qmp.execute("x-fault", **{"ack-delay-ns": 10**9})
        done = run("inflate", "32M", "--timeout", "100ms", code=124)
        assert three_lines(done)[0] == "error"
        qmp.execute("x-fault")


def test_a_driver_that_hears_nothing_is_called_stalled(machine: Path) -> None:
    with QMP(machine) as qmp:
        qmp.execute("x-fault", **{"stall-queues": 1})
        done = run("inflate", "1M", code=1)
        assert "stalled" in done.stderr
        assert "\u2717 stalled" in run("status").stdout
        assert "\u2717 short of its target: the driver is stalled" in run("status").stdout
        assert "\u2717 stalled" in run("ps").stdout
        assert " stalled " in run("watch", "--count", "1").stdout
        run("expect", "state", "running", code=1)
        run("expect", "state", "stalled")
        qmp.execute("x-fault")
    assert document("target", "1M")["outcome"] == "reached"
    run("expect", "state", "running")


@pytest.mark.parametrize("size", ["-1M", "0", "nan", "inf", "64Mb", "1000", "1.5p", "", "65M"])
def test_sizes_that_make_no_sense_are_usage_errors(machine: Path, size: str) -> None:
    done = run("inflate", "--", size, code=2)
    assert three_lines(done)[0] == "error"
    assert document("status")["target_bytes"] == 0


def test_a_second_start_says_who_runs(machine: Path) -> None:
    done = run("start", "--ram", "32M", code=1)
    assert three_lines(done) == ["error", "why", "hint"]
    assert "balloonctl stop default" in done.stderr


def test_more_memory_than_the_host_has_is_refused(runtime_dir: Path) -> None:
    done = run("start", "--ram", "100T", code=None)
    assert done.returncode in {1, 2}
    assert three_lines(done) == ["error", "why", "hint"] or three_lines(done)[:2] == ["error", "why"]
    assert [path.name for path in runtime_dir.iterdir() if path.suffix != ".log"] == []


def test_a_dead_socket_and_a_foreign_one(runtime_dir: Path) -> None:
    dead = runtime_dir / "dead"
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(str(dead))
    done = run("--connect", str(dead), "status", code=1)
    assert three_lines(done)[:2] == ["error", "why"]

    foreign = runtime_dir / "foreign"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(foreign))
        server.listen()

        def serve() -> None:
            peer, _ = server.accept()
            peer.sendall(b"220 mail.example ESMTP\r\n")
            peer.close()

        thread = threading.Thread(target=serve)
        thread.start()
        done = run("--connect", str(foreign), "status", code=1)
        thread.join()
    assert three_lines(done)[:2] == ["error", "why"]
    dead.unlink()
    foreign.unlink()


def test_a_machine_killed_in_mid_inflate_blocks_nothing(machine: Path) -> None:
    with QMP(machine) as qmp:
        qmp.execute("x-fault", **{"ack-delay-ns": 300_000_000})
    pid = document("status")["pid"]
    waiter = subprocess.Popen(
        [*BALLOONCTL, "inflate", "32M"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(lambda: document("status")["actual_bytes"] > 0, "the inflate began")
    os.kill(pid, signal.SIGKILL)
    _, errors = waiter.communicate(timeout=30)
    assert waiter.returncode == 1
    assert "Traceback" not in errors
    assert re.search("^error:", errors, re.MULTILINE)
    run("start", "--ram", "32M")
    assert document("status")["actual_bytes"] == 0


def test_a_machine_that_died_is_an_error_and_not_silently_replaced(machine: Path) -> None:
    pid = document("status")["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: ends(pid), "the machine is gone")
    done = run("inflate", "8M", code=1)
    assert three_lines(done) == ["error", "why", "hint"]
    assert "error: the machine default is no longer running" in done.stderr
    assert f"process {pid}" in done.stderr
    assert "hint: balloonctl start " in done.stderr
    assert "no machine runs: starting default" in run("inflate", "8M").stderr


def test_a_stopped_machine_is_answered_about_after_the_timeout(machine: Path) -> None:
    pid = document("status")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        done = run("inflate", "8M", "--timeout", "500ms", code=124)
        assert time.monotonic() - begun < 4
        assert three_lines(done) == ["error", "why", "hint"]
        assert f"process {pid} is stopped" in done.stderr
        assert f"✗ default: its process {pid} is stopped" in run("ps").stdout
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_machine_stopped_while_it_is_waited_for_is_answered_about_too(machine: Path) -> None:
    with QMP(machine) as qmp:
        qmp.execute("x-fault", **{"ack-delay-ns": 300_000_000})
    status = document("status")
    waiter = subprocess.Popen(
        [*BALLOONCTL, "inflate", "32M", "--timeout", "2s"], stderr=subprocess.PIPE, text=True
    )
    until(lambda: document("status")["actual_bytes"] > 0, "the inflate began")
    os.kill(status["pid"], signal.SIGSTOP)
    try:
        _, errors = waiter.communicate(timeout=30)
    finally:
        os.kill(status["pid"], signal.SIGCONT)
    assert waiter.returncode == 124
    assert "error: no reply to x-wait" in errors


def test_two_first_commands_at_once_share_one_machine(runtime_dir: Path) -> None:
    both = [
        subprocess.Popen([*BALLOONCTL, "status", "--json"], stdout=subprocess.PIPE, text=True) for _ in "12"
    ]
    pids = {json.loads(command.communicate(timeout=60)[0])["pid"] for command in both}
    assert [command.returncode for command in both] == [0, 0]
    assert len(pids) == 1
    run("stop")


def test_ctrl_c_ends_the_waiting_and_not_the_machine(machine: Path) -> None:
    with QMP(machine) as qmp:
        qmp.execute("x-fault", **{"ack-delay-ns": 300_000_000})
        waiter = subprocess.Popen(
            [*BALLOONCTL, "inflate", "32M"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        until(lambda: document("status")["actual_bytes"] > 0, "the inflate began")
        waiter.send_signal(signal.SIGINT)
        _, errors = waiter.communicate(timeout=30)
        assert waiter.returncode == 130
        assert "Traceback" not in errors
        qmp.execute("x-fault")
        assert qmp.execute("x-wait", timeout=20)["outcome"] == "reached"


def test_a_closed_pipe_is_no_error_message(machine: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m balloonctl watch --interval 0.01s | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


class QMP:
    """A bare QMP conversation, byte by byte ours."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rb")
        assert b"QMP" in self.lines.readline()
        assert self.execute("qmp_capabilities") == {}

    def execute(self, verb: str, **arguments: Any) -> Any:
        self.socket.sendall(json.dumps({"execute": verb, "arguments": arguments}).encode() + b"\n")
        return self.reply()["return"]

    def reply(self) -> Any:
        while "event" in (message := json.loads(self.lines.readline())):
            pass
        return message

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.close()
        self.socket.close()


def test_garbage_half_lines_and_ten_megabytes_do_not_disturb_the_machine(machine: Path) -> None:
    with QMP(machine) as qmp:
        qmp.socket.sendall(b"\x00\xff{]garbage\n")
        assert qmp.reply()["error"]["class"] == "GenericError"
        qmp.socket.sendall(b'{"execute": "' + b"x" * (10 * MIB) + b'"}\n')
        assert qmp.reply()["error"]["class"] == "GenericError"
        assert qmp.execute("query-balloon") == {"actual": 64 * MIB}
        qmp.socket.sendall(b'{"execute": "query-st')
    assert document("inflate", "1M")["outcome"] == "reached"


def test_a_hundred_clients_at_once(machine: Path) -> None:
    clients = [QMP(machine) for _ in range(100)]
    try:
        for client in clients:
            client.socket.sendall(b'{"execute": "x-status"}\n')
        answers = [client.reply()["return"]["ram_bytes"] for client in clients]
        assert answers == [64 * MIB] * 100
        assert document("inflate", "4M")["outcome"] == "reached"
    finally:
        for client in clients:
            client.__exit__()


def test_a_full_tmpfs_under_the_runtime_directory(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k,mode=700", "tmpfs", tmp_path],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        (tmp_path / "filler").write_bytes(b"x" * 4096)
        done = subprocess.run(
            [*BALLOONCTL, "start", "--ram", "32M"],
            env=os.environ | {"BALLOONCTL_RUNTIME_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 1
        assert three_lines(done) == ["error", "why", "hint"]
        assert [path.name for path in tmp_path.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_script_fails_at_its_line_with_its_exit_code(runtime_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "s.balloon"
    script.write_text(
        "# a comment\n\nstart --ram 32M\ninflate 4M   # and another\nexpect actual 4MiB\nsleep 1h\n"
        "expect actual 5MiB\necho never\n"
    )
    done = run("run", str(script), code=1)
    assert "s.balloon:7" in done.stderr
    assert "never" not in done.stdout
    kept = run("run", "--keep-going", str(script), code=1)
    assert "never" in kept.stdout


def test_a_recording_replays(runtime_dir: Path, tmp_path: Path) -> None:
    recording = tmp_path / "r.balloon"
    run("run", "--record", str(recording), "-", stdin="start --ram 32M\ninflate 4M\nexpect actual 4M\n")
    assert run("run", str(recording)).stdout.count("reached") == 1


def test_the_same_seed_gives_the_same_document(runtime_dir: Path) -> None:
    line = "start --ram 32M --fragmented --seed 7; inflate 8M; oom; target 2M; sleep 5s; status --json"

    def told() -> Any:
        output = run("-c", line).stdout
        status = json.loads(output[output.index("{\n") :])
        for name in ("pid", "time", "monotonic_ns", "uptime_ns"):
            del status[name]
        for queue in status["queues"]:
            queue.pop("latency")
        # Whether the device was already listening when the statistics queue was first kicked is a race of two threads.
        counters = status["counters"]
        counters["kicks"] += counters.pop("kicks_suppressed")
        status["queues"] = [q for q in status["queues"] if q["name"] != "stats"]
        return status

    assert told() == told()


@pytest.mark.terminal
def test_the_shell_at_a_real_terminal(runtime_dir: Path, tmp_path: Path) -> None:
    child = pexpect.spawn(
        sys.executable,
        ["-m", "balloonctl", "shell"],
        env=os.environ
        | {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(tmp_path)},
        dimensions=(40, 100),
        encoding="utf-8",
        timeout=30,
    )
    child.expect(">")
    child.send("start --ram 32M\r")
    child.expect("started")
    child.send("inflate 4M\r")
    child.expect("reached")
    child.send("nonsense\r")
    child.expect("error")
    child.sendcontrol("c")
    child.send("status\r")
    child.expect("PFNs not held")
    child.expect(">")
    child.sendcontrol("d")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
