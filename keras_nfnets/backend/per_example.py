"""Per-example random numbers that do not depend on the number of replicas.

A replica that drew random numbers for its own examples alone would draw the same ones as
every other replica, and not those that one device draws for the whole batch. So the
training step states which slice of the batch a replica has; layers draw for the whole
batch and take that slice.
"""

import contextlib
import contextvars
import typing

from keras import ops


class BatchSlice(typing.NamedTuple):
    """Slice of a replica in the batch of all replicas.

    Attributes:
        offset: int or scalar integer tensor. Index of its first example in the batch.
        batch_size: int or scalar integer tensor. Number of examples of all replicas.
    """

    offset: typing.Any
    batch_size: typing.Any


_current = contextvars.ContextVar("batch_slice", default=None)


@contextlib.contextmanager
def inputs_are(batch_slice):
    """Context in which the inputs of layers are a `BatchSlice`; None: the whole batch."""
    token = _current.set(batch_slice)
    try:
        yield
    finally:
        _current.reset(token)


def draw(function, examples):
    """Draw random numbers for the examples of this replica.

    Args:
        function: callable from a number of examples to a tensor of shape
            `(examples, ...)`.
        examples: int or scalar integer tensor. Number of examples of this replica.

    Returns:
        A tensor of shape `(examples, ...)`: `function(examples)` without replicas, else
        this replica's slice of `function(batch_size)`.
    """
    batch_slice = _current.get()
    if batch_slice is None:
        return function(examples)
    drawn = function(batch_slice.batch_size)
    # `ops.slice`, not an index, as XLA needs a static size.
    start = (batch_slice.offset,) + (0,) * (len(drawn.shape) - 1)
    return ops.slice(drawn, start, (examples, *drawn.shape[1:]))
