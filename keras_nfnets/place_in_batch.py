"""Where in the batch a replica's examples are, for layers that draw a number for each.

A replica that drew for its own examples alone would draw what all others draw, and not
what one device draws for the whole batch. So training says where its examples are, and
layers draw for all and take their own.
"""

import contextlib
import contextvars
import typing

from keras import ops


class Place(typing.NamedTuple):
    """Before these examples are `offset` others, of `total`: ints or scalar tensors."""

    offset: typing.Any
    total: typing.Any


_current = contextvars.ContextVar("place_in_batch", default=None)


@contextlib.contextmanager
def examples_are_at(place):
    """Within it layers take their inputs for the examples at a `Place`; None for all."""
    token = _current.set(place)
    try:
        yield
    finally:
        _current.reset(token)


def draw(function, examples):
    """`function(examples)`, or this replica's part of `function` of the whole batch.

    Args:
        function: from a number of examples to a tensor with a row for each.
        examples: how many there are on this replica.
    """
    place = _current.get()
    if place is None:
        return function(examples)
    drawn = function(place.total)
    # Not by an index: XLA must see that the size is static.
    start = (place.offset,) + (0,) * (len(drawn.shape) - 1)
    return ops.slice(drawn, start, (examples, *drawn.shape[1:]))
