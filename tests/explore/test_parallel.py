"""More processes change nothing but the time: verdicts, counts and schedules are those of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psutil
import pytest

from balloonvq.driver.designs import find
from balloonvq.errors import BalloonError, InvalidArgument
from balloonvq.explore.parallel import Task, connected, explore_all, processes
from balloonvq.explore.scenarios import SCENARIOS, Scenario, scenarios_for
from balloonvq.explore.search import Limits
from balloonvq.explore.verdict import Outcome

NAMES = (
    "oom-while-filling",
    "oom-while-leaking",
    "teardown",
    "fill-user",
    "empty-handed-leaking",
    "two-ooms",
)


def tasks(design: str = "coarse") -> list[Task]:
    return [Task(design, SCENARIOS[name], {}, Limits()) for name in NAMES]


def told(results):
    """All of a result but how long it took."""
    return [
        (
            result.design,
            result.scenario,
            result.verdict.outcome,
            result.verdict.states,
            result.verdict.transitions,
            result.verdict.bug,
            result.timeline,
            result.replay,
        )
        for result in results
    ]


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_processes_find_what_one_finds() -> None:
    alone = told(explore_all(tasks()))
    assert told(explore_all(tasks(), jobs=3)) == alone
    with processes(1) as pool:
        assert told(explore_all(tasks(), executor=pool)) == alone


def test_any_executor_serves() -> None:
    with ThreadPoolExecutor(2) as pool:
        assert told(explore_all(tasks(), executor=pool)) == told(explore_all(tasks()))


def test_processes_end_with_the_iterator() -> None:
    before = children()
    with closing(explore_all([*tasks(), *tasks("split")], jobs=3)) as found:
        next(found)
        next(found)
    assert children() - before <= trackers()


def trackers() -> set[int]:
    """Python's own process that looks after shared resources; it stays until this one ends."""
    return {
        child.pid
        for child in psutil.Process().children()
        if any("resource_tracker" in word for word in child.cmdline())
    }


def test_an_error_of_a_task_is_raised_here() -> None:
    wrong = Task("coarse", Scenario("wrong", "an actor that nobody knows", ("Z",)), {}, Limits())
    with pytest.raises(InvalidArgument, match="unknown actor 'Z'") as caught:
        list(explore_all([*tasks()[:1], wrong, *tasks()[1:]], jobs=2))
    assert "there are" in caught.value.why


def test_limits_hold_in_other_processes() -> None:
    small = [Task("coarse", one, {}, Limits(states=100)) for one in scenarios_for(find("coarse"))[1:4]]
    with processes(1) as pool:
        outcomes = [result.verdict.outcome for result in explore_all(small, executor=pool)]
    assert outcomes == [Outcome.INCOMPLETE] * 3


@pytest.mark.parametrize("killed", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_ctrl_c(killed: signal.Signals) -> None:
    command = [sys.executable, "-m", "balloonctl", "explore", "--all", "--jobs", "3"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    ) as child:
        workers: list[psutil.Process] = []
        deadline = time.monotonic() + 60
        while len(workers) < 3 and child.poll() is None and time.monotonic() < deadline:
            workers = psutil.Process(child.pid).children(recursive=True)
            time.sleep(0.05)
        assert len(workers) >= 3  # two workers, and Python's own resource tracker
        if killed is signal.SIGINT:
            os.killpg(child.pid, signal.SIGINT)  # as a terminal does
        else:
            os.kill(child.pid, killed)
        child.wait(30)
        assert child.stderr is not None
        said = child.stderr.read().decode()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert "Traceback" not in said


# -- dask ------------------------------------------------------------------------------


def test_a_dask_cluster_finds_what_one_process_finds() -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address=":0",
            protocol="tcp://",
            host="127.0.0.1",
        ) as cluster,
        connected(f"dask:{cluster.scheduler_address}") as executor,
    ):
        assert told(explore_all(tasks(), executor=executor)) == told(explore_all(tasks()))


def test_a_missing_dask_is_an_error_with_the_command_that_installs_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BalloonError, match="not installed") as caught, connected("dask:tcp://127.0.0.1:1"):
        pass
    assert "pip install 'balloonctl[dask]'" in caught.value.hint


@pytest.mark.parametrize("name", ["", "dask", "dask:", "ssh:host"])
def test_other_executors_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="there is no executor"), connected(name):
        pass


def test_a_scheduler_that_is_not_there_is_an_error(monkeypatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("balloonvq.explore.parallel.CONNECT_S", 1)
    with pytest.raises(BalloonError, match="no scheduler answers"), connected("dask:tcp://127.0.0.1:1"):
        pass
