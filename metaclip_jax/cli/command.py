"""Runs a command: --help shows all its flags, and user errors have no traceback."""

import functools
import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from metaclip_jax import files
from metaclip_jax.cli import errors

# The types of errors that a user can cure; other types are bugs.
_CURABLE = (ValueError, OSError, RuntimeError, FloatingPointError, app.UsageError)
_INTERRUPTED = 128 + signal.SIGINT
_NEW_OBJECTS = 10_000  # before the next search for garbage


def run(main: Callable[[list[str]], Any]) -> None:
    """Runs a command with `absl.app.run`, and exits.

    --help shows the flags of all our imported modules. A wrong flag, a path on the
    command line that cannot be used, and an error that our own code raised are printed
    without a traceback, with exit status 1. Other errors show the traceback, as all do
    with --verbosity=1. Ctrl-C ends the command with one line and status 130.
    """
    for module, module_flags in flags.FLAGS.flags_by_module_dict().items():
        if module.partition(".")[0] in errors.PACKAGES:
            for flag in module_flags:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(functools.partial(_run, main), flags_parser=_parse)


def keep_modules() -> None:
    """Leaves out of the search for garbage what is in memory, to the end of a process.

    Modules are most of it. The search goes by the share of what is new, so that without
    a higher threshold it would come much more often then.
    """
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except SystemExit:  # after --help, with status 1
        sys.exit(0)
    # absl raises a ValueError for a value after --no_FLAG.
    except (flags.Error, app.UsageError, ValueError) as error:
        if errors.wants_traceback(argv):
            raise
        errors.fail(errors.of_command_line(error, flags.FLAGS))


def _run(main: Callable[[list[str]], Any], arguments: list[str]) -> Any:
    verbose = logging.get_verbosity() > logging.INFO  # read it before main changes it
    keep_modules()
    try:
        return main(arguments)
    except KeyboardInterrupt:
        if verbose:
            raise
        sys.stderr.write("Interrupted. The same command continues or starts again.\n")
        sys.exit(_INTERRUPTED)
    except _CURABLE as error:
        if verbose:
            raise
        text = str(error) if errors.is_raised_by_us(error) else ""
        text = text or errors.of_given_path(error, sys.argv)
        if not text:
            raise
        errors.fail(text)


def refuse_arguments(arguments: Sequence[str]) -> None:
    """Checks that a command that takes only flags got no positional arguments.

    Raises:
      UsageError: there are positional arguments.
    """
    if len(arguments) > 1:
        raise app.UsageError(
            f"wanted only flags, got {' '.join(arguments[1:])!r}; --help lists them"
        )


def only_argument(arguments: Sequence[str], name: str) -> str:
    """Returns the one positional argument of a command.

    Args:
      arguments: the command's name, then its positional arguments.
      name: of the argument, such as "DATASET".

    Raises:
      UsageError: there is none, or more than one.
    """
    if len(arguments) != 2:
        got = " ".join(arguments[1:]) or "none"
        raise app.UsageError(
            f"wanted one {name} after the flags, got {got}; --help shows the command"
        )
    return arguments[1]


def check_output(flag: str, path: str | None, *endings: str) -> None:
    """Checks a file to write: its ending, so that no other is replaced, and its folder.

    So a command fails before it computes what it could not write.

    Args:
      flag: such as "--output".
      path: its value; none or "" is no file.
      endings: those that are allowed, such as ".html".

    Raises:
      UsageError: the path ends otherwise, or files cannot be made there.
    """
    if path and not path.endswith(endings):
        raise app.UsageError(
            f"wanted {flag} to end in {' or '.join(endings)}, got {path!r}; rename it"
        )
    if path and files.is_local(path):
        place = Path(path).absolute()
        folder = next(p for p in place.parents if p.exists())
        if place.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            in_the_way = place if place.is_dir() else folder
            raise app.UsageError(
                f"wanted {flag} to be a file that can be written, got {path}, but"
                f" {in_the_way} is {'a folder' if place.is_dir() else 'not writable'};"
                " give another path"
            )
    if path and os.path.basename(path) == files.MANIFEST:
        raise app.UsageError(
            f"wanted {flag} to be a new file, got {path!r}, which marks a folder as"
            " finished; rename it"
        )


def refuse_same_folder(
    flags_and_folders: Mapping[str, str], subfolders: Sequence[str] = ()
) -> None:
    """Checks that a command writes into two different folders.

    Args:
      flags_and_folders: two folders by their flags.
      subfolders: of the first, which the second may not be either, nor be inside.

    Raises:
      UsageError: they are the same.
    """
    (first, folder), (second, other) = flags_and_folders.items()
    plain, inside = (
        os.path.realpath(p) if files.is_local(p) else os.path.normpath(p)
        for p in (folder, other)
    )
    if inside == plain:
        raise app.UsageError(
            f"{first} and {second}: wanted two folders, got {other} twice; choose"
            f" another {second}"
        )
    for name in subfolders:
        if f"{inside}/".startswith(f"{plain}/{name}/"):
            raise app.UsageError(
                f"{second}={other}: wanted a folder outside"
                f" {os.path.join(folder, name)}, where {first} has files of its own;"
                f" choose another {second}"
            )


def refuse_missing(values: Mapping[str, Any]) -> None:
    """Checks that required values are not empty.

    Args:
      values: by their names on the command line.

    Raises:
      UsageError: some are empty; the message names them.
    """
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise app.UsageError(f"wanted {', '.join(missing)}, got no value; add it")
