"""Errors of runs that are not errors in their arguments."""

import contextlib


class RunError(RuntimeError):
    """Error of a run that cannot continue; the message says why and what is kept.

    Attributes:
        args: tuple with the message.

    Example:

    >>> try:
    ...     raise RunError("Cannot write into runs/mine: no space left on device")
    ... except RuntimeError as error:
    ...     print(error)
    Cannot write into runs/mine: no space left on device
    """


class LostWorkerError(RunError):
    """Error after which a run must be resumed on all workers: one no longer responds.

    Attributes:
        args: tuple with the message.

    Example:

    >>> issubclass(LostWorkerError, RunError)
    True
    """


@contextlib.contextmanager
def explained(source):
    """Context that raises a `RunError` if most images of a `data.Source` are unreadable."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        if source.complaint is None:
            raise
        raise RunError(source.complaint) from error
