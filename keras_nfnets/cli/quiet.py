"""Import of Keras without TensorFlow's log lines."""

import contextlib
import importlib
import os
import pickle
import shutil
import sys
import tempfile

from keras_nfnets.cli import streams

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# Shows only fatal errors: TensorFlow also logs the messages of its exceptions.
_FATAL = "3"


def import_keras():
    """Import Keras and all that this package registers with it, without log lines.

    If the user has set TF_CPP_MIN_LOG_LEVEL, it decides what is shown.
    """
    level = os.environ.setdefault(_LEVEL, _FATAL)
    # The level holds only after the import, during which TensorFlow logs too.
    quiet = level == _FATAL
    with _only_python_on_stderr() if quiet else contextlib.nullcontext():
        importlib.import_module("keras_nfnets.runs")


def start_process(pickled):
    """Import Keras in a process that this one has started, then call a function.

    Args:
        pickled: bytes. The function and its arguments, pickled, so that they are not
            imported before Keras.
    """
    import_keras()
    function, arguments = pickle.loads(pickled)
    function(*arguments)


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
