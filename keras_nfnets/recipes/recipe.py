"""What a training run is: a `Recipe`, all of whose settings are plain values."""

import ast
import dataclasses
import math

from keras_nfnets import checks
from keras_nfnets.data import Augmentation, check_crop_mode

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a training run depends on.

    Attributes:
        about: a sentence, with the table or section of the paper.
        data: of `data.find`: `"digits"`, a set of TensorFlow Datasets or a folder.
        train_split, test_split: its parts to train on and to evaluate with.
        model: a network of the zoo.
        weights: to begin with, as in `keras.applications`; None for none.
        drop_rate, stochastic_depth_rate: the network's; None for its own.
        image_size: pixels a side of pictures to train on; None for the network's own.
        test_image_size: the same in evaluation; None for `image_size`.
        augmentation: see `data.Augmentation`; None for what suits the data.
        crop_mode: see `data.prepare`; None for what suits the data.
        batch_size: pictures a step, of all replicas together.
        epochs: passes over the training pictures.
        learning_rate: its peak for a batch of 256; scaled with `batch_size`.
        final_learning_rate: at the end of the cosine, not scaled.
        warmup_epochs: of a linear warm-up from zero; None for `warmup_cosine`'s.
        momentum: Nesterov's.
        weight_decay: of kernels, by the authors' optimizer (`SGDAGC`, which clips by
            itself, uncounted); None for none, by Keras's own SGD.
        label_smoothing: in [0, 1).
        clip_factor: of adaptive gradient clipping; None for none.
        sam_rho: radius of sharpness-aware minimization; None for none.
        ema_decay: of averaged weights; None for none.
        precision: Keras's dtype policy.
        head_epochs: passes in which a new classifier learns on features that stay,
            before all of a network that begins with `weights` is trained.
        patience: epochs without a better accuracy on the held-out pictures (or the same
            and a smaller loss) after which training ends; the best weights are kept.
            None for all epochs, and the last.
        report: whether to write a page about the result.
        seed: of initialization, order and regularization.
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
    test_image_size: int | None = None
    augmentation: str | None = None
    crop_mode: str | None = None
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
        for name in ("image_size", "test_image_size", "patience"):
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
        """This recipe with settings such as `"epochs=20"`.

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
    """A number, None, True, False, or else the text itself."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    is_plain = value is None or isinstance(value, (bool, int, float, str))
    return value if is_plain else text
