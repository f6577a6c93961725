"""The guest's page allocator against a dictionary and a list."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from balloonvq.errors import CoreError, InvalidArgument, KernelBug
from balloonvq.guest.pages import Batch, PageAllocator, Place

PAGES, KERNEL = 80, 5


class AllocatorModel(RuleBasedStateMachine):
    """Any order of calls, right and wrong ones."""

    @initialize(shuffled=st.booleans(), seed=st.integers(0, (1 << 64) - 1))
    def start(self, shuffled: bool, seed: int) -> None:
        self.pa = PageAllocator(PAGES, KERNEL, shuffled=shuffled, seed=seed)
        self.where = {pfn: Place.KERNEL if pfn < KERNEL else Place.FREE for pfn in range(PAGES)}
        self.list: list[int] = []  # the head comes last
        self.locked: set[int] = set()
        self.violations = 0
        self.managed = PAGES

    def pages_in(self, place: Place) -> list[int]:
        return [pfn for pfn, where in self.where.items() if where is place]

    @rule(count=st.integers(0, 60), to=st.sampled_from([Place.USER, Place.PRIVATE]))
    def take(self, count: int, to: Place) -> None:
        free = self.pages_in(Place.FREE)
        batch = self.pa.take(count, to)
        got = [] if batch is None else list(batch)
        assert len(got) == len(set(got)) == min(count, len(free))
        assert set(got) <= set(free)
        self.where.update(dict.fromkeys(got, to))

    @rule(data=st.data(), place=st.sampled_from([Place.USER, Place.PRIVATE, Place.IN_FLIGHT]))
    def free(self, data: st.DataObject, place: Place) -> None:
        pool = self.pages_in(place)
        chosen = data.draw(st.lists(st.sampled_from(pool), unique=True, max_size=20)) if pool else []
        if chosen and data.draw(st.integers(0, 4)) == 0:
            wrong = data.draw(
                st.sampled_from([pfn for pfn in range(PAGES) if self.where[pfn] is not place] + chosen[:1])
            )
            self.refused(lambda: self.pa.free(Batch.of(*chosen, wrong), place))
        else:
            self.pa.free(Batch.of(*chosen), place)
            self.where.update(dict.fromkeys(chosen, Place.FREE))

    def refused(self, call: object) -> None:
        """A page that is not where the caller says: nothing moves."""
        with pytest.raises(KernelBug) as caught:
            call()
        assert caught.value.why
        self.violations += 1

    @rule(data=st.data(), to=st.sampled_from([Place.USER, Place.IN_FLIGHT]))
    def move(self, data: st.DataObject, to: Place) -> None:
        pool = self.pages_in(Place.PRIVATE)
        chosen = data.draw(st.lists(st.sampled_from(pool), unique=True, max_size=9)) if pool else []
        self.pa.move(Batch.of(*chosen), Place.PRIVATE, to)
        self.where.update(dict.fromkeys(chosen, to))

    @rule(data=st.data())
    def insert(self, data: st.DataObject) -> None:
        pool = self.pages_in(Place.PRIVATE)
        chosen = data.draw(st.lists(st.sampled_from(pool), unique=True, max_size=20)) if pool else []
        if self.list and data.draw(st.booleans()):
            self.refused(lambda: self.pa.list_insert(Batch.of(*chosen, self.list[0])))
            return
        self.pa.list_insert(Batch.of(*chosen))
        self.where.update(dict.fromkeys(chosen, Place.LISTED))
        self.list += chosen

    @rule(count=st.integers(1, 30))
    def dequeue(self, count: int) -> None:
        isolated = self.pages_in(Place.ISOLATED)
        if not self.list and not isolated:
            with pytest.raises(KernelBug, match="BUG"):
                self.pa.list_dequeue(count)
            return
        batch = self.pa.list_dequeue(count)
        # From the head: the newest first.
        assert (list(batch) if batch is not None else []) == self.list[::-1][:count]
        taken = self.list[::-1][:count]
        self.list = self.list[: len(self.list) - len(taken)]
        self.where.update(dict.fromkeys(taken, Place.IN_FLIGHT))

    @rule()
    def isolate(self) -> None:
        page = self.pa.isolate()
        assert (page is None) is (not self.list)
        if page is not None:
            [pfn] = page
            assert pfn == self.list.pop(0), "from the tail"
            self.where[pfn] = Place.ISOLATED

    @rule(data=st.data())
    def putback(self, data: st.DataObject) -> None:
        isolated = self.pages_in(Place.ISOLATED)
        if isolated:
            pfn = data.draw(st.sampled_from(isolated))
            self.pa.putback(Batch.of(pfn))
            self.where[pfn] = Place.LISTED
            self.list.append(pfn)
        else:
            self.refused(lambda: self.pa.putback(Batch.of(KERNEL)))

    @rule(data=st.data())
    def replace(self, data: st.DataObject) -> None:
        isolated, private = self.pages_in(Place.ISOLATED), self.pages_in(Place.PRIVATE)
        if isolated and private:
            old, new = data.draw(st.sampled_from(isolated)), data.draw(st.sampled_from(private))
            self.pa.replace_isolated(Batch.of(new), Batch.of(old))
            self.where[old], self.where[new] = Place.IN_FLIGHT, Place.LISTED
            self.list.append(new)

    @rule(pages=st.integers(-1000, 1000))
    def adjust_managed(self, pages: int) -> None:
        self.pa.adjust_managed(pages)
        self.managed += pages

    @rule(pfn=st.sampled_from([PAGES, 1 << 31, (1 << 32) - 1]))
    def out_of_range(self, pfn: int) -> None:
        with pytest.raises((CoreError, KernelBug)):
            self.pa.where(pfn)

    @invariant()
    def every_page_is_in_its_place(self) -> None:
        if not hasattr(self, "pa"):
            return
        assert {pfn: self.pa.where(pfn) for pfn in range(PAGES)} == self.where
        counts = self.pa.counts()
        for place in Place:
            assert getattr(counts, place.name.lower()) == len(self.pages_in(place))
        assert (counts.violations, counts.managed) == (self.violations, self.managed)
        assert self.pa.free_pages() == counts.free

    def teardown(self) -> None:
        if hasattr(self, "pa"):
            self.pa.close()


AllocatorModel.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestAllocatorModel = AllocatorModel.TestCase


def test_the_order_of_a_fragmented_guest_depends_on_the_seed_only() -> None:
    def order(seed: int) -> list[int]:
        pa = PageAllocator(1000, 0, shuffled=True, seed=seed)
        got = [pfn for _ in range(4) for pfn in pa.take(250, Place.USER)]
        pa.close()
        assert sorted(got) == list(range(1000))
        return got

    assert order(1) == order(1) != order(2)
    pa = PageAllocator(1000, 10)
    assert list(pa.take(256, Place.USER)) == list(range(10, 266))
    pa.close()


@pytest.mark.parametrize(("pages", "kernel"), [(0, 0), (5, 5), (5, 6), ((1 << 32) + 1, 0)])
def test_a_guest_without_a_page_to_spare_is_refused(pages: int, kernel: int) -> None:
    with pytest.raises(InvalidArgument):
        PageAllocator(pages, kernel)
