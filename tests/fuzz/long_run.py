"""Length and seed of a long run, from the environment."""

import itertools
import os
import random
import time


def seeds():
    """Yield seeds for `FUZZ_SECONDS` (60); print the first, which `FUZZ_SEED` sets."""
    first = int(os.environ.get("FUZZ_SEED", random.randrange(10**9)))
    print(f"FUZZ_SEED={first}")
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "60"))
    yield from itertools.takewhile(
        lambda _: time.monotonic() < end, itertools.count(first)
    )
