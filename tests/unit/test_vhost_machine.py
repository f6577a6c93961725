"""A machine whose guest is elsewhere answers the verbs of an emulated one, as far as they make sense."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator

import pytest
from support.front_end import PROTOCOL, FrontEnd
from support.waiting import never, open_descriptors, until

from balloonvq.errors import BalloonError, InvalidArgument, MachineError, MachineStopped
from balloonvq.memory import PAGE_SIZE
from balloonvq.qmp.commands import Commands
from balloonvq.vhost_machine import VhostConfig, VhostMachine
from balloonvq.vhost_user.layout import is_prefix
from balloonvq.vhost_user.messages import ProtocolFeature

INFLATE, DEFLATE, STATS = range(3)
SECOND = 1_000_000_000


@pytest.fixture
def machine(tmp_path) -> Iterator[VhostMachine]:
    with VhostMachine(VhostConfig(socket=str(tmp_path / "s"))) as machine:
        yield machine


@pytest.fixture
def guest(machine) -> Iterator[FrontEnd]:
    with FrontEnd(machine.config.socket) as front:
        front.guest()
        until(lambda: machine.state == "running")
        yield front


def driver(front: FrontEnd, stop: threading.Event) -> threading.Thread:
    """A balloon driver in few words: reads the target at each CONFIG_CHANGE and goes there."""

    def run() -> None:
        actual = 0
        while not stop.is_set():
            try:
                assert front.channel is not None
                front.channel.recv(12)
            except TimeoutError:
                return
            target = front.num_pages()
            pages = list(range(min(actual, target), max(actual, target)))
            for at in range(0, len(pages), 256):
                front.request(
                    INFLATE if target > actual else DEFLATE, [1000 + p for p in pages[at : at + 256]]
                )
            actual = target
            front.write_actual(actual)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_without_a_guest(machine) -> None:
    status = machine.status()
    assert (status.state, status.ram_bytes, status.target_pages, status.queues) == ("waiting", 0, 0, ())
    assert status.balloon.state == "settled"
    for verb in (lambda: machine.set_target(1), lambda: machine.wait(SECOND)):
        with pytest.raises(BalloonError, match="no guest is attached") as raised:
            verb()
        assert str(machine.config.socket) in raised.value.hint
    assert machine.statistics().updates == 0


def test_inflate_wait_and_deflate(machine, guest) -> None:
    events = []
    machine.subscribe(lambda name, data: events.append((name, data)))
    stop = threading.Event()
    thread = driver(guest, stop)
    guest.memory.populate(0, guest.pages * PAGE_SIZE)
    for pages in (600, 10, 0):
        machine.set_target(pages)
        result = machine.wait(10 * SECOND)
        assert (result.outcome, result.actual_bytes) == ("reached", pages * PAGE_SIZE)
        status = machine.status()
        assert (status.held_pages, status.balloon.state) == (pages, "settled")
        if pages == 600:
            assert status.returned_measured_bytes == 600 * PAGE_SIZE
    until(lambda: ("BALLOON_CHANGE", {"actual": guest.pages * PAGE_SIZE}) in events)
    stop.set()
    guest.timeout = 0.01
    assert guest.channel is not None
    guest.channel.settimeout(0.01)
    machine.set_target(1)
    thread.join()


def test_what_cannot_be_seen_is_null(machine, guest) -> None:
    document = Commands(machine).execute("x-status")
    for name in ("design", "guest_free_bytes", "guest_used_bytes", "stack"):
        assert document[name] is None
    for name in ("oom_kills", "lost_pages", "migrated_pages", "kicks_suppressed"):
        assert document["counters"][name] is None
    assert document["queues"][0]["kicks"] is None
    assert document["ram_bytes"] == guest.pages * PAGE_SIZE


@pytest.mark.parametrize("verb", ["x-oom", "x-compact", "x-check"])
def test_what_only_an_emulated_guest_can_do_says_so(machine, guest, verb) -> None:
    with pytest.raises(BalloonError, match="only an emulated guest") as raised:
        Commands(machine).execute(verb)
    assert raised.value.hint
    assert machine.deadlock() is None


def test_a_guest_that_does_not_move_is_stalled(machine, guest, monkeypatch) -> None:
    monkeypatch.setattr("balloonvq.vhost_machine.STALLED_NS", 100_000_000)
    machine.set_target(5)
    result = machine.wait(10 * SECOND)
    assert (result.outcome, result.reason) == ("short", "driver-stalled")
    status = machine.status()
    assert (status.state, status.balloon.state, status.balloon.reason) == (
        "stalled",
        "short",
        "driver-stalled",
    )
    assert machine.wait(1).outcome == "timeout"
    guest.write_actual(5)
    until(lambda: machine.status().state == "running")
    assert machine.status().balloon.state == "settled"


def test_a_balloon_that_the_guest_shrank_was_out_of_memory(machine, guest) -> None:
    machine.set_target(100)
    guest.write_actual(100)
    assert machine.wait(SECOND).outcome == "reached"
    until(lambda: machine._reached == 100)
    guest.write_actual(60)
    until(lambda: machine.status().balloon.reason == "deflated-by-oom")
    machine.set_target(200)
    assert machine.status().balloon.state == "moving"


def test_a_guest_that_leaves_ends_the_wait_and_keeps_the_wish(machine, guest) -> None:
    results = []
    machine.set_target(77)
    thread = threading.Thread(target=lambda: results.append(machine.wait(10 * SECOND)))
    thread.start()
    guest.connection.close()
    thread.join()
    assert results[0].reason == "no-guest"
    until(lambda: machine.state == "waiting")
    with FrontEnd(machine.config.socket) as other:
        other.guest()
        assert other.num_pages() == 77


def test_a_target_that_changes_ends_the_wait(machine, guest) -> None:
    results = []
    machine.set_target(5)
    thread = threading.Thread(target=lambda: results.append(machine.wait(10 * SECOND)))
    thread.start()
    until(lambda: machine._changed._waiters)
    machine.set_target(6)
    thread.join()
    assert results[0].reason == "target-changed"


def test_without_a_channel_the_target_is_set_and_said_to_be_unheard(machine) -> None:
    with FrontEnd(machine.config.socket) as front:
        front.guest(protocol=PROTOCOL & ~int(ProtocolFeature.BACKEND_REQ))
        until(lambda: machine.state == "running")
        with pytest.raises(BalloonError, match="cannot be told"):
            machine.set_target(9)
        assert front.num_pages() == 9


def test_statistics_and_their_interval(machine, guest) -> None:
    def send() -> None:
        guest.memory.write(0x50000, struct.pack("<HQHQ", 4, 4096, 9999, 1))
        guest.queues[STATS].add(0x50000, 20)
        os.eventfd_write(guest.queues[STATS].kick_fd, 1)

    send()
    until(lambda: machine.statistics(refresh=False).updates == 1)
    assert machine.statistics(refresh=False).stats == {"stat-free-memory": 4096, "stat-unknown-9999": 1}
    machine.stats_polling_interval = 1
    assert guest.taken(STATS)
    send()
    until(lambda: machine.statistics(refresh=False).updates == 2)
    machine.stats_polling_interval = 0
    with pytest.raises(InvalidArgument):
        machine.stats_polling_interval = -1


def test_a_front_end_that_was_sent_away_is_told_of(machine) -> None:
    with FrontEnd(machine.config.socket) as front:
        front.send_raw(b"\xff" * 12)
        assert front.closed()
    until(lambda: machine.status().trouble)
    assert "version" in str(machine.status().trouble)


def test_a_broken_ring_shows(machine, guest) -> None:
    guest.memory.write(guest.rings(INFLATE).driver + 2, struct.pack("<H", 999))
    os.eventfd_write(guest.queues[INFLATE].kick_fd, 1)
    until(lambda: machine.state == "broken")
    assert "inflate queue" in str(machine.status().trouble)
    assert machine.status().balloon.reason == "device-broken"


def test_the_end_frees_everything_and_those_who_wait(tmp_path) -> None:
    before = open_descriptors()
    machine = VhostMachine(VhostConfig(socket=str(tmp_path / "s"), stats_interval=5))
    front = FrontEnd(machine.config.socket).guest()
    until(lambda: machine.state == "running")
    machine.set_target(5)
    errors = []

    def wait() -> None:
        try:
            machine.wait()
        except (MachineStopped, BalloonError) as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    machine.stop()
    machine.stop()
    for thread in threads:
        thread.join()
    assert len(errors) == 3
    front.close()
    assert open_descriptors() == before


def test_an_end_in_the_middle_of_a_look_is_no_guest_that_has_gone(machine, guest, monkeypatch) -> None:
    def ended(target: int, *, stalled: bool) -> tuple[str, str]:
        del target, stalled
        monkeypatch.setattr(machine, "_stopping", True)
        return "short", "no-guest"

    monkeypatch.setattr(machine, "_ended", ended)
    with pytest.raises(MachineStopped):
        machine.wait()
    monkeypatch.undo()


def test_faults_reach_the_device(machine, guest) -> None:
    machine.set_faults(stall_queues=1)
    guest.offer(INFLATE, [9])
    never(lambda: machine.device.counters().requests)
    machine.set_faults()
    assert guest.taken(INFLATE)


@pytest.mark.parametrize("stats", [True, False])
def test_only_prefix_sets_are_offered(stats) -> None:
    assert is_prefix(VhostConfig(socket="s", stats=stats).features)


def test_a_configuration_that_cannot_work_leaves_nothing(tmp_path) -> None:
    before = open_descriptors()
    for config, error in (
        (VhostConfig(), InvalidArgument),
        (VhostConfig(socket=str(tmp_path / "missing" / "s")), MachineError),
        (VhostConfig(socket=str(tmp_path / "s"), queue_size=3), InvalidArgument),
    ):
        with pytest.raises(error):
            VhostMachine(config)
    assert open_descriptors() == before
