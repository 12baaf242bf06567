"""Number formats of pages: counts, shares and factors."""

import math


def count(value: float) -> str:
    """Formats a whole number with thousands separators."""
    return f"{round(value):,}"


def percent(share: float) -> str:
    """Formats a share as a percentage, at most three digits: 0.284 -> 28.4%."""
    value = 100 * share
    if value == 0 or value >= 99.95:
        return f"{value:.0f}%"
    digits = 1 if value >= 1 else 2 if value >= 0.1 else 3
    return f"{value:.{digits}f}%"


def ratio(part: float, whole: float) -> str:
    """Formats part / whole as a percentage; a dash if `whole` is 0."""
    return percent(part / whole) if whole else "\u2013"


def times(value: float, chance: float) -> str:
    """Formats value / chance: 114x, or 9.1x below ten; a dash if `chance` is 0."""
    if not chance:
        return "\u2013"
    value = value / chance
    return f"{value:,.1f}\u00d7" if value < 10 else f"{value:,.0f}\u00d7"


def short(value: float) -> str:
    """Formats a number for an axis or a tooltip: 20000 -> 20k, 0.0004 -> 4e-4."""
    size = abs(value)
    if size == 0:
        return "0"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # Otherwise 999,950 would round to 1000k.
        if size >= unit * 0.99995:
            return f"{value / unit:.3g}{name}"
    if size >= 0.01:
        return f"{value:.3g}"
    mantissa = f"{value / 10 ** math.floor(math.log10(size)):.2g}"
    return f"{mantissa}e{math.floor(math.log10(size))}"
