"""Images that are changed at random are read, or refused with a ValueError."""

import random
import resource
import time

import pytest
from fuzz import images, long_run

from keras_nfnets import data


def read_changed(seed, rounds):
    """Read changed images, so many of each kind; return the number of those read."""
    rng = random.Random(seed)
    files = images.sound()
    count = 0
    for name, content in rounds * [*files.items()]:
        changed = images.changed(content, rng)
        start = time.process_time()
        try:
            pixels = data.read_picture(changed, upright=rng.random() < 0.5)
        except ValueError as error:
            assert str(error), (seed, name)
            continue
        finally:
            assert time.process_time() - start < 10, (seed, name)
        assert pixels.dtype == "uint8" and pixels.shape[2:] == (3,), (seed, name)
        count += 1
    return count


pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::ResourceWarning"
)


def test_changed_images_are_read_or_refused():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_changed(seed=0, rounds=50) > 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000


@pytest.mark.slow
def test_many_changed_images_are_read_or_refused():
    for seed in long_run.seeds():
        read_changed(seed, rounds=10)
