"""Makes values that a row of a config's table of ranges must refuse."""

from collections.abc import Iterator
from math import inf, nan, nextafter
from typing import Any

from ml_collections import ConfigDict

from metaclip_jax.cli.ranges import Range


def with_value(config: ConfigDict, path: str, value: Any) -> ConfigDict:
    """Gives a key any value, of any type."""
    *groups, key = path.split(".")
    group = config
    for name in groups:
        group = group[name]
    with group.ignore_type():
        group[key] = value
    return config


def bad_values(row: Range) -> list[Any]:
    """Returns values of a type or a size that a row must refuse."""
    found: list[Any] = [None, b"bytes", nan, inf, -inf, object()]
    if row.type is bool:
        found += [0, 1, "", "True", 0.5]
    elif row.type in (int, float):
        found += ["", "1", (1,), [1], 1 + 1j, *_numbers_outside(row)]
    elif row.type is str:
        found += [0, True, ("a",), ["a"], "nul \0"]
        if row.choices:
            found += ["no such", row.words[-1].upper(), f"{row.words[-1]} "]
    else:
        found += ["", "ab", "(1, 2)", 0.5, *_tuples_outside(row)]
    return [one for one in found if one not in row.also or one is not None]


def _numbers_outside(row: Range) -> Iterator[float]:
    whole = row.type is int
    if whole:  # a config turns True into a float, but not into an int
        yield from (0.5, 1.5, True, 10**30, -(10**30), 10**400)
    else:
        yield from (1e39, -1e39)
    if row.least is not None:
        yield row.least - 1 if whole else nextafter(row.least, -inf)
    if row.above is not None:
        yield from (row.above, row.above - 1)
    if row.most is not None:
        yield row.most + 1 if whole else nextafter(row.most, inf)
    if row.below is not None:
        yield from (row.below, row.below + 1)
    lowest = [bound for bound in (row.least, row.above) if bound is not None]
    if lowest and max(lowest) >= 0 and -1 not in row.also:
        yield from (-1, -5)


def _tuples_outside(row: Range) -> Iterator[tuple]:
    if row.each is not None:
        yield from ((one,) for one in bad_values(row.each))
        yield from ((_good_item(row.each), one) for one in bad_values(row.each))
        if row.each.type is tuple:
            yield _good_item(row.each)  # without the parentheses around it
        return
    good = tuple(map(_good_item, row.items))
    yield from ((), good[:-1], (*good, good[-1]))
    for place, item in enumerate(row.items):
        for one in bad_values(item):
            yield (*good[:place], one, *good[place + 1 :])


def _good_item(row: Range) -> Any:
    if row.type is tuple:
        return tuple(map(_good_item, row.items))
    return "en" if row.type is str else 1.0
