"""`keras-nfnets`: parses the command line and runs a subcommand."""

import os
import sys

from keras_nfnets import checks, files
from keras_nfnets.cli import (
    benchmark,
    convert,
    data,
    evaluate,
    experiment,
    export,
    predict,
    streams,
    summary,
    train,
)
from keras_nfnets.cli import list as list_command
from keras_nfnets.cli.command import Failure, UsageError
from keras_nfnets.printing import printable, without_secrets
from keras_nfnets.version import __version__

_MODULES = (
    train,
    evaluate,
    predict,
    data,
    export,
    convert,
    list_command,
    summary,
    benchmark,
    experiment,
)
COMMANDS = {module.COMMAND.name: module.COMMAND for module in _MODULES}

HELP = """\
usage: keras-nfnets COMMAND [FLAGS]

Normalizer-free networks for Keras.

  train       train a network with adaptive gradient clipping on a folder of
              images; without flags, a small network on handwritten digits
  evaluate    measure the accuracy of a network
  predict     classify images, with published or your own weights
  data        list the classes of a data set, or draw its augmented images
  export      write a network for ONNX Runtime, LiteRT or TensorFlow Serving
  convert     convert a published weight file to Keras formats
  list        list the networks, the published checkpoints or the recipes
  summary     print the layers of a network
  benchmark   measure the inference time of a network
  experiment  test the claims of the papers

'keras-nfnets COMMAND --help' explains a command and its flags.
"""


def run():
    """Run `sys.argv` and exit with 0, 1 (failed), 2 (wrong usage) or 130 (Ctrl-C)."""
    output = streams.open_standard_streams()
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe; Python would flush again at exit.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        status = 1
    except OSError as error:
        if error.errno not in files.NO_SPACE:
            raise
        print(
            f"keras-nfnets: cannot write {printable(error.filename)}: {error.strerror}",
            file=sys.stderr,
        )
        status = 1
    if output.error is not None:
        reason = output.error.strerror
        print(
            f"keras-nfnets: cannot write the standard output: {reason}", file=sys.stderr
        )
        status = status or 1
    sys.exit(status)


def main(arguments):
    """Run a command line and return its exit status."""
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    name, *rest = arguments
    command = COMMANDS.get(name)
    if command is None:
        suggestion = checks.perhaps(name, [*COMMANDS, "--help", "--version"]) or "."
        print(
            f"keras-nfnets: there is no command '{printable(name)}'{suggestion} The "
            f"commands are {', '.join(COMMANDS)}.",
            file=sys.stderr,
        )
        return 2
    if {"-h", "--help"} & set(rest):
        print(command.help_text())
        return 0
    try:
        return command.run(*command.parse(rest))
    except (Failure, UsageError) as error:
        message = without_secrets(command.with_flags(str(error)))
        message = printable(message, keep="\n")
        print(f"keras-nfnets {name}: {message}", file=sys.stderr)
        if isinstance(error, Failure):
            return 1
        print(f"'keras-nfnets {name} --help' explains the command.", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        # A part of a package is missing only if the package is broken.
        if error.name is None or "." in error.name:
            raise
        message = checks.not_installed(f"'{name}'", error.name)
        print(f"keras-nfnets {name}: {message}", file=sys.stderr)
        return 1
