"""Skips on the lowest versions of other packages, for what only later ones have."""

import keras
import pytest


def since_keras(version):
    """Mark a test of what Keras has since `version`, such as `"3.14"`."""
    lowest, installed = (
        tuple(map(int, text.split(".")[:2])) for text in (version, keras.__version__)
    )
    return pytest.mark.skipif(
        installed < lowest, reason=f"Keras has it since {version}"
    )
