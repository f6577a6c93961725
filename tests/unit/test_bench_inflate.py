"""The inflate and deflate benchmarks: orders of pages, rows, and that what is measured is what was to be done."""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from itertools import pairwise

import pytest

from balloonvq.bench import deflate, inflate
from balloonvq.bench import oom as bench_oom
from balloonvq.bench.arena import EXTRA_BYTES, Arena, sibling
from balloonvq.bench.deflate import Deflate
from balloonvq.bench.inflate import Inflate
from balloonvq.bench.measure import Plan, measure
from balloonvq.bench.pfn_orders import (
    ORDERS,
    RECORDED,
    RECORDED_PAGES,
    RECORDED_RAM_PAGES,
    order,
    pack,
    unpack,
)
from balloonvq.errors import BalloonError, InvalidArgument, NotEnoughMemory
from balloonvq.ffi import lib
from balloonvq.guest.pages import PageAllocator
from balloonvq.memory import PAGE_SIZE

MIB = 1 << 20

#: Of the recordings, as little-endian 32-bit words.
SHA256 = {
    "fresh": "3c19e1180515271fb1cfbbaecf91ae8d8b3a08ca143e429a3c5a05c64257ea35",
    "frag": "0c793cea2f43c9d0c92d09225dfd7c7cb6ba10d295d04d00e608682225b47d05",
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_orders_unpack_to_what_was_recorded(name):
    pfns = order(name, 1 << 30)
    assert len(pfns) == len(set(pfns)) == RECORDED_PAGES
    assert max(pfns) < RECORDED_RAM_PAGES
    words = b"".join(pfn.to_bytes(4, "little") for pfn in pfns)
    assert hashlib.sha256(words).hexdigest() == SHA256[name]
    assert order(name, 1000) == pfns[:1000]


@pytest.mark.parametrize("pfns", [[], [0], [7, 6, 5], [0xFFFFFFFF, 0, 0x80000000, 0xFFFFFFFF], range(1000)])
def test_packing_keeps_every_word(pfns):
    assert unpack(pack(array("I", pfns))) == array("I", pfns)


def test_a_shuffled_order_is_a_permutation_that_the_seed_decides():
    pfns = order("shuffled", 5000, seed=3)
    assert sorted(pfns) == list(range(5000)) != list(pfns)
    assert pfns == order("shuffled", 5000, seed=3) != order("shuffled", 5000, seed=4)
    # Neighbours are far apart: nothing that merging would help.
    assert sum(abs(a - b) == 1 for a, b in pairwise(pfns)) < 20


def test_an_unknown_order_is_refused():
    with pytest.raises(InvalidArgument):
        order("sorted", 1)


@pytest.fixture(params=["memfd", "anon"])
def arena(request):
    arena = Arena(request.param, 2048)
    yield arena
    arena.close()


@pytest.mark.parametrize("name", ["contiguous", "shuffled"])
@pytest.mark.parametrize("must_tell_host", [True, False])
def test_the_device_alone_gives_everything_back(arena, name, must_tell_host):
    pfns = order(name, 2048)
    arena.touch()
    with arena.rig(must_tell_host=must_tell_host) as rig:
        report = arena.inflate(rig, pfns)
        assert (report.pages, report.requests) == (2048, 8)
        assert report.ns > 0
        # Late enough, shuffled pages leave as whole blocks.
        most = 8 if must_tell_host or name == "contiguous" else 2048
        assert report.ranges <= most
        back = arena.deflate(rig, pfns)
        assert (back.requests, back.syscalls) == (8, 0)
        assert arena.first_touch_ns(pfns) > 0
        assert arena.inflate(rig, pfns).pages == 2048


def test_the_ways_of_others_make_the_calls_they_would(arena):
    pfns = order("shuffled", 2048)
    arena.touch()
    report = arena.page_by_page(pfns)
    assert report.syscalls == 2048 * (1 if arena.backing == "anon" else 2)
    arena.touch()
    report = arena.merged(pfns)
    assert report.syscalls == report.ranges < 2048
    arena.touch()
    with sibling():
        assert arena.in_one(2048).syscalls == 1


def test_naive_ways_cross_the_border_of_two_files():
    with contextlib.closing(Arena("memfd", 64 * MIB // PAGE_SIZE)) as arena:
        border = 16 * MIB // PAGE_SIZE  # where the second of four files begins
        pfns = array("I", range(border - 3, border + 3))
        for way, calls in ((arena.merged, 2), (arena.page_by_page, 12)):
            arena.touch()
            assert way(pfns).syscalls == calls
        arena.touch()
        assert arena.in_one(16384).syscalls == 4


def test_a_driver_in_c_takes_its_pages_there_and_back(arena):
    arena.touch()
    with contextlib.closing(PageAllocator(2048, 0)) as allocator, arena.rig(must_tell_host=True) as rig:
        there, back = arena.drive(rig, allocator, 2000, None)
        assert there > 0
        assert back > 0
        # All of them again, and as free as they were.
        arena.drive(rig, allocator, 2048, None)
        counts = allocator.counts()
        assert (counts.free, counts.violations) == (2048, 0)
        with pytest.raises(BalloonError):
            arena.drive(rig, allocator, 2049, None)


def test_recorded_orders_go_through_the_device():
    pfns = order("frag", 4096)
    arena = Arena("memfd", RECORDED_RAM_PAGES)
    try:
        area = RECORDED_RAM_PAGES * PAGE_SIZE
        arena.memory.populate(area, int(lib.bench_area_bytes(RECORDED_RAM_PAGES)))
        arena.first_touch_ns(pfns)
        with arena.rig(must_tell_host=False) as rig:
            assert arena.inflate(rig, pfns).requests == 16
    finally:
        arena.close()


def test_every_row_of_inflate_is_measured():
    inflate = Inflate(8 * MIB, "memfd,anon,huge", "all", "device,naive,path", sibling=True, design="modern")
    try:
        samples = inflate.round()
        assert {row.name for row in inflate.rows} == set(samples)
        assert all(sample.value > 0 for sample in samples.values())
        assert samples["memfd contiguous"].facts["syscalls_per_array"] <= 1.4
        assert samples["memfd contiguous no-tell"].facts["syscalls_per_array"] == 1
        assert 0 < samples["memfd path"].facts["python_share"] < 1
        assert 0 < samples["memfd path"].facts["c_driver_ns_per_array"] < samples["memfd path"].value * 256
        assert samples["memfd contiguous"].facts["first_touch_ns"] > 0
        # Everything again, over the same memory.
        assert set(inflate.round()) == set(samples)
    finally:
        inflate.close()


def test_recorded_orders_need_their_guest():
    small = Inflate(8 * MIB, "memfd", "all", "device", sibling=False, design="modern")
    small.close()
    assert small.names == ("contiguous", "shuffled")
    assert small.ram_pages == 2048
    big = Inflate(RECORDED_PAGES * PAGE_SIZE, "memfd", "all", "device", sibling=False, design="modern")
    big.close()
    assert big.names == ORDERS
    assert big.ram_pages == RECORDED_RAM_PAGES
    assert big.limit_pages == RECORDED_PAGES
    wishes = {row.name: row.against[0].at_most for row in big.rows if row.against}
    assert wishes["memfd contiguous"] == wishes["memfd fresh"] == 1.1
    assert (wishes["memfd shuffled"], wishes["memfd shuffled no-tell"]) == (1.5, 6.0)


def test_every_row_of_deflate_is_measured():
    deflate = Deflate(8 * MIB, "memfd", "contiguous,shuffled", 50, "modern")
    try:
        samples = deflate.round()
        assert {row.name for row in deflate.rows} == set(samples)
        assert 0 < samples["path"].facts["c_driver_ns_per_array"] < samples["path"].value * 256
        assert samples["round trip"].histogram.count == 50
        assert samples["device shuffled"].facts["syscalls_per_array"] == 0
    finally:
        deflate.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"size_bytes": 5000},
        {"orders": "sorted"},
        {"orders": ","},
        {"rows": "device,firecracker"},
        {"memory": ""},
        {"memory": "paper"},
    ],
)
def test_what_cannot_be_measured_is_refused(wrong):
    options = {
        "size_bytes": 8 * MIB,
        "memory": "memfd",
        "orders": "contiguous",
        "rows": "device",
        "sibling": False,
        "design": "modern",
    }
    with pytest.raises(InvalidArgument):
        Inflate(**(options | wrong))


def test_the_runner_takes_both():
    from balloonvq.bench.deflate import BENCHMARK as DEFLATE
    from balloonvq.bench.inflate import BENCHMARK as INFLATE

    small = {"size_bytes": 4 * MIB}
    result = measure(INFLATE, small | {"rows": "device,path"}, Plan(runs=1, warmup=0))
    assert {"memfd limit", "memfd contiguous", "memfd path"} <= {row.name for row in result.rows}
    result = measure(DEFLATE, small | {"orders": "contiguous", "requests": 10}, Plan(runs=1, warmup=0))
    assert "round trip" in {row.name for row in result.rows}


# ---- what the host has no memory for ----------------------------------------------


class Touched(Exception):
    """Something was computed or allocated."""


def touch(*_given: object, **_named: object) -> None:
    raise Touched


@pytest.fixture
def small_host(monkeypatch):
    """A host of 8 GiB; whatever asks for memory or computes an order raises `Touched`."""
    monkeypatch.setattr("balloonvq.host.available_bytes", lambda: 8 << 30)
    for module in (inflate, deflate):
        monkeypatch.setattr(module, "order", touch)
        monkeypatch.setattr(module, "Arena", touch)
    for module in (inflate, deflate, bench_oom):
        monkeypatch.setattr(module, "bare_machine", touch)


SETUPS = {
    "inflate": lambda size: Inflate(size, "memfd", "all", "device,naive,path", True, "reference"),
    "inflate, no recorded order": lambda size: Inflate(
        size, "memfd", "contiguous", "path", False, "reference"
    ),
    "deflate": lambda size: Deflate(size, "memfd", "contiguous,frag", 100, "reference"),
    "oom": lambda size: bench_oom.Oom(size, 2 * MIB, 4, "all"),
}


@pytest.mark.usefixtures("small_host")
@pytest.mark.parametrize("name", SETUPS)
def test_a_size_that_the_host_has_not_is_refused_before_anything_is_done(name):
    for size in (999 << 30, 100 << 30, 8 << 30):
        with pytest.raises(NotEnoughMemory) as caught:
            SETUPS[name](size)
        # What the hint names is accepted, and goes on to take memory.
        words = caught.value.hint.split()
        assert words[0] == "--size"
        with pytest.raises(Touched):
            SETUPS[name](int(words[1].rstrip("M,")) // 64 * 64 * MIB)


@pytest.mark.usefixtures("small_host")
def test_an_inflate_may_have_nearly_all_memory_where_no_row_leaves_any():
    assert EXTRA_BYTES < 512 * MIB
    with pytest.raises(Touched):
        SETUPS["inflate, no recorded order"](7 << 30)
