"""Memory that Python allocates in a block of code."""

import contextlib
import gc
import tracemalloc


@contextlib.contextmanager
def at_most(count):
    """Context in which at most `count` bytes are allocated at any time.

    All threads count, so collect what earlier tests left, such as servers.
    """
    gc.collect()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < count, f"{peak} bytes were allocated"
