"""Flags, help, errors and helpers shared by all subcommands."""

import copy
import dataclasses
import math
import re
import textwrap
import typing

from absl import flags

from keras_nfnets import pretrained


class UsageError(Exception):
    """An invalid command line; the message says what would be valid."""


class Failure(Exception):
    """A command that could not be carried out; the message says why."""


@dataclasses.dataclass
class Command:
    """A subcommand: its name, help text, flags and implementation.

    `other_names` maps aliases of flags to their names.
    """

    name: str
    usage: str
    help: str
    run: typing.Callable  # (flags, positional arguments) -> exit status
    values: flags.FlagValues = dataclasses.field(default_factory=flags.FlagValues)
    other_names: dict = dataclasses.field(default_factory=dict)

    def parse(self, arguments):
        """Return the values of flags, as attributes, and the positional arguments."""
        values = copy.deepcopy(self.values)
        arguments = [self._normalized(argument) for argument in arguments]
        try:
            positional = values([self.name, *arguments])[1:]
            for name, value in values.flag_values_dict().items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise UsageError(f"--{name} must be finite. Received: {value}")
            return values, positional
        except flags.IllegalFlagValueError as error:
            # absl's own message may be Python's ("invalid literal for int() ...").
            name, _, value = str(error).removeprefix("flag --").partition("=")
            value = value.partition(":")[0]
            raise UsageError(
                f"--{name} must be {_wanted(self.values[name])}. Received: {value}"
            ) from None
        except flags.Error as error:
            raise UsageError(str(error)) from None

    def help_text(self):
        lines = [f"usage: keras-nfnets {self.usage}", "", self.help.strip()]
        if len(self.values):
            lines += ["", "flags:"]
        for flag in self.values.flags_by_module_dict().get(self.name, []):
            name = f"[no]{flag.name}" if flag.boolean else flag.name
            default = f" (default: {flag.default})" if flag.default else ""
            lines.append(f"  --{name}")
            lines += textwrap.wrap(
                flag.help + default,
                80,
                initial_indent="      ",
                subsequent_indent="      ",
            )
        return "\n".join(lines)

    def with_flags(self, message):
        """Write the names of arguments in an error message of Python as flags."""
        return re.sub(
            r"`(\w+)`",
            lambda match: f"--{match[1]}" if match[1] in self.values else match[0],
            message,
        )

    def define(self, kind, name, default, help, **options):
        """Define a flag of this command; `kind` is `"integer"`, `"float"`, ..."""
        define = getattr(flags, f"DEFINE_{kind}")
        define(
            name=name, default=default, help=help, flag_values=self.values, **options
        )
        self.values.register_flag_by_module(self.name, self.values[name])

    def _normalized(self, argument):
        """Replace dashes in the name of a flag by underscores, and an alias by the name."""
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = name[2:].replace("-", "_")
            name = f"--{self.other_names.get(name, name)}"
        return name + equals + value


def _wanted(flag):
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


def find_network(name):
    """Call `pretrained.find_network`, and raise a `UsageError` for an unknown name."""
    try:
        return pretrained.find_network(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
