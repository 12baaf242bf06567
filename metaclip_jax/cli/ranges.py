"""The ranges of config keys, and the check of a config against them.

Each config.py has a table, {key path: Range}. Both programs use this module, so it
imports neither jax nor Beam.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from ml_collections import ConfigDict

_LARGEST_INT = 2**53  # larger counts are not exact in a float64
_LARGEST_FLOAT = 3.4e38  # the largest float32, with which devices compute

Table = Mapping[str, "Range"]
# (key for the message, whether the rule holds, what is wanted and the cure)
Rule = tuple[str, bool, str]


@dataclass(frozen=True)
class Range:
    """The values that one key may have.

    Attributes:
      type: bool, int, float, str or tuple. A float may be an int, and must be finite as
        a float32. A tuple may be a list.
      least, most: inclusive bounds of a number.
      above, below: exclusive bounds of a number.
      also: single values that are allowed too, such as -1 or None.
      choices: the allowed strings; () = any. Or a function that returns them, if they
        are the keys of a table whose import is slow.
      pattern: a regular expression that must match the whole string; "" = any string.
      form: the pattern in words.
      items: the range of each item of a tuple of fixed length.
      each: the range of all items of a tuple of any length.
    """

    type: type
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    also: tuple[Any, ...] = ()
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = ()
    pattern: str = ""
    form: str = ""
    items: tuple["Range", ...] = ()
    each: "Range | None" = None

    @property
    def words(self) -> tuple[str, ...]:
        """The choices; () = any string."""
        return self.choices() if callable(self.choices) else self.choices

    def holds(self, value: Any) -> bool:
        """Whether a key may have this value."""
        if any(type(value) is type(other) and value == other for other in self.also):
            return True
        if self.type is bool:
            return isinstance(value, bool)
        if self.type in (int, float):
            return self._holds_number(value)
        if self.type is str:
            if not isinstance(value, str) or "\0" in value:
                return False
            if self.choices:
                return value in self.words
            return not self.pattern or bool(re.fullmatch(self.pattern, value))
        if not isinstance(value, tuple | list):
            return False
        if self.each is not None:
            return all(map(self.each.holds, value))
        return len(value) == len(self.items) and all(
            row.holds(item) for row, item in zip(self.items, value, strict=True)
        )

    def _holds_number(self, value: Any) -> bool:
        kinds = int if self.type is int else int | float
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        largest = _LARGEST_INT if self.type is int else _LARGEST_FLOAT
        return (
            -largest <= value <= largest  # False for NaN
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def wanted(self) -> str:
        """Returns the range in words: "an integer of at least 1, or -1"."""
        if self.choices:
            text = f"one of {', '.join(map(repr, self.words))}"
        elif self.type is bool:
            text = "True or False"
        elif self.type is tuple:
            text = f"a tuple {self._form()}"
        else:
            name = {int: "an integer", float: "a number", str: "a string"}[self.type]
            text = self.form or name + self._bounds()
        return "".join([text, *(f", or {value!r}" for value in self.also)])

    def _bounds(self) -> str:
        if self.least is not None and self.most is not None:
            return f" from {self.least} to {self.most}"
        words = {
            "of at least": self.least,
            "above": self.above,
            "of at most": self.most,
            "below": self.below,
        }
        bounds = [f"{word} {n}" for word, n in words.items() if n is not None]
        return f" {' and '.join(bounds)}" if bounds else ""

    def _form(self) -> str:
        """Returns a tuple's form: "((a string, a number above 0), ...)"."""
        if self.each is not None:
            return f"({self.each._word()}, ...)"
        return f"({', '.join(item._word() for item in self.items)})"

    def _word(self) -> str:
        return self._form() if self.type is tuple else self.wanted()


def _wanted(row: Range, value: Any) -> str:
    """Returns a range in words, with the limit of all numbers if a value is beyond."""
    if row.type is int and isinstance(value, int) and abs(value) > _LARGEST_INT:
        if row.most is None and row.below is None:
            return f"{row.wanted()} and at most {_LARGEST_INT}"
    return row.wanted()


def check(
    config: ConfigDict,
    *,
    table: Table,
    default: ConfigDict,
    rules: Callable[[ConfigDict], Sequence[Rule]],
) -> None:
    """Checks that a config has exactly the default's keys, with values in range.

    Args:
      config: to check.
      table: the range of each key.
      default: all keys at their default.
      rules: returns the rules between keys; it is called only if every key is in its
        range.

    Raises:
      ValueError: a key is wrong. The message names all wrong keys, each with what was
        wanted, what came, and the cure.
    """
    wrong = _differing_keys(config, default)
    defaults = dict(flat(default))
    for key, value in flat(config):
        if key in table and not table[key].holds(value):
            wrong.append(
                f"config.{key}: wanted {_wanted(table[key], value)}, got"
                f" {_short(value)};"
                f" {_cure(table[key], value, defaults[key])}"
            )
    if not wrong:
        values = dict(flat(config))
        wrong = [
            f"config.{key}={_short(values[key])}: wanted {wanted}"
            for key, holds, wanted in rules(config)
            if not holds
        ]
    if wrong:
        raise ValueError(
            wrong[0]
            if len(wrong) == 1
            else "\n  ".join([f"{len(wrong)} errors in the config:", *wrong])
        )


def flat(tree: ConfigDict | Mapping[str, Any], path: str = "") -> Iterator[tuple]:
    """Yields (key path, value) of a nested config's keys; a path is "mesh.data"."""
    items = tree.to_dict() if isinstance(tree, ConfigDict) else tree
    for key, value in items.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the most similar of `names`; "" if none is similar.

    Dotted names are also similar if their last words are: peak_lr, optimizer.peak_lr.
    """

    def similarity(other: str) -> float:
        pairs = ((name, other), (name.split(".")[-1], other.split(".")[-1]))
        whole, last = (SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return max(whole, 0.9 * last)

    best = max(names, key=similarity, default="")
    return best if best and similarity(best) > 0.6 else ""


def _differing_keys(config: ConfigDict, default: ConfigDict) -> list[str]:
    """Returns a message for each unknown and each missing key."""
    got, want = (list(dict(flat(tree))) for tree in (config, default))
    return [
        *(_no_such_key(key, want) for key in got if key not in want),
        *(
            f"wanted the key config.{key}, got none; start from the default config"
            for key in want
            if key not in got
        ),
    ]


def _no_such_key(key: str, keys: Iterable[str]) -> str:
    similar = nearest(key, keys)
    cure = f"did you mean config.{similar}?" if similar else "docs/config.md lists them"
    return f"wanted a key of the config, got config.{key}; {cure}"


def _cure(row: Range, value: Any, default: Any) -> str:
    """Returns the default, and how to write a tuple of one item."""
    cure = f"the default is {default!r}"
    if row.each is not None and row.each.type is tuple and row.each.holds(value):
        return f"{cure}. Write a single item as ({tuple(value)!r},), with a comma"
    return cure


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def variant(variants: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """Returns the row of one variant of a recipe.

    Raises:
      ValueError: there is no such variant; the message lists the variants.
    """
    if name not in variants:
        similar = nearest(name, variants)
        raise ValueError(
            f"wanted a variant among {', '.join(variants)}, got {name!r}; "
            + (f"did you mean {similar}?" if similar else "choose one of them")
        )
    return variants[name]


def update(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets keys of a config in place.

    Args:
      config: to change.
      values: by dotted key.

    Raises:
      ValueError: there is no such key, or its value has another type.
    """
    keys = [key for key, _ in flat(config)]
    for key, value in values.items():
        if key not in keys:
            raise ValueError(_no_such_key(key, keys))
        try:
            config.update_from_flattened_dict({key: value})
        except TypeError as error:
            raise ValueError(f"config.{key}: {error}") from error
