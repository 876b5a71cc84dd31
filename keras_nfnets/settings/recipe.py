"""Settings of a training run: a `Recipe` of plain values."""

import ast
import dataclasses
import math

from keras_nfnets import checks
from keras_nfnets.data import INTERPOLATIONS, Augmentation, check_crop_mode
from keras_nfnets.tables import PRECISIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training run.

    Attributes:
        about: str. Description, with the table or section of the paper.
        data: str. Data set, as `data.find` accepts it: `"digits"`, a name in TensorFlow
            Datasets or a folder.
        train_split, test_split: str. Splits for training and for evaluation.
        model: str. Name of a network.
        weights: str or None. Initial weights, as in `keras.applications`; None for
            random initialization.
        drop_rate, stochastic_depth_rate: float or None. Rates of dropout and stochastic
            depth; None for the network's defaults.
        image_size: int or None. Image size in training, in pixels; None for the
            network's default.
        first_image_size: int or None. Image size at the beginning, from which it grows to
            `image_size`, see `training.growing_image_sizes`; None for no growth.
        test_image_size: int or None. Image size in evaluation; None for `image_size`.
        augmentation: str or None. See `data.Augmentation`; None for the default of the
            data.
        crop_mode: str or None. See `data.prepare`; None for the default of the data.
        interpolation: str or None. `"bicubic"`, without antialiasing, as the authors;
            `"antialiased_bicubic"` or `"bilinear"`; None for the default of the data,
            which antialiases folders of images.
        batch_size: int. Images per step, over all replicas.
        epochs: int. Passes over the training split.
        learning_rate: float. Peak learning rate at a batch size of 256; it scales with
            `batch_size`.
        final_learning_rate: float. Learning rate at the end of the cosine schedule; it
            does not scale.
        warmup_epochs: float or None. Length of the linear warm-up from zero; None for
            the default of `warmup_cosine`.
        momentum: float. Nesterov momentum.
        weight_decay: float or None. Weight decay of kernels by the authors' optimizer,
            `SGDAGC`, which clips by itself (there is no `clip_share`); None for no
            weight decay, by Keras's SGD.
        label_smoothing: float in [0, 1).
        clip_factor: float or None. Clipping factor of AGC; None for no clipping.
        sam_rho: float or None. Radius of sharpness-aware minimization; None for none.
        ema_decay: float or None. Decay of the moving average of weights; None for none.
        precision: str. Keras dtype policy.
        head_epochs: int. Epochs of training a new classifier on frozen features, before
            the complete pretrained network is trained.
        patience: int or None. Epochs without a higher accuracy on the evaluation split
            (or an equal one with a lower loss) after which training stops with the best
            weights. None for all epochs and the last weights.
        report: bool. Whether to write a report of the result.
        seed: int. Seed of initialization, data order and regularization.

    Raises:
        ValueError: a value is out of range.

    Example:

    >>> recipe = Recipe(about="mine", data="digits", model="NFNetTiny", batch_size=64,
    ...                 epochs=3)
    >>> recipe.learning_rate, recipe.clip_factor
    (0.1, None)
    """

    about: str
    data: str
    train_split: str = "train"
    test_split: str = "test"
    model: str
    weights: str | None = None
    drop_rate: float | None = None
    stochastic_depth_rate: float | None = None
    image_size: int | None = None
    first_image_size: int | None = None
    test_image_size: int | None = None
    augmentation: str | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    batch_size: int
    epochs: int
    learning_rate: float = 0.1
    final_learning_rate: float = 0.0
    warmup_epochs: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    label_smoothing: float = 0.1
    clip_factor: float | None = None
    sam_rho: float | None = None
    ema_decay: float | None = None
    precision: str = "float32"
    head_epochs: int = 0
    patience: int | None = None
    report: bool = False
    seed: int = 0

    def __post_init__(self):
        for name in ("batch_size", "epochs"):
            checks.integer(name, getattr(self, name))
        for name in ("image_size", "first_image_size", "test_image_size", "patience"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name))
        for name in ("head_epochs", "seed"):
            checks.integer(name, getattr(self, name), minimum=0)
        for name in ("learning_rate", "final_learning_rate"):
            checks.number(name, getattr(self, name))
        for name in ("momentum", "label_smoothing"):
            checks.number(name, getattr(self, name), below=1)
        if self.warmup_epochs is not None:
            checks.number("warmup_epochs", self.warmup_epochs, below=self.epochs)
        if self.weight_decay is not None:
            checks.number("weight_decay", self.weight_decay)
        if self.augmentation is not None:
            Augmentation.parse(self.augmentation)
        if self.crop_mode is not None:
            check_crop_mode(self.crop_mode)
        if self.interpolation is not None:
            checks.one_of("interpolation", self.interpolation, INTERPOLATIONS)
        for name in ("clip_factor", "ema_decay"):
            if getattr(self, name) is not None:
                below = 1 if name == "ema_decay" else math.inf
                checks.number(name, getattr(self, name), exclusive=True, below=below)
        for name in ("drop_rate", "stochastic_depth_rate", "sam_rho"):
            if getattr(self, name) is not None:
                below = math.inf if name == "sam_rho" else 1
                checks.number(name, getattr(self, name), below=below)
        checks.one_of("precision", self.precision, PRECISIONS)
        if self.seed >= 2**32:
            raise ValueError(f"`seed` must be less than 2**32. Received: {self.seed}")
        for name in ("data", "train_split", "test_split", "model", "weights"):
            value = getattr(self, name)
            if not isinstance(value, str) and (name != "weights" or value is not None):
                raise ValueError(f"`{name}` must be a name. Received: {name}={value!r}")
        if not isinstance(self.report, bool):
            raise ValueError(
                f"`report` must be True or False. Received: report={self.report!r}"
            )

    def changed(self, assignments):
        """Return a copy with changed settings, given as strings like `"epochs=20"`.

        Raises:
            ValueError: there is no such setting, or its value is out of range.

        Example:

        >>> from keras_nfnets import recipes
        >>> recipes.find("digits").changed(["epochs=20", "augmentation=flip"]).epochs
        20
        """
        values = {}
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            name = name.strip()
            known = [f.name for f in dataclasses.fields(self) if f.name != "about"]
            if name not in known:
                raise ValueError(
                    "A setting is key=value, with one of the keys "
                    f"{', '.join(known)}. Received: {assignment!r}"
                    f"{checks.perhaps(name, known)}"
                )
            if not equals:
                raise ValueError(
                    f"A setting is key=value, such as {name}={getattr(self, name)}. "
                    f"Received: {assignment!r}"
                )
            values[name] = _value(text.strip())
        return dataclasses.replace(self, **values)


def _value(text):
    """Parse a number, None, True, False or quoted string; return other text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # deeply nested
        return text
    is_plain = value is None or isinstance(value, (bool, int, float, str))
    return value if is_plain else text
