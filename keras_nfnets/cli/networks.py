"""Networks named on the command line: published ones and those in files."""

import contextlib
import pathlib
import sys
import typing

import keras
import numpy as np

from keras_nfnets import checks, data, decode_predictions, pretrained
from keras_nfnets.cli import run_folder
from keras_nfnets.cli.command import load_model
from keras_nfnets.pretrained import architectures

# Preparation of images for a network whose training is unknown.
_IMAGENET = {
    "size": 224,
    "crop": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
    **data.IMAGENET,
}


class Network(typing.NamedTuple):
    """A model, the preparation of its images and the names of its classes.

    `about` is the metadata that 'keras-nfnets train' saved with it.
    """

    model: keras.Model
    preparation: dict
    class_names: list | None
    about: dict = {}  # noqa: RUF012 (never changed)

    def checked(self, source):
        """Return this network, or raise a ValueError if it cannot classify images."""
        outputs = self.model.output_shape
        if not (isinstance(outputs, tuple) and len(outputs) == 2 and outputs[1] > 1):
            raise ValueError(
                f"{source} must have one number for each of two or more classes. "
                f"Received: a model with outputs of shape {outputs}"
            )
        try:
            example = np.zeros((2, 2, 3), "uint8")
            x = data.prepare(example, **self.preparation)[np.newaxis]
            names = self.class_names
            if names is not None and len(names) != outputs[1]:
                raise ValueError(f"{len(names)} names for {outputs[1]} classes")
            self.model.predict(x, verbose=0)
        except Exception as error:  # models raise exceptions of many types
            raise ValueError(
                f"{source} does not go with pictures prepared by {self.preparation}: "
                f"{error}"
            ) from error
        return self


def find(name):
    """Find a `Network` by the name of a network, a checkpoint, a file or a run's folder.

    Raises:
        ValueError, OSError: there is no such network, or it cannot be used or downloaded.
    """
    for path in (pathlib.Path(name), pathlib.Path(name, run_folder.MODEL)):
        if pretrained.is_weight_file(path):
            return _from_file(path.expanduser()).checked(str(path))
    checkpoint = pretrained.find_checkpoint(name)
    if checkpoint is None:
        try:
            network = pretrained.find_network(name)
        except ValueError as error:
            names = [n for c in pretrained.list_checkpoints() for n in c.names]
            suggestion = checks.perhaps(name, [*names, *architectures.NETWORKS]) or "."
            raise ValueError(
                f"{name!r} is neither a weight file, nor the folder of a run with its "
                "model, nor a checkpoint or network of 'keras-nfnets list --weights'"
                f"{suggestion}"
            ) from error
        published = pretrained.published(network.architecture)
        if not published:
            raise ValueError(
                f"There are no published weights of {name!r}. 'keras-nfnets list "
                "--weights' shows what there is."
            )
        # The first checkpoint is the most accurate.
        checkpoint = published[0]
        name = checkpoint.name
    model = pretrained.create(name, classes=checkpoint.classes)
    return Network(model, checkpoint.preparation, _class_names(checkpoint))


def _from_file(path):
    whole_model = path.suffix.lower() == ".keras"
    model = load_model(path) if whole_model else None
    about = run_folder.about_model(path) if whole_model else None
    if about is not None:
        try:
            names = about["class_names"]
            return Network(model, about["preparation"], names, about)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path.with_suffix('.json')} is not what 'keras-nfnets train' writes "
                f"beside a model: {error!r}"
            ) from error
    try:
        found = pretrained.recognize(path)
    except ValueError:
        if not whole_model:
            raise
        return Network(model, _preparation_for(model), None)
    if not whole_model:
        model = found.network.build(weights=path, **found.options)
    for checkpoint in pretrained.published(found.network.architecture):
        if checkpoint.classes == found.options.get("classes"):
            print(
                f"{path} has the shape of {checkpoint.name}: taken for it, in the "
                "preparation of pictures and the names of classes.",
                file=sys.stderr,
            )
            return Network(model, checkpoint.preparation, _class_names(checkpoint))
    return Network(model, _preparation_for(model), None)


def _preparation_for(model):
    """Return the preparation of ImageNet's images, for the input shape of a model."""
    shape = model.input_shape
    if not (isinstance(shape, tuple) and len(shape) == 4 and shape[3] in (1, 3)):
        raise ValueError(
            "Pictures, grey or RGB with the channels last, must be the one input. "
            f"Received: a model with inputs of shape {shape}"
        )
    preparation = {**_IMAGENET, "size": shape[1] or _IMAGENET["size"]}
    if shape[3] == 1:
        grey = {name: np.mean(_IMAGENET[name]) for name in ("mean", "deviation")}
        preparation = {**preparation, **grey, "channels": 1}
    return preparation


def _class_names(checkpoint):
    return checkpoint.class_names or _imagenet_names()


def _imagenet_names():
    try:
        # Keras reports the download of the names on the standard output.
        with contextlib.redirect_stdout(sys.stderr):
            return [best[0][1] for best in decode_predictions(np.eye(1000), top=1)]
    # A download can fail with exceptions of many types.
    except Exception as error:  # noqa: BLE001
        print(f"Classes are numbers, for want of their names: {error}", file=sys.stderr)
        return None
