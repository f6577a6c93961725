"""Sizes as UX.md has them: what is taken, and what each refusal says."""

from __future__ import annotations

from fractions import Fraction

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balloonctl.render.units import PAGE
from balloonctl.sizes import Duration, Number, SizeType, WholeNumber, parse_size
from balloonvq.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64M", 64 << 20),
        ("64MiB", 64 << 20),
        ("64m", 64 << 20),
        (" 64 MiB ", 64 << 20),
        ("64K", 64 << 10),
        ("1.5G", 3 << 29),
        (".5G", 1 << 29),
        ("4096", 4096),
        ("8192B", 8192),
        ("100p", 100 * PAGE),
        ("512MB", 512_000_000),
        ("4096kB", 4_096_000),
        ("4096KB", 4_096_000),
        ("2T", 2 << 40),
        ("9007199254745088", 9007199254745088),
    ],
)
def test_a_size_means_what_libvirt_and_qemu_mean(text: str, expected: int) -> None:
    assert expected == parse_size(text).bytes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("-5M", "negative"),
        ("-1", "negative"),
        ("-inf", "negative"),
        ("nan", "not a number"),
        ("NaNM", "not a number"),
        ("inf", "not a number"),
        ("0", "is nothing"),
        ("0M", "is nothing"),
        ("0%", "is nothing"),
        ("0p", "is nothing"),
        ("64Mb", "bits"),
        ("64Mbit", "bits"),
        ("64Kib", "bits"),
        ("64mb", "bits"),
        ("0.0001K", "whole number of bytes"),
        ("5000", "whole number of pages"),
        ("1B", "whole number of pages"),
        ("63MB", "whole number of pages"),
        ("1.5p", "whole number of pages"),
        ("101%", "more than all"),
        ("64X", "no unit"),
        ("64 pages", "no unit"),
        ("M", "not a size"),
        ("1e3", "not a size"),
        ("0x1000", "not a size"),
        ("64M64M", "not a size"),
        ("1" * 50, "not a size"),
        ("٤٠٩٦", "not a size"),
    ],
)
def test_what_is_no_size_is_refused_with_words(text: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_size(text)
    assert says in caught.value.what
    assert caught.value.exit_code == 2


def test_a_size_between_pages_names_both_neighbours() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_size("5000")
    assert caught.value.hint == "the nearest sizes are 1p (4 KiB) and 2p (8 KiB)"
    with pytest.raises(InvalidArgument) as caught:
        parse_size("100")
    assert caught.value.hint == "the smallest is 1p (4 KiB)"


def test_zero_is_a_size_where_it_may_be() -> None:
    assert parse_size("0", zero=True).bytes == 0
    assert parse_size("0%", zero=True).resolve(1 << 30) == 0


def test_a_share_is_of_the_guest_and_says_that_it_was_rounded() -> None:
    third = parse_size("33%")
    assert third.percent == Fraction(33)
    assert third.resolve(1 << 30) % PAGE == 0
    assert third.is_rounded(1 << 30)
    assert not parse_size("25%").is_rounded(1 << 30)
    with pytest.raises(InvalidArgument, match="nothing yet"):
        parse_size("25%", percent=False)


@given(st.integers(min_value=1, max_value=1 << 36))
def test_every_number_of_pages_is_exact_in_all_three_forms(pages: int) -> None:
    assert parse_size(f"{pages}p").bytes == pages * PAGE
    assert parse_size(str(pages * PAGE)).bytes == pages * PAGE
    assert parse_size(f"{pages * 4}KiB").bytes == pages * PAGE


@given(st.text(max_size=30))
def test_whatever_is_typed_is_a_size_or_a_refusal(text: str) -> None:
    try:
        size = parse_size(text)
    except InvalidArgument:
        return
    assert size.resolve(1 << 30) > 0 or size.percent is not None


def test_click_leaves_a_size_alone_that_is_one() -> None:
    size = parse_size("4K")
    assert SizeType().convert(size, None, None) is size


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("1s", 1), ("2m", 120), ("1h", 3600), ("3", 3), (".5", 0.5)]
)
def test_times(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "-1", "0", "0s", "nan", "inf", "1e9", "1y", "9999999h", "s"])
def test_no_times(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Duration().convert(text, None, None)


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        (WholeNumber(min=1), "0", "0 is not a whole number from 1 up"),
        (WholeNumber(min=1), "many", "many is not a whole number from 1 up"),
        (WholeNumber(0, 2000000), "1.5", "1.5 is not a whole number from 0 to 2000000"),
        (WholeNumber(max=7), "8", "8 is not a whole number up to 7"),
        (Number(min=0, min_open=True), "0", "0 is not a number above 0"),
        (Number(min=0, max=1, min_open=True), "2", "2 is not a number above 0 and up to 1"),
        (Number(min=0), "nan", "nan is not a number from 0 up"),
    ],
)
def test_a_number_out_of_its_range_says_what_is_allowed(
    kind: click.ParamType[float], text: str, says: str
) -> None:
    with pytest.raises(click.BadParameter) as refused:
        kind.convert(text, None, None)
    assert refused.value.message == says


def test_numbers_within_their_range() -> None:
    assert WholeNumber(1, 3).convert("3", None, None) == 3
    assert Number(min=0, min_open=True).convert("0.5", None, None) == 0.5
