"""A limit of the size of files, which writing meets as it does the end of a disk."""

import contextlib
import resource


@contextlib.contextmanager
def full_disk(size=20_000):
    """Context in which this process cannot write files of more than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
