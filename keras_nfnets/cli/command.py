"""What every subcommand shares: flags, help, and errors that are one sentence."""

import contextlib
import copy
import dataclasses
import math
import textwrap
import typing

from absl import flags

from keras_nfnets import pretrained


class UsageError(Exception):
    """The command line cannot be meant; the message says what would do."""


class Failure(Exception):
    """What was asked for could not be done; the message says why."""


@dataclasses.dataclass
class Command:
    """A subcommand: its name, the text of its help, its flags and what it does.

    `other_names` of flags are `{other: name}`.
    """

    name: str
    usage: str
    help: str
    run: typing.Callable  # (flags, positional arguments) -> exit status
    values: flags.FlagValues = dataclasses.field(default_factory=flags.FlagValues)
    other_names: dict = dataclasses.field(default_factory=dict)

    def parse(self, arguments):
        """The flags' values, as attributes, and the positional arguments."""
        values = copy.deepcopy(self.values)
        arguments = [self._normalized(argument) for argument in arguments]
        try:
            positional = values([self.name, *arguments])[1:]
            for name, value in values.flag_values_dict().items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise UsageError(f"--{name} must be finite. Received: {value}")
            return values, positional
        except flags.IllegalFlagValueError as error:
            # absl's own text may be a parser's ("invalid literal for int() ...").
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

    def define(self, kind, name, default, help, **options):
        """Defines a flag of this command: `kind` is `"integer"`, `"float"`, ..."""
        define = getattr(flags, f"DEFINE_{kind}")
        define(
            name=name, default=default, help=help, flag_values=self.values, **options
        )
        self.values.register_flag_by_module(self.name, self.values[name])

    def _normalized(self, argument):
        """`--dry_run` for `--dry-run`, and a flag's first name for another one."""
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = name[2:].replace("-", "_")
            name = f"--{self.other_names.get(name, name)}"
        return name + equals + value


def _wanted(flag):
    """What a flag takes, in words."""
    if flag.boolean:
        return "true or false"
    choices = getattr(flag.parser, "enum_values", None)
    if choices:
        return f"one of {', '.join(choices)}"
    words = flag.parser.syntactic_help
    # (absl leaves the article out of "number >= 1".)
    return words if words.startswith("a") else f"{flag.parser.number_article} {words}"


def load_model(path):
    """The model in a .keras file, or a Failure."""
    import keras

    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # of whatever type Keras stumbles over
        raise Failure(f"{path} is not a whole .keras file: {error}") from error


@contextlib.contextmanager
def explained(source):
    """Within it, that almost no picture of a `data.Source` can be read is a Failure."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        if source.complaint is None:
            raise
        raise Failure(source.complaint) from error


def progress_bar(items, what, unit, total=None):
    """Iterates over `items` with a bar, where somebody is looking."""
    from tqdm import tqdm

    return tqdm(items, what, total, unit=f" {unit}", leave=False, disable=None)


def find_network(name):
    """`pretrained.find_network`; a name that is not known is a UsageError."""
    try:
        return pretrained.find_network(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
