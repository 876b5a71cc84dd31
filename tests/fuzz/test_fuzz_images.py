"""Images that are changed at random are read, or refused with a ValueError."""

import os
import random
import resource
import time

import pytest
from fuzz import images

from keras_nfnets import data


def read_changed(seed, seconds):
    """Read changed images for some seconds; return the number of those that are read."""
    rng = random.Random(seed)
    files = images.sound()
    count = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, content in files.items():
            changed = images.changed(content, rng)
            start = time.monotonic()
            try:
                pixels = data.read_picture(changed, upright=rng.random() < 0.5)
            except ValueError as error:
                assert str(error), (seed, name)
                continue
            finally:
                assert time.monotonic() - start < 10, (seed, name)
            assert pixels.dtype == "uint8" and pixels.shape[2:] == (3,), (seed, name)
            count += 1
    return count


pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::ResourceWarning"
)


def test_changed_images_are_read_or_refused():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_changed(seed=0, seconds=2) > 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000


@pytest.mark.slow
def test_many_changed_images_are_read_or_refused():
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    read_changed(seed, seconds=300)
