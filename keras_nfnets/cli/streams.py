"""Standard streams that cannot stop the command."""

import io
import os
import sys


class Output(io.FileIO):
    """A stream that stores its errors, so that a failing log does not lose results.

    Args:
        descriptor: int. The stream, which stays open.

    Attributes:
        error: OSError or None. The first error of writing. What could not be written is
            lost. (That nobody reads a pipe any more is an error as usual: nobody waits
            for the rest.)
    """

    error = None

    def __init__(self, descriptor):
        super().__init__(descriptor, "w", closefd=False)

    def write(self, content):
        try:
            return super().write(content)
        except BrokenPipeError:
            raise
        except OSError as error:
            self.error = self.error or error
            return len(content)


def open_standard_streams():
    """Replace `sys.stdout` and `sys.stderr` by streams whose errors stop nothing.

    A closed stream is opened without a way to write to it, so that no file of the command
    takes its place and gets what TensorFlow prints.

    Returns:
        `Output` that is the standard output.
    """
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    output = Output(1)
    sys.stdout = as_text(output, sys.stdout, line_buffering=output.isatty())
    sys.stderr = as_text(Output(2), sys.stderr)
    return output


def as_text(output, before, line_buffering=True):
    """Return a text stream that writes to an `Output`, in the encoding of another."""
    return io.TextIOWrapper(
        io.BufferedWriter(output),
        getattr(before, "encoding", None),
        errors="backslashreplace",  # file names may contain bytes that are no valid text
        line_buffering=line_buffering,
    )
