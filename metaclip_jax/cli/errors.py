"""Which errors are for users, and how a mistake in flags reads in one line."""

import errno
import linecache
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from absl import flags

from metaclip_jax.cli import ranges

# "recipe" is the name that a recipe's file has while it is read.
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


def fail(text: str) -> NoReturn:
    """Ends the program with one line on stderr and status 1."""
    sys.stderr.write(f"Error: {text}\n")
    sys.exit(1)


def wants_traceback(argv: Sequence[str]) -> bool:
    """Whether --verbosity asks for tracebacks, where flags may not be parsed yet."""
    return any(re.fullmatch(r"--?(v|verbosity)=[1-9]\d*", word) for word in argv)


def of_given_path(error: BaseException, argv: Sequence[str]) -> str:
    """Returns what is wrong with a path of the command line; "" for other errors.

    That is a path that is not there or may not be used: the error names the path itself
    or a folder above it.
    """
    if not isinstance(error, OSError) or error.errno not in _PATH_ERRORS:
        return ""
    place = str(error.filename or "").rstrip("/")
    for word in argv[1:]:
        given = word.partition("=")[2] or word
        if place and f"{given.rstrip('/')}/".startswith(f"{place}/"):
            return f"{word}: {error.strerror}: {place}; correct the path"
    return ""


def did_you_mean(
    name: str, names: Iterable[str], *, otherwise: str, prefix: str = ""
) -> str:
    """Returns a question with the most similar name, or `otherwise` if none is."""
    found = ranges.nearest(name, names)
    return f"did you mean {prefix}{found}?" if found else otherwise


def of_command_line(error: Exception, values: flags.FlagValues) -> str:
    """Returns what is wrong with the flags: what was wanted, what came, the cure.

    Args:
      error: what absl raised while it parsed them.
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
    """How absl says that a required flag is missing."""
    end = "must have a value other than None."
    return f"Flag --{name} {end}" if name else end


def _help(flag: flags.Flag) -> str:
    return " ".join((flag.help or "").split()).rstrip(".")


def _unknown(name: str, values: flags.FlagValues) -> str:
    """The name is that of a flag which is not there."""
    group = name.partition(".")[0]
    if group in values and table_of(values[group]):
        return f"wanted --{group}=FILE.py before --{name}, got no --{group}; add it"
    names = list(values)
    for flag in values:
        names += [f"{flag}.{key}" for key in table_of(values[flag])]
    names = [one for one in names if ("." in one) == ("." in name)]
    cure = did_you_mean(name, names, otherwise="--help lists them", prefix="--")
    return f"wanted a flag of this command, got --{name}; {cure}"


def _wrong_value(line: str, values: flags.FlagValues) -> str:
    """Rephrases absl's "flag --NAME=VALUE: what is wrong"."""
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
    if row is not None and isinstance(default, list):  # ml_collections keeps tuples so
        default = tuple(default)
    cure = f"the default is {default!r}"
    if default is None:
        cure = f"--help says more ({_help(flag)})"
    return f"--{name}: wanted {wanted}, got {got!r}; {cure}"


def table_of(flag: flags.Flag) -> ranges.Table:
    """Returns the ranges of a config flag's keys; of any other flag nothing."""
    return getattr(flag.parser, "table", {})
