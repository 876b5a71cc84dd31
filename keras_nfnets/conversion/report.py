"""What `normalizer_free` reports of a conversion."""

import typing


class Step(typing.NamedTuple):
    """What was done with one layer.

    Attributes:
        layer: its name, in the new model too if it is still there.
        kind: name of its class.
        action: in words.
        variance: of a channel after it with the residual branches open (their gains
            one), averaged over channels; None where there is no such layer any more or
            nothing was found out.
        variance_at_start: the same with the gains that the model starts with.
        error: with `trained=True`, by how much what it gives differs from what the
            original would, given the same, over the deviation of that in a channel;
            zero if by rounding alone.

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
    """What `normalizer_free` has done, layer by layer: print it.

    Attributes:
        steps: list of `Step`.
        error: with `trained=True`, how far the outputs for the images are from the
            original's, over the deviation of these; else None.

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
    'removed: the variance before it is one'
    """

    def __init__(self, steps, error=None):
        self.steps, self.error = steps, error

    @property
    def variances(self):
        """`{layer: Step}` of those after which a variance is to be expected."""
        return {step.layer: step for step in self.steps if step.variance is not None}

    def __str__(self):
        heads = ["layer", "kind", "variance", "at start", "what was done"]
        rows = [
            [
                *(step.layer, step.kind),
                *map(_written, (step.variance, step.variance_at_start)),
                step.action,
            ]
            for step in self.steps
        ]
        if self.error is not None:  # (and the two variances are the same)
            heads[3] = "error"
            for step, row in zip(self.steps, rows):
                row[3] = f"{step.error:.2g}" if step.error else "exact"
            end = ["outputs", "", "", f"{self.error:.2g}", "from the original's"]
            rows.append(end)
        rows = [heads, *rows]
        widths = [max(map(len, column)) for column in list(zip(*rows))[:-1]]
        aligned = [str.ljust, str.ljust, str.rjust, str.rjust]
        return "\n".join(
            "  ".join([*(f(x, n) for f, x, n in zip(aligned, row, widths)), row[-1]])
            for row in rows
        )


def _written(number):
    return "" if number is None else f"{number:.2f}"
