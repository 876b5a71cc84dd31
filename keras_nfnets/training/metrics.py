"""Metrics that `AGCModel` logs in training."""

import re

import keras
from keras import ops


class _PerVariableMetric(keras.metrics.Metric):
    """Base class of metrics with state for each variable of a model.

    Keras requires metrics when a model is constructed. Their state depends on the
    variables, which are known only when the model is built: then `build` is called with
    the paths of all variables and the name of the model.
    """

    built = False

    def build(self, paths, model_name):
        self.paths = list(paths)
        self.built = True


class ClipShare(_PerVariableMetric):
    """Fraction of units that were clipped, averaged over steps."""

    def __init__(self):
        super().__init__(name="clip_share")

    def build(self, paths, model_name):
        super().build(paths, model_name)
        self._part_of = parts_of_network(paths, model_name)
        parts = set(self._part_of.values()) or {""}
        self.parts = sorted(parts, key=lambda part: (part != "stem", part))
        shape = (len(self.parts),)
        self._clipped = self.add_variable(shape, "zeros", name="clipped")
        self._units = self.add_variable(shape, "zeros", name="units")

    def update_state(self, counts, paths, weight=1.0):
        """Add a step with weight `weight`: the `Count`s of the variables at `paths`."""
        clipped, units = [0.0] * len(self.parts), [0.0] * len(self.parts)
        for count, path in zip(counts, paths):
            i = self.parts.index(self._part_of[path])
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

    def by_part(self):
        """Return the fraction of each part, `{"clip_share_stage1": float, ...}`."""
        shares = ops.divide_no_nan(self._clipped, self._units)
        return {
            f"{self.name}_{part}": float(share)
            for part, share in zip(self.parts, ops.convert_to_numpy(shares))
            if part
        }


def parts_of_network(paths, model_name):
    """Return the part of the network that each variable belongs to.

    Args:
        paths: list of str. Paths of the variables.
        model_name: str. Name of the model; it may be the beginning of paths.

    Returns:
        A dict from paths to `"stem"`, `"stage1"`, ..., or `""` for the rest. If no layer
        has such a name, a dict from paths to the names of the model's layers.
    """
    stages = {path: re.search(r"(?:^|/)(stem|stage\d+)", path) for path in paths}
    if any(stages.values()):
        return {path: stage[1] if stage else "" for path, stage in stages.items()}
    names = {path: path.removeprefix(f"{model_name}/").split("/") for path in paths}
    # A variable of the model itself has no layer.
    return {path: n[0] if len(n) > 1 else "" for path, n in names.items()}


class SkippedSteps(_PerVariableMetric):
    """Number of steps that were skipped because a gradient was not finite.

    The result counts the steps of an epoch; `in_a_row` continues across epochs.
    `culprits` lists the variables whose gradients were not finite in the last such step.
    """

    def __init__(self):
        super().__init__(name="skipped")

    def build(self, paths, model_name):
        super().build(paths, model_name)
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
