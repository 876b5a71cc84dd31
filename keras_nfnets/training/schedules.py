"""Schedules of learning rates and of image sizes."""

import typing

import keras

from keras_nfnets import checks


@keras.saving.register_keras_serializable("keras_nfnets")
class ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate schedule times a constant factor.

    Args:
        schedule: `keras.optimizers.schedules.LearningRateSchedule` or its config.
        factor: float.

    Example:

    >>> schedule = warmup_cosine(0.1, batch_size=256, steps_per_epoch=10, epochs=9)
    >>> round(float(ScaledSchedule(schedule, 0.5)(9)), 3)
    0.05
    """

    def __init__(self, schedule, factor):
        self.schedule = keras.optimizers.schedules.deserialize(schedule)
        self.factor = factor

    def __call__(self, step):
        return self.factor * self.schedule(step)

    def get_config(self):
        schedule = keras.optimizers.schedules.serialize(self.schedule)
        return {"schedule": schedule, "factor": self.factor}


def warmup_cosine(
    learning_rate,
    batch_size,
    *,
    steps_per_epoch,
    epochs,
    warmup_epochs=None,
    final_learning_rate=0.0,
):
    """Create the papers' schedule: linear warm-up, then cosine decay.

    Args:
        learning_rate: float. Peak for a batch size of 256; it is scaled by
            `batch_size / 256`. The authors use 0.1.
        batch_size: int. Examples per step, of all replicas together.
        steps_per_epoch: int. Optimizer steps per epoch.
        epochs: int. Length of the complete run.
        warmup_epochs: float. Length of the warm-up, less than `epochs`. By default the
            authors' 5, or a tenth of a run of fewer than 50 epochs.
        final_learning_rate: float. Value at the end, which is not scaled; at most the
            peak.

    Returns:
        A `keras.optimizers.schedules.CosineDecay`.

    Raises:
        ValueError: an argument is out of range.

    Example:

    >>> schedule = warmup_cosine(0.1, batch_size=4096, steps_per_epoch=312, epochs=360)
    >>> round(float(schedule(5 * 312)), 3)
    1.6

    Reference: Brock et al. (2021), arXiv 2102.06171, appendix; `WarmupCosineDecay` in
    the authors' optim.py with the settings of experiment_nfnets.py.
    """
    checks.integer("batch_size", batch_size)
    checks.integer("steps_per_epoch", steps_per_epoch)
    checks.integer("epochs", epochs)
    if warmup_epochs is None:
        warmup_epochs = min(5, epochs / 10)
    checks.number("warmup_epochs", warmup_epochs, below=epochs)
    steps, warmup = steps_per_epoch * epochs, round(steps_per_epoch * warmup_epochs)
    peak = checks.number("learning_rate", learning_rate) * batch_size / 256
    final = checks.number("final_learning_rate", final_learning_rate)
    if final > peak:
        raise ValueError(
            f"`final_learning_rate` must be at most the peak, {peak:g}. "
            f"Received: final_learning_rate={final:g}"
        )
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        steps - warmup,
        alpha=final / peak if final else 0.0,
        warmup_target=peak,
        warmup_steps=warmup,
    )


class Period(typing.NamedTuple):
    """Consecutive epochs with images of one size.

    Attributes:
        image_size: int. Side length of the images, in pixels.
        initial_epoch, epochs: int. Arguments of `fit`: epochs before, and at the end.
    """

    image_size: int
    initial_epoch: int
    epochs: int


_PERIODS = 4


def growing_image_sizes(first, last, epochs):
    """Divide training into periods whose image sizes grow (progressive resizing).

    There are four periods, or fewer if there are fewer epochs or image sizes. Training on
    small images is faster. The network must accept all sizes: height and width of its
    `input_shape` must be None.

    Args:
        first: int. Side length of the images in the first period, in pixels.
        last: int. Side length in the last period.
        epochs: int. Length of the complete run. With a single one, all images have the
            last size.

    Returns:
        A list of tuples `(image_size, initial_epoch, epochs)`, which are arguments of
        `data.load` and of `fit`.

    Raises:
        ValueError: an argument is not a positive integer, or `first` is larger than `last`.

    Example:

    >>> for period in growing_image_sizes(128, 224, epochs=10):
    ...     print(period)
    Period(image_size=128, initial_epoch=0, epochs=2)
    Period(image_size=160, initial_epoch=2, epochs=5)
    Period(image_size=192, initial_epoch=5, epochs=7)
    Period(image_size=224, initial_epoch=7, epochs=10)

    Reference: Tan and Le (2021), arXiv 2104.00298, section 4, whose regularization also
    grows; here it does not.
    """
    first, last = checks.integer("first", first), checks.integer("last", last)
    epochs = checks.integer("epochs", epochs)
    if first > last:
        raise ValueError(
            "Image sizes grow: `first` must be at most `last`. "
            f"Received: first={first}, last={last}"
        )
    count = min(_PERIODS, epochs, last - first + 1)
    step = (last - first) / max(count - 1, 1)
    sizes = [last - round(step * i) for i in reversed(range(count))]
    ends = [epochs * i // count for i in range(count + 1)]
    return [Period(*period) for period in zip(sizes, ends, ends[1:])]
