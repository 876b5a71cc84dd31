"""Handling of Ctrl-C: at the end of the batch, and never while files are written."""

import contextlib
import signal
import threading

import keras


class InterruptBetweenBatches(keras.callbacks.Callback):
    """Callback, and context of `fit`, that delays a Ctrl-C until the end of the batch.

    Within a batch it may reach native code of TensorFlow, which then aborts. A second
    Ctrl-C is not delayed.
    """

    def __enter__(self):
        self._asked = False
        self._handler = _set_handler(self._ask)
        return self

    def __exit__(self, *_):
        _set_handler(self._handler)

    def _ask(self, *_):
        self._asked = True
        _set_handler(self._handler)

    def _interrupt_if_asked(self, batch, logs=None):
        if self._asked:
            raise KeyboardInterrupt

    on_train_batch_end = on_test_batch_end = _interrupt_if_asked


@contextlib.contextmanager
def ignored():
    """Context in which Ctrl-C has no effect."""
    handler = _set_handler(signal.SIG_IGN)
    try:
        yield
    finally:
        _set_handler(handler)


def _set_handler(handler):
    """Set the handler of Ctrl-C and return the previous one; only the main thread can."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGINT, handler or signal.SIG_DFL)
    return None
