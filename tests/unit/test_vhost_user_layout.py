"""Vring numbers: checklist T-42, table 3.4."""

from __future__ import annotations

import pytest

from balloonvq.vhost_user.layout import is_prefix, queue_of

STATS, HINT, REPORT = 1 << 1, 1 << 3, 1 << 5


@pytest.mark.parametrize(
    ("features", "spec", "dense"),
    [
        (0, [0, 1], [0, 1]),
        (STATS, [0, 1, 2], [0, 1, 2]),
        (STATS | HINT, [0, 1, 2, 3], [0, 1, 2, 3]),
        (STATS | HINT | REPORT, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        (HINT, [0, 1, None, 3], [0, 1, 3]),
        (REPORT, [0, 1, None, None, 4], [0, 1, 4]),
        (HINT | REPORT, [0, 1, None, 3, 4], [0, 1, 3, 4]),
        (STATS | REPORT, [0, 1, 2, None, 4], [0, 1, 2, 4]),
    ],
)
def test_t_42_both_numberings(features, spec, dense) -> None:
    for numbers, layout in ((spec, "spec"), (dense, "dense")):
        got = [queue_of(index, features, layout) for index in range(5)]
        assert got == [*numbers, *[None] * (5 - len(numbers))]
    assert is_prefix(features) == (spec == dense)
    # auto sees a gap below, or none: drivers set vrings up in rising order.
    for numbers in (spec, dense):
        there = [index for index, queue in enumerate(numbers) if queue is not None]
        for index in there:
            seen = [other for other in there if other < index]
            assert queue_of(index, features, "auto", seen) == numbers[index]
