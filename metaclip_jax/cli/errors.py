"""Messages for wrong flags and for errors that a user can cure."""

import errno
import linecache
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from absl import flags

from metaclip_jax.cli import ranges

# "recipe" is the module name of a recipe while its file runs.
PACKAGES = (
    "metaclip_jax",
    "data_prep",
    "examples",
    "benchmarks",
    "recipe",
    "__main__",
)
_PATH_ERRORS = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


def is_raised_by_us(error: BaseException) -> bool:
    """Whether our own code raised the error, so that its message is for users."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "")
    line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
    return module.partition(".")[0] in PACKAGES and line.strip().startswith("raise")


def visible(text: str) -> str:
    """Returns a text without control characters, which names of files may have."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode()
        for c in text
    )


def fail(text: str) -> NoReturn:
    """Ends the program with a message on stderr and status 1."""
    sys.stderr.write(f"Error: {visible(text)}\n")
    sys.exit(1)


def wants_traceback(argv: Sequence[str]) -> bool:
    """Whether --verbosity asks for tracebacks; works before flags are parsed."""
    return any(re.fullmatch(r"--?(v|verbosity)=[1-9]\d*", word) for word in argv)


def of_given_path(error: BaseException, argv: Sequence[str]) -> str:
    """Returns a message for an unusable path of the command line, else "".

    The error is about such a path if it names the path itself, a folder above it, or a
    file below it that may not be written.
    """
    if not isinstance(error, OSError) or error.errno not in _PATH_ERRORS:
        return ""
    place = str(error.filename or "").rstrip("/")
    for word in argv[1:]:
        given = (word.partition("=")[2] or word).rstrip("/")
        is_it = place and f"{given}/".startswith(f"{place}/")
        is_below = given and f"{place}/".startswith(f"{given}/")
        if is_it or is_below and error.errno in _NOT_WRITABLE:
            return f"{word}: {error.strerror}: {place}; correct the path"
    return ""


def did_you_mean(
    name: str, names: Iterable[str], *, otherwise: str, prefix: str = ""
) -> str:
    """Returns a question with the most similar name; `otherwise` if none is similar."""
    found = ranges.nearest(name, names)
    return f"did you mean {prefix}{found}?" if found else otherwise


def of_command_line(error: Exception, values: flags.FlagValues) -> str:
    """Returns a message for wrong flags: what was wanted, what came, the cure.

    Args:
      error: from absl's parsing of the flags.
      values: all flags of the command.
    """
    if isinstance(error, flags.UnrecognizedFlagError):
        return _unknown(error.flagname, values)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not isinstance(error, flags.IllegalFlagValueError):
        return re.sub(
            r"^Missing value for flag (\S+)$",
            r"wanted a value for \1, got none; write \1=VALUE",
            " ".join(lines).removeprefix("ERROR:: "),
        )
    missing = [
        name for name in values if f"flag --{name}=None: {_required(name)}" in lines
    ]
    wrong = [_wrong_value(line, values) for line in lines if _required("") not in line]
    if missing:
        named = ", ".join(f"--{name} ({_help(values[name])})" for name in missing)
        wrong.insert(0, f"wanted {named}, got no value")
    return "; ".join(wrong)


def _required(name: str) -> str:
    """Returns absl's message for a missing required flag."""
    end = "must have a value other than None."
    return f"Flag --{name} {end}" if name else end


def _help(flag: flags.Flag) -> str:
    return " ".join((flag.help or "").split()).rstrip(".")


def _unknown(name: str, values: flags.FlagValues) -> str:
    """Returns the message for an unknown flag."""
    group = name.partition(".")[0]
    if group in values and table_of(values[group]):
        return f"wanted --{group}=FILE.py before --{name}, got no --{group}; add it"
    names = list(values)
    for flag in values:
        names += [f"{flag}.{key}" for key in table_of(values[flag])]
    names = [other for other in names if ("." in other) == ("." in name)]
    cure = did_you_mean(name, names, otherwise="--help lists them", prefix="--")
    return f"wanted a flag of this command, got --{name}; {cure}"


def _wrong_value(line: str, values: flags.FlagValues) -> str:
    """Rephrases a line of absl's form "flag --NAME=VALUE: MESSAGE"."""
    named = [name for name in values if line.startswith(f"flag --{name}=")]
    if not named:
        return line
    name = max(named, key=len)
    flag, rest = values[name], line.removeprefix(f"flag --{name}=")
    got, _, message = rest.partition(": ")
    group, _, key = name.partition(".")
    row = table_of(values[group]).get(key) if key else None
    if row is not None:
        wanted = row.wanted()
    elif message.startswith("wanted "):
        wanted = message.removeprefix("wanted ")
    elif isinstance(flag.parser, flags.EnumParser):
        wanted = f"one of {', '.join(map(repr, flag.parser.enum_values))}"
    elif isinstance(flag.parser, flags.BooleanParser):
        wanted = "true or false"
    else:
        wanted = flag.parser.syntactic_help or message
    default: Any = flag.default
    # ml_collections stores tuples as lists.
    if row is not None and isinstance(default, list):
        default = tuple(default)
    cure = f"the default is {default!r}"
    if default is None and row is None:
        cure = f"--help shows its form ({_help(flag)})"
    return f"--{name}: wanted {wanted}, got {got!r}; {cure}"


def table_of(flag: flags.Flag) -> ranges.Table:
    """Returns the ranges of a config flag's keys; {} for other flags."""
    return getattr(flag.parser, "table", {})
