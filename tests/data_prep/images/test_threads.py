"""A function applied in threads: everything once, and never too much at a time."""

import threading

import pytest

from data_prep.images import threads


@pytest.mark.parametrize(("count", "held"), [(1, 1), (2, 1), (2, 4), (5, 7)])
@pytest.mark.parametrize("items", [0, 1, 4, 50])
def test_each_item_gives_its_result_once(items, count, held):
    found = threads.apply(lambda x: x * x, range(items), threads=count, held=held)
    assert sorted(found) == [x * x for x in range(items)]


@pytest.mark.parametrize("held", [1, 2, 5])
def test_no_more_items_are_taken_than_may_be_held(held):
    taken = 0

    def items():
        nonlocal taken
        for item in range(40):
            taken += 1
            yield item

    for done, _ in enumerate(threads.apply(abs, items(), threads=3, held=held)):
        assert taken - done <= held


def test_calls_run_at_the_same_time():
    together = threading.Barrier(3)

    def wait(item):
        together.wait(timeout=60)  # raises unless three calls meet
        return item

    found = threads.apply(wait, range(9), threads=3, held=6)
    assert sorted(found) == list(range(9))


def test_an_error_of_a_call_and_one_of_the_items_are_raised():
    def items():
        yield 1
        raise OSError("no more of them")

    with pytest.raises(ZeroDivisionError):
        list(threads.apply(lambda x: 1 // x, [1, 0, 1], threads=2, held=2))
    with pytest.raises(OSError, match="no more"):
        list(threads.apply(abs, items(), threads=2, held=2))


def test_leaving_early_ends_the_threads():
    before = threading.active_count()
    results = threads.apply(abs, range(100), threads=3, held=6)
    next(results)
    results.close()
    assert threading.active_count() == before
