"""What `AGCModel` measures of its training."""

import re

import keras
from keras import ops


class _OfVariables(keras.metrics.Metric):
    """A metric with state for each of a model's variables.

    Keras wants a model's metrics when the model is made, but what they are of is known
    only when it is built, by `build(paths)` with the paths of all variables.
    """

    built = False

    def build(self, paths):
        self.paths = list(paths)
        self.built = True


class ClipShare(_OfVariables):
    """The share of units that were clipped, averaged over steps."""

    def __init__(self):
        super().__init__(name="clip_share")

    def build(self, paths):
        super().build(paths)
        # "stem", "stage1", ..., and "" for the rest
        parts = {_part(path) for path in paths}
        self.parts = sorted(parts, key=lambda part: (part != "stem", part))
        shape = (len(self.parts),)
        self._clipped = self.add_variable(shape, "zeros", name="clipped")
        self._units = self.add_variable(shape, "zeros", name="units")

    def update_state(self, counts, paths, weight=1.0):
        """Adds a step, `weight` times: the `Count`s of the variables of these paths."""
        clipped, units = [0.0] * len(self.parts), [0.0] * len(self.parts)
        for count, path in zip(counts, paths):
            i = self.parts.index(_part(path))
            clipped[i] = clipped[i] + count.clipped
            units[i] += count.units
        clipped = ops.stack([ops.cast(part, "float32") for part in clipped])
        weight = ops.cast(weight, "float32")
        self._clipped.assign_add(weight * clipped)
        self._units.assign_add(weight * ops.convert_to_tensor(units, "float32"))

    def result(self):
        if not self.built:
            return 0.0
        return ops.divide_no_nan(ops.sum(self._clipped), ops.sum(self._units))

    def of_parts(self):
        """`{"clip_share_stage1": share, ...}`, floats, for the parts there are."""
        shares = ops.divide_no_nan(self._clipped, self._units)
        return {
            f"{self.name}_{part}": float(share)
            for part, share in zip(self.parts, ops.convert_to_numpy(shares))
            if part
        }


def _part(path):
    return re.match(r"stem|stage\d+|", path)[0]


class SkippedSteps(_OfVariables):
    """How many steps were left out because a gradient was not finite.

    The result is of an epoch, `in_a_row` goes on over epochs, and `culprits` says of the
    last such step which variables' gradients it was.
    """

    def __init__(self):
        super().__init__(name="skipped")

    def build(self, paths):
        super().build(paths)
        # The same on all replicas.
        same = {"dtype": "int32", "aggregation": "only_first_replica"}
        self._skipped = self.add_variable((), "zeros", name="skipped", **same)
        self._in_a_row = self.add_variable((), "zeros", name="in_a_row", **same)
        self._culprits = self.add_variable(
            (len(self.paths),), "zeros", name="culprits", **same
        )

    def update_state(self, finite, paths):
        """Adds a step: bools that say whether the gradients at these paths are finite."""
        flags = dict(zip(paths, finite))
        finite = [flags.get(path, ops.convert_to_tensor(True)) for path in self.paths]
        culprits = 1 - ops.cast(ops.stack(finite), "int32")
        skip = ops.max(culprits)
        self._skipped.assign(self._skipped + skip)
        self._in_a_row.assign((self._in_a_row + 1) * skip)
        before = ops.convert_to_tensor(self._culprits)
        self._culprits.assign(ops.where(skip > 0, culprits, before))

    def result(self):
        return ops.cast(self._skipped, "float32") if self.built else 0.0

    def reset_state(self):
        if self.built:
            self._skipped.assign(0)

    def in_a_row(self):
        """How many steps up to the last one were left out without a break."""
        return int(ops.convert_to_numpy(self._in_a_row))

    def culprits(self):
        """The paths of the variables whose gradients were not finite."""
        flags = ops.convert_to_numpy(self._culprits)
        return [path for path, flag in zip(self.paths, flags) if flag]
