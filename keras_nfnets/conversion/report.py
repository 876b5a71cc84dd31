"""Report of a conversion by `normalizer_free`."""

import typing


class Step(typing.NamedTuple):
    """Conversion of one layer.

    Attributes:
        layer: str. Name of the layer, also in the new model if it still exists.
        kind: str. Name of its class.
        action: str. Description of what was done.
        variance: float or None. Variance of a channel after the layer with all skip
            gains equal to one, averaged over channels; None if the layer was removed or
            nothing was measured.
        variance_at_start: float or None. The variance with the initial skip gains.
        error: float or None. With `trained=True`, the root mean square difference from
            the original layer's output for the same input, relative to the standard
            deviation of its channels; zero if it is only rounding.

    Example:

    >>> Step("conv1", "Conv2D", "scale 1.02", 1.0, 1.0).action
    'scale 1.02'
    """

    layer: str
    kind: str
    action: str
    variance: float | None = None
    variance_at_start: float | None = None
    error: float | None = None


class Conversion:
    """Printable report of what `normalizer_free` did with each layer.

    Attributes:
        steps: list of `Step`.
        error: float or None. With `trained=True`, the error of the outputs for the
            images, relative to the standard deviation of the original's outputs.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(4, 3, name="conv"),
    ...     keras.layers.BatchNormalization(name="norm"),
    ...     keras.layers.GlobalAveragePooling2D(),
    ...     keras.layers.Dense(2, name="predictions"),
    ... ])
    >>> conversion = keras_nfnets.normalizer_free(model).conversion
    >>> {step.layer: step.action for step in conversion.steps}["norm"]
    'removed: the variance of its input is one'
    >>> conversion.summary
    'layers: 1 replaced, 1 removed, 2 left alone'
    """

    def __init__(self, steps, error=None):
        self.steps, self.error = steps, error

    @property
    def variances(self):
        """Steps with a measured variance, as `{layer: Step}`."""
        return {step.layer: step for step in self.steps if step.variance is not None}

    @property
    def summary(self):
        """Numbers of layers that were replaced, removed and left alone, in one line."""
        removed, kept = (
            sum(step.action.startswith(words) for step in self.steps)
            for words in (("removed", "folded"), "left alone")
        )
        replaced = len(self.steps) - removed - kept
        return f"layers: {replaced} replaced, {removed} removed, {kept} left alone"

    def __str__(self):
        heads = ["layer", "kind", "variance", "at start", "action"]
        rows = [
            [
                *(step.layer, step.kind),
                *map(_written, (step.variance, step.variance_at_start)),
                step.action,
            ]
            for step in self.steps
        ]
        if self.error is not None:  # then both variances are the same
            heads[3] = "error"
            for step, row in zip(self.steps, rows):
                row[3] = f"{step.error:.2g}" if step.error else "exact"
            end = ["outputs", "", "", f"{self.error:.2g}", "compared with the original"]
            rows.append(end)
        rows = [heads, *rows]
        widths = [max(map(len, column)) for column in list(zip(*rows))[:-1]]
        aligned = [str.ljust, str.ljust, str.rjust, str.rjust]
        lines = [
            "  ".join([*(f(x, n) for f, x, n in zip(aligned, row, widths)), row[-1]])
            for row in rows
        ]
        return "\n".join([self.summary, *lines])


def _written(number):
    return "" if number is None else f"{number:.2f}"
