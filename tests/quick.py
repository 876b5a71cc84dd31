"""Choice of the parameters that are tested each time; the others run as slow tests."""

import pytest


def quick(values, *chosen):
    """Mark all values as slow but the chosen ones.

    The chosen values should take different ways through the code, so that no kind of
    fault is found by the slow tests alone.
    """
    values = list(values)
    assert all(value in values for value in chosen)
    return [
        value if value in chosen else pytest.param(value, marks=pytest.mark.slow)
        for value in values
    ]
