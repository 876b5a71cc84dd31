"""Tests of what we use of other packages that they do not document."""

import contextlib

import keras
import pytest


@contextlib.contextmanager
def expected(function, package=keras):
    """Context in which any error fails the test with a message that names the version.

    Args:
        function: the function of ours that uses the internals.
        package: module they belong to.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 (of whatever type)
        pytest.fail(
            f"{package.__name__} {package.__version__} has other internals than "
            f"{function.__module__}.{function.__name__} expects: {error!r}. Adapt it, or "
            "exclude this version in setup.cfg."
        )
