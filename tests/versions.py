"""Skips of what backends, and the lowest versions of other packages, do not have."""

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


def not_on_torch(reason):
    """Mark a test of what Keras's PyTorch backend cannot do."""
    return pytest.mark.skipif(keras.backend.backend() == "torch", reason=reason)
