"""The command serve: foreground and background, and the ways in which it is asked wrongly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from support.front_end import FrontEnd
from support.waiting import until

PAGE = 4096


def balloonctl(*words: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "balloonctl", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **options)


def test_background_machine_answers_the_ordinary_commands(tmp_path, runtime_dir) -> None:
    path = tmp_path / "s"
    started = balloonctl("serve", "--vhost-user", str(path), "--background", "vm", "--no-stats", "--json")
    assert started.returncode == 0, started.stderr
    document = json.loads(started.stdout)
    assert document["socket"] == str(path)
    assert "STATS_VQ" not in document["offered"]
    refused = balloonctl("-m", "vm", "inflate", "1M")
    assert refused.returncode == 1
    assert "no guest is attached" in refused.stderr
    rows = json.loads(balloonctl("ps", "--json").stdout)["machines"]
    assert [(row["name"], row["state"]) for row in rows] == [("vm", "waiting")]
    with FrontEnd(path) as front:
        front.negotiate(features=0b1 | 1 << 32)
        front.map()
        for index in range(2):
            front.vring(index, features=0b1 | 1 << 32)
        sent = balloonctl("-m", "vm", "target", "64p", "--no-wait")
        assert sent.returncode == 0, sent.stderr
        assert front.num_pages() == 64
        front.request(0, range(100, 164))
        front.write_actual(64)
        assert balloonctl("-m", "vm", "target", "64p").returncode == 0
        status = balloonctl("-m", "vm", "status")
        assert status.returncode == 0
        assert "256 KiB acknowledged" in status.stdout
        assert balloonctl("-m", "vm", "watch", "--count", "1").returncode == 0
        oom = balloonctl("-m", "vm", "oom")
        assert oom.returncode == 1
        assert "only an emulated guest" in oom.stderr
        assert balloonctl("-m", "vm", "expect", "held_pages", "64").returncode == 0
    assert balloonctl("stop", "vm").returncode == 0
    assert not path.exists()


def test_foreground_counts_and_takes_commands(tmp_path, runtime_dir) -> None:
    command = [
        sys.executable,
        "-m",
        "balloonctl",
        "serve",
        "--vhost-user",
        str(tmp_path / "s"),
        "--qmp",
        str(tmp_path / "q"),
    ]
    process = subprocess.Popen(
        [*command, "--interval", "100ms", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until((tmp_path / "q").exists)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["state"] == "waiting"
    with FrontEnd(tmp_path / "s") as front:
        front.guest()
        until(lambda: json.loads(process.stdout.readline())["state"] == "running")
        assert balloonctl("--connect", str(tmp_path / "q"), "target", "5p", "--no-wait").returncode == 0
        assert front.num_pages() == 5
        process.send_signal(signal.SIGTERM)
        assert front.closed()
    assert process.wait(10) == 0
    _, errors = process.communicate()
    assert "front end connected" in errors
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "q").exists()


def test_foreground_ends_after_so_many_looks(tmp_path) -> None:
    done = balloonctl("serve", "--vhost-user", str(tmp_path / "s"), "--count", "2", "--interval", "100ms")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("waiting") == 2


def test_a_socket_that_it_is_started_with(tmp_path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    number = listener.fileno()
    os.set_inheritable(number, True)
    done = balloonctl("serve", "--fd", str(number), "--count", "1", pass_fds=(number,))
    assert done.returncode == 0, done.stderr
    listener.close()


def test_print_capabilities() -> None:
    done = balloonctl("serve", "--print-capabilities")
    assert json.loads(done.stdout)["type"] == "balloon"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([], 2, "--vhost-user SOCKET or --fd N"),
        (["--vhost-user", "a", "--fd", "3"], 2, "--vhost-user SOCKET or --fd N"),
        (["--fd", "999"], 2, "is no socket"),
        (["--fd", "3", "--background", "x"], 2, "--background makes another"),
        (["--vhost-user", "s", "--background", "x", "--qmp", "q"], 2, "has its own socket"),
        (["--vhost-user", "s", "--queue-size", "100"], 2, "power of two"),
        (["--vhost-user", "missing/s"], 1, "cannot listen"),
        (["--vhost-user", "."], 2, ""),
    ],
)
def test_wrong_ways_to_ask(tmp_path, runtime_dir, words, code, text) -> None:
    done = balloonctl("serve", *words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
