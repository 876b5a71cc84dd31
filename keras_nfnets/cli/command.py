"""Flags, help, errors and helpers shared by all subcommands.

No module of the command imports Keras before `import_keras`, see there.
"""

import contextlib
import copy
import dataclasses
import json
import math
import pathlib
import re
import sys
import textwrap
import typing

from absl import flags

from keras_nfnets import tables

_WIDTH, _INDENT = 80, 24


class UsageError(Exception):
    """An invalid command line; the message says what would be valid."""


class Failure(Exception):
    """A command that could not be carried out; the message says why."""


class _Flag(typing.NamedTuple):
    """Properties of a flag that absl does not store: see `Command.define`."""

    help: str  # absl changes its own
    group: str
    wanted: str | None
    needs: str | None
    excludes: tuple


@dataclasses.dataclass
class Command:
    """A subcommand: its name, help text, flags and implementation.

    `other_names` maps aliases of flags to their names.
    """

    name: str
    usage: str
    help: str  # begins with a sentence and examples
    run: typing.Callable  # (flags, positional arguments) -> exit status
    values: flags.FlagValues = dataclasses.field(default_factory=flags.FlagValues)
    other_names: dict = dataclasses.field(default_factory=dict)
    _known: dict = dataclasses.field(default_factory=dict)  # {name of a flag: _Flag}

    def parse(self, arguments):
        """Return the values of flags, as attributes, and the positional arguments."""
        values = copy.deepcopy(self.values)
        end = arguments.index("--") if "--" in arguments else len(arguments)
        named = [self._normalized(argument) for argument in arguments[:end]]
        arguments = named + arguments[end:]
        for name in self._known:
            if {f"--{name}", f"--no{name}"} <= set(named):
                raise UsageError(
                    f"--{name} and --no{name} contradict each other. Give one of them."
                )
        try:
            positional = values([self.name, *arguments])[1:]
        except flags.IllegalFlagValueError as error:
            # absl's own message may be Python's ("invalid literal for int() ...").
            name, _, value = str(error).removeprefix("flag --").partition("=")
            value = value.partition(":")[0]
            wanted = self._known[name].wanted or _values_of(self.values[name])
            raise UsageError(f"--{name} must be {wanted}. Received: {value}") from None
        except flags.Error as error:
            raise UsageError(str(error)) from None
        for name, value in values.flag_values_dict().items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"--{name} must be finite. Received: {value}")
        self._check_effect(values)
        return values, positional

    def _check_effect(self, values):
        """Raise a `UsageError` for a flag that has no effect with or without others."""
        given = [name for name in self._known if is_given(values, name)]
        for name in given:
            flag = self._known[name]
            if flag.needs and flag.needs not in given:
                raise UsageError(
                    f"--{name} has no effect without --{flag.needs}. Add "
                    f"--{flag.needs}, or remove --{name}."
                )
            for other in flag.excludes:
                if other in given:
                    raise UsageError(
                        f"--{other} has no effect with --{name}. Give one of them."
                    )

    def help_text(self):
        """Return the help text: usage, examples, description and flags."""
        lines = [f"usage: keras-nfnets {self.usage}", "", self.help.strip()]
        heading = None
        for name, known in self._known.items():
            if known.group != heading:
                heading = known.group
                lines += ["", f"{heading}:"]
            lines += self._flag_lines(self.values[name], known.help)
        return "\n".join(lines)

    def _flag_lines(self, flag, text):
        # A flag that is false by default is only set.
        switch = flag.boolean and flag.default is not False
        head = f"  --[no]{flag.name}" if switch else f"  --{flag.name}"
        default = f" (default: {flag.default})" if flag.default else ""
        indent = " " * _INDENT
        lines = textwrap.wrap(
            text + default,
            _WIDTH,
            initial_indent=indent,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
        if len(head) + 2 > _INDENT:
            return [head, *lines]
        return [head.ljust(_INDENT) + lines[0].lstrip(), *lines[1:]]

    def with_flags(self, message):
        """Write the names of arguments in an error message of Python as flags."""

        def flag(match):
            name, value = match["name"], match["value"] or ""
            if name not in self.values:
                return match[0]
            value = "" if value == "=True" else value.replace('"', "")
            return f"--{name}{value}"

        message = re.sub(r"`(?P<name>\w+)(?P<value>=[^`]*)?`", flag, message)
        text, received, rest = message.rpartition("Received: ")
        rest = re.sub(r"(?<![^ (])(?P<name>\w+)(?P<value>=)", flag, rest)
        return text + received + rest if received else message

    def define(
        self,
        kind,
        name,
        default,
        help,
        *,
        group="flags",
        wanted=None,
        needs=None,
        excludes=(),
        **options,
    ):
        """Define a flag of this command.

        Args:
            kind: str. `"integer"`, `"float"`, ...
            name, default, help, options: see absl.
            group: str. Heading of the help; flags of a group are defined in a row.
            wanted: str or None. Description of the values that it accepts, for errors.
            needs: str or None. Flag without which it has no effect.
            excludes: sequence of str. Flags that have no effect with it.
        """
        define = getattr(flags, f"DEFINE_{kind}")
        define(
            name=name, default=default, help=help, flag_values=self.values, **options
        )
        self._known[name] = _Flag(help, group, wanted, needs, tuple(excludes))

    def _normalized(self, argument):
        """Replace dashes in the name of a flag by underscores, and an alias by the name."""
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = name[2:].replace("-", "_")
            name = f"--{self.other_names.get(name, name)}"
        return name + equals + value


def is_given(values, name):
    """Return whether a flag is on the command line and is not set to false."""
    flag = values[name]
    return bool(flag.present) and not (flag.boolean and flag.value is False)


def _values_of(flag):
    """Describe the values that a flag accepts."""
    if flag.boolean:
        return "true or false"
    choices = getattr(flag.parser, "enum_values", None)
    if choices:
        return f"one of {', '.join(choices)}"
    words = flag.parser.syntactic_help
    # absl omits the article in "number >= 1".
    return words if words.startswith("a") else f"{flag.parser.number_article} {words}"


def progress_bar(items, what, unit):
    """Iterate over `items`, with a progress bar if the output is a terminal."""
    from tqdm import tqdm

    return tqdm(items, what, unit=f" {unit}", leave=False, disable=None)


@contextlib.contextmanager
def only_json(wanted):
    """Context in which libraries print to the standard error stream, if `wanted`."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield


def print_json(value):
    """Print a value as JSON that every reader accepts.

    Numbers that are not finite become null, and bytes of file names that are not text are
    escaped, as JSON has neither.
    """
    print(json.dumps(_for_json(value), indent=2, allow_nan=False))


def _for_json(value):
    if isinstance(value, dict):
        return {_for_json(str(key)): _for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def check_network(name):
    """Return the registered name of a network, or raise a `UsageError`."""
    try:
        return tables.known_network(name, tables.network_names())
    except ValueError as error:
        raise UsageError(str(error)) from error


def received(arguments):
    """Describe positional arguments in an error."""
    return f"Received: {' '.join(arguments) or 'none'}"


def tell_data(name):
    """Print a note that 'digits' is the bundled data, if a folder has that name too."""
    if name == "digits" and pathlib.Path(name).is_dir():
        # The standard output may be JSON.
        print(
            "'digits' is the bundled data set. To use the folder of that name, write ./digits.",
            file=sys.stderr,
        )
