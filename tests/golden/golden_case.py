"""Golden cases as Python objects, for the tests and for benchmarks/gpu.py."""

import json
import pathlib

import numpy as np
import rule

GOLDEN = pathlib.Path(__file__).parent


class GoldenCase:
    """One golden case: its input, parameters and recorded outputs."""

    def __init__(self, name):
        self.spec = json.loads((GOLDEN / f"{name}.json").read_text())
        with np.load(GOLDEN / f"{name}.npz") as outputs:
            self.outputs = dict(outputs)
        self.images = rule.image(
            self.spec["input"]["seed"], self.spec["input"]["shape"]
        )

    @property
    def parameters(self):
        """Parameters: Haiku's `{module: {leaf: array}}` or timm's `{name: array}`."""
        return {
            module: {
                leaf: rule.value(f"{module}/{leaf}", tuple(shape))
                for leaf, shape in leaves.items()
            }
            if isinstance(leaves, dict)
            else rule.value(module, tuple(leaves))
            for module, leaves in self.spec["parameters"].items()
        }

    def series(self, name):
        """Return `out/<name>_0`, `out/<name>_1`, ... as one array."""
        count = sum(key.startswith(f"out/{name}_") for key in self.outputs)
        return np.array([self.outputs[f"out/{name}_{i}"] for i in range(count)])


def relative_error(actual, expected):
    """Return the largest absolute difference divided by the largest expected value."""
    expected = np.asarray(expected)
    return np.max(np.abs(np.asarray(actual) - expected)) / np.max(np.abs(expected))


def nfnet_tiny(**options):
    """Build the network that README.md calls `nfnet_tiny`."""
    import keras_nfnets

    arguments = {
        "depths": (1, 2, 2, 1),
        "widths": (16, 32, 48, 48),
        "group_size": 8,
        "classes": 10,
        "classifier_activation": None,
    }
    return keras_nfnets.NFNet(**{**arguments, **options})
