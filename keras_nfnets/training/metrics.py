"""Metrics that `AGCModel` logs in training."""

import re

import keras
from keras import ops


class _PerVariableMetric(keras.metrics.Metric):
    """Base class of metrics with state for each variable of a model.

    Keras requires metrics when a model is constructed. Their state depends on the
    variables, which are known only when the model is built: then `build(paths)` is called
    with the paths of all variables.
    """

    built = False

    def build(self, paths):
        self.paths = list(paths)
        self.built = True


class ClipShare(_PerVariableMetric):
    """Fraction of units that were clipped, averaged over steps."""

    def __init__(self):
        super().__init__(name="clip_share")

    def build(self, paths):
        super().build(paths)
        # "stem", "stage1", ..., and "" for the rest
        stages = {_stage(path) for path in paths} or {""}
        self.stages = sorted(stages, key=lambda stage: (stage != "stem", stage))
        shape = (len(self.stages),)
        self._clipped = self.add_variable(shape, "zeros", name="clipped")
        self._units = self.add_variable(shape, "zeros", name="units")

    def update_state(self, counts, paths, weight=1.0):
        """Add a step with weight `weight`: the `Count`s of the variables at `paths`."""
        clipped, units = [0.0] * len(self.stages), [0.0] * len(self.stages)
        for count, path in zip(counts, paths):
            i = self.stages.index(_stage(path))
            clipped[i] = clipped[i] + count.clipped
            units[i] += count.units
        clipped = ops.stack([ops.cast(value, "float32") for value in clipped])
        weight = ops.cast(weight, "float32")
        self._clipped.assign_add(weight * clipped)
        self._units.assign_add(weight * ops.convert_to_tensor(units, "float32"))

    def result(self):
        if not self.built:
            return 0.0
        return ops.divide_no_nan(ops.sum(self._clipped), ops.sum(self._units))

    def by_stage(self):
        """Return the fraction of each stage, `{"clip_share_stage1": float, ...}`."""
        shares = ops.divide_no_nan(self._clipped, self._units)
        return {
            f"{self.name}_{stage}": float(share)
            for stage, share in zip(self.stages, ops.convert_to_numpy(shares))
            if stage
        }


def _stage(path):
    return re.match(r"stem|stage\d+|", path)[0]


class SkippedSteps(_PerVariableMetric):
    """Number of steps that were skipped because a gradient was not finite.

    The result counts the steps of an epoch; `in_a_row` continues across epochs.
    `culprits` lists the variables whose gradients were not finite in the last such step.
    """

    def __init__(self):
        super().__init__(name="skipped")

    def build(self, paths):
        super().build(paths)
        # All replicas have the same values.
        same = {"dtype": "int32", "aggregation": "only_first_replica"}
        self._skipped = self.add_variable((), "zeros", name="skipped", **same)
        self._in_a_row = self.add_variable((), "zeros", name="in_a_row", **same)
        self._culprits = self.add_variable(
            (len(self.paths),), "zeros", name="culprits", **same
        )

    def update_state(self, finite, paths):
        """Add a step, given for each path a bool tensor: whether its gradient is finite."""
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
        """Return the number of consecutive skipped steps up to the last step."""
        return int(ops.convert_to_numpy(self._in_a_row))

    def culprits(self):
        """Return the paths of the variables whose gradients were not finite."""
        flags = ops.convert_to_numpy(self._culprits)
        return [path for path, flag in zip(self.paths, flags) if flag]
