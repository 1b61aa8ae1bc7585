import threading
import time

import pytest

from sam_laplace_assets.domain.ahead import ahead


@pytest.mark.parametrize(("depth", "threads", "count"), [(1, 1, 0), (1, 1, 5), (3, 2, 2), (4, 4, 40)])
def test_results_come_in_the_order_of_what_was_given(depth, threads, count):
    def slowly(number):
        time.sleep(0.002 * (number % 3))
        return number * number

    assert list(ahead(slowly, range(count), depth=depth, threads=threads)) == [n * n for n in range(count)]


def test_no_more_than_depth_are_begun_before_they_are_asked_for():
    begun = []

    def begin(number):
        begun.append(number)
        return number

    results = ahead(begin, range(100), depth=3, threads=2)
    for taken in range(1, 5):
        next(results)
        time.sleep(0.05)
        assert len(begun) == taken + 3


def test_an_error_is_raised_in_its_turn_and_nothing_is_begun_after_it():
    def fail_at_two(number):
        if number == 2:
            raise KeyError(number)
        return number

    results = ahead(fail_at_two, range(10), depth=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(KeyError):
        next(results)
    assert list(results) == []


def test_the_threads_end_when_the_caller_stops_asking():
    before = threading.active_count()
    results = ahead(lambda number: number, range(1000), depth=4, threads=3)
    next(results)
    results.close()
    assert threading.active_count() == before


def test_the_next_result_is_made_while_the_caller_works():
    def slowly(number):
        time.sleep(0.1)
        return number

    started = time.monotonic()
    for _ in ahead(slowly, range(5), depth=2):
        time.sleep(0.1)
    assert time.monotonic() - started < 0.85  # one after the other: 1.0
