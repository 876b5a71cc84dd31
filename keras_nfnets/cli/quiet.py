"""Import of Keras without TensorFlow's log lines."""

import contextlib
import importlib
import os
import shutil
import sys
import tempfile

from keras_nfnets.cli import streams

# TensorFlow logs what its exceptions say too; at 3 it shows only what ends the process.
_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def import_keras():
    """Import Keras and all that this package registers with it, without log lines.

    If the user has set TF_CPP_MIN_LOG_LEVEL, it decides what is shown.
    """
    chosen = _LEVEL in os.environ
    os.environ.setdefault(_LEVEL, "3")
    # The level holds only after the import, during which TensorFlow logs too.
    with contextlib.nullcontext() if chosen else _only_python_on_stderr():
        importlib.import_module("keras_nfnets.runs")


@contextlib.contextmanager
def _only_python_on_stderr():
    """Context in which only Python code writes to the standard error stream.

    What compiled code writes is shown if an exception leaves the context.
    """
    before, descriptor = sys.stderr, os.dup(2)
    with (
        streams.as_text(streams.Output(descriptor), before) as shown,
        tempfile.TemporaryFile() as held,
    ):
        before.flush()
        os.dup2(held.fileno(), 2)
        sys.stderr = shown
        try:
            yield
        except BaseException:
            held.seek(0)
            shutil.copyfileobj(held, shown.buffer)
            raise
        finally:
            shown.flush()
            os.dup2(descriptor, 2)
            os.close(descriptor)
            sys.stderr = before
