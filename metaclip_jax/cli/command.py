"""What all commands share: --help with all their flags, and errors in one line."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from metaclip_jax.cli import errors

# What a user can cure; of other types are the mistakes of programmers.
_CURABLE = (ValueError, OSError, RuntimeError, FloatingPointError, app.UsageError)


def run(main: Callable[[list[str]], Any]) -> None:
    """Runs a command, as `absl.app.run` does, and exits.

    --help shows the flags of all our modules that are loaded. A mistake on the command
    line, a path given there that cannot be used, and an error that our own code raised
    are printed in one line and end with status 1; with --verbosity=1, and for any other
    error, there is the traceback.
    """
    for module, found in flags.FLAGS.flags_by_module_dict().items():
        if module.partition(".")[0] in errors.PACKAGES:
            for flag in found:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(functools.partial(_run, main), flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    # absl raises a ValueError for a value after --no_FLAG.
    except (flags.Error, app.UsageError, ValueError) as error:
        if errors.wants_traceback(argv):
            raise
        errors.fail(errors.of_command_line(error, flags.FLAGS))


def _run(main: Callable[[list[str]], Any], arguments: list[str]) -> Any:
    verbose = logging.get_verbosity() > logging.INFO  # main may change it
    try:
        return main(arguments)
    except _CURABLE as error:
        if verbose:
            raise
        text = str(error) if errors.is_raised_by_us(error) else ""
        text = text or errors.of_given_path(error, sys.argv)
        if not text:
            raise
        errors.fail(text)


def refuse_arguments(arguments: Sequence[str]) -> None:
    """Refuses words that are no flags, for commands that take none.

    Raises:
      UsageError: there are some.
    """
    if len(arguments) > 1:
        raise app.UsageError(
            f"wanted flags alone, got {' '.join(arguments[1:])!r}; --help shows them"
        )


def refuse_missing(values: Mapping[str, Any]) -> None:
    """Refuses empty values of what a command cannot do without.

    Args:
      values: by their names on the command line.

    Raises:
      UsageError: names those that are empty.
    """
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise app.UsageError(f"wanted {', '.join(missing)}, got no value; add it")
