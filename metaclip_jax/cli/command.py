"""What all commands share: --help with all their flags, and errors in one line."""

import functools
import linecache
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

PACKAGES = ("metaclip_jax", "data_prep", "examples", "benchmarks", "__main__")
# What a user can cure; of other types are the mistakes of programmers.
_CURABLE = (ValueError, OSError, RuntimeError, FloatingPointError, app.UsageError)


def run(main: Callable[[list[str]], Any]) -> None:
    """Runs a command, as `absl.app.run` does, and exits.

    --help shows the flags of all our modules that are loaded. An error that our own
    code raised is printed in one line and ends with status 1; with --verbosity=1, and
    for any other error, there is the traceback.
    """
    for module, found in flags.FLAGS.flags_by_module_dict().items():
        if module.partition(".")[0] in PACKAGES:
            for flag in found:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(functools.partial(_run, main))


def _run(main: Callable[[list[str]], Any], arguments: list[str]) -> Any:
    verbose = logging.get_verbosity() > logging.INFO  # main may change it
    try:
        return main(arguments)
    except _CURABLE as error:
        if verbose or not is_raised_by_us(error):
            raise
        sys.stderr.write(f"Error: {error}\n")
        return 1


def is_raised_by_us(error: BaseException) -> bool:
    """Whether a `raise` of our own code made the error: its words are for users."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "")
    line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
    return module.partition(".")[0] in PACKAGES and line.strip().startswith("raise")


def refuse_arguments(arguments: Sequence[str]) -> None:
    """Refuses words that are no flags, for commands that take none.

    Raises:
      UsageError: there are some.
    """
    if len(arguments) > 1:
        raise app.UsageError(
            f"wanted flags alone, got {' '.join(arguments[1:])!r}; --help shows them"
        )
