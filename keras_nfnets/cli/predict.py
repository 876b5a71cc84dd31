"""`keras-nfnets predict`."""

import contextlib
import json
import pathlib
import sys
import typing

import keras
import numpy as np

from keras_nfnets import data, decode_predictions, pretrained
from keras_nfnets.cli import pictures
from keras_nfnets.cli.command import (
    Command,
    Failure,
    UsageError,
    load_model,
    progress_bar,
)

_BATCH_SIZE = 8
_PICTURES_A_PLOT = 40
# For a network of whose training nothing is known.
_IMAGENET = {
    "size": 224,
    "crop": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "deviation": (0.229, 0.224, 0.225),
}


def run(flags, arguments):
    if len(arguments) < 2:
        raise UsageError(
            "'predict' takes a network and one or more pictures or folders of them. "
            f"Received: {' '.join(arguments) or 'none'}"
        )
    name, *paths = arguments
    if flags.plot is not None:
        _check_plot(flags.plot)
    try:
        files = data.find_pictures(paths)
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        network = _network(name)
    except (ValueError, OSError) as error:
        raise Failure(str(error)) from error
    rows, shown = [], []
    batches = [files[i : i + _BATCH_SIZE] for i in range(0, len(files), _BATCH_SIZE)]
    for batch in progress_bar(batches, "predicting", "batches"):
        for file, picture, result in _predict(network, batch):
            if isinstance(result, ValueError):
                print(f"Left out: {result}", file=sys.stderr)
                rows.append({"image": str(file), "error": str(result)})
                continue
            best = _best(result, network.class_names, flags.top)
            rows.append({"image": str(file), "predictions": best})
            if flags.plot and len(shown) < _PICTURES_A_PLOT:
                shown.append((_thumbnail(picture), file.name, best))
            if not flags.json:
                _print(file, best)
    if flags.json:
        print(json.dumps(rows, indent=2, allow_nan=False))
    if shown:
        try:
            pictures.labelled(shown, flags.plot)
        except (OSError, ValueError) as error:
            raise Failure(f"Cannot write --plot={flags.plot}: {error}") from error
    broken = sum("error" in row for row in rows)
    if broken:
        print(f"{broken} of {len(files)} pictures were left out.", file=sys.stderr)
    return int(broken > 0)


def _check_plot(path):
    from matplotlib.figure import Figure

    kinds = Figure().canvas.get_supported_filetypes()
    path = pathlib.Path(path)
    if path.suffix[1:].lower() not in kinds or not path.parent.is_dir():
        raise UsageError(
            f"--plot must be a file in a folder that is there, ending in one of "
            f"{', '.join(sorted(kinds))}. Received: {str(path)!r}"
        )


class _Network(typing.NamedTuple):
    """A model, how pictures are prepared for it and what its classes are called."""

    model: keras.Model
    preparation: dict
    class_names: list | None

    def checked(self, source):
        """This, or a ValueError that says what about the model does not do."""
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
        except Exception as error:  # of whatever type the model stumbles over
            raise ValueError(
                f"{source} does not go with pictures prepared by {self.preparation}: "
                f"{error}"
            ) from error
        return self


def _network(name):
    if pretrained.is_weight_file(name):
        return _from_file(pathlib.Path(name).expanduser()).checked(name)
    checkpoint = pretrained.find_checkpoint(name)
    if checkpoint is None:
        try:
            network = pretrained.find_network(name)
        except ValueError as error:
            raise ValueError(
                f"{name!r} is neither a weight file nor a checkpoint of 'keras-nfnets "
                f"list --weights'. {error}"
            ) from error
        published = pretrained.published(network.architecture)
        if not published:
            raise ValueError(
                f"There are no published weights of {name!r}. 'keras-nfnets list "
                "--weights' shows what there is."
            )
        # The most accurate.
        checkpoint = published[0]
        name = checkpoint.name
    model = pretrained.create(name, classes=checkpoint.classes)
    return _Network(model, checkpoint.preparation, _class_names(checkpoint))


def _from_file(path):
    whole_model = path.suffix.lower() == ".keras"
    model = load_model(path) if whole_model else None
    about = path.with_suffix(".json")
    if whole_model and about.is_file():
        try:
            known = json.loads(about.read_text("utf-8"))
            return _Network(model, known["preparation"], known["class_names"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{about} is not what 'keras-nfnets train' writes beside a model: "
                f"{error!r}"
            ) from error
    try:
        found = pretrained.recognize(path)
    except ValueError:
        if not whole_model:
            raise
        return _Network(model, _preparation_for(model), None)
    if not whole_model:
        model = found.network.build(weights=path, **found.options)
    for checkpoint in pretrained.published(found.network.architecture):
        if checkpoint.classes == found.options.get("classes"):
            print(
                f"{path} has the shape of {checkpoint.name}: taken for it, in the "
                "preparation of pictures and the names of classes.",
                file=sys.stderr,
            )
            return _Network(model, checkpoint.preparation, _class_names(checkpoint))
    return _Network(model, _preparation_for(model), None)


def _preparation_for(model):
    """ImageNet's, for the pictures that a model takes; nothing else is known."""
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
        # Keras says on the standard output that it downloads them.
        with contextlib.redirect_stdout(sys.stderr):
            return [best[0][1] for best in decode_predictions(np.eye(1000), top=1)]
    # Of no class in particular.
    except Exception as error:  # noqa: BLE001
        print(f"Classes are numbers, for want of their names: {error}", file=sys.stderr)
        return None


def _predict(network, files):
    """Yields each file with its picture and probabilities, or with None and an error."""
    read = []
    for file in files:
        try:
            picture = data.read_picture(file)
            read.append((file, picture, data.prepare(picture, **network.preparation)))
        except ValueError as error:
            read.append((file, None, error))
    whole = [x for _, picture, x in read if picture is not None]
    outputs = network.model.predict(np.stack(whole), verbose=0) if whole else ()
    outputs = iter(np.asarray(outputs, "float64"))
    for file, picture, x in read:
        result = x if picture is None else _probabilities(next(outputs), file)
        yield file, picture, result


def _probabilities(outputs, file):
    if not np.isfinite(outputs).all():
        return ValueError(f"for {file} the network's answer is not a number")
    if outputs.min() >= 0 and abs(outputs.sum() - 1) < 1e-2:
        return outputs
    # Logits.
    exponentials = np.exp(outputs - outputs.max())
    return exponentials / exponentials.sum()


def _thumbnail(picture):
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((480, 480))
    return np.asarray(image)


def _best(probabilities, class_names, top):
    return [
        {
            "class": int(i),
            "name": class_names[i] if class_names else str(i),
            "probability": float(probabilities[i]),
        }
        for i in np.argsort(-probabilities, kind="stable")[:top]
    ]


def _print(file, best):
    print(file)
    for row in best:
        print(f"  {row['probability']:7.2%}  {row['name']}")


COMMAND = Command(
    "predict",
    "predict NETWORK IMAGE... [FLAGS]",
    """\
Says what is on pictures. NETWORK is the name of a checkpoint or of a network with
published weights ('keras-nfnets list --weights'), a weight file, or a .keras model,
such as 'keras-nfnets train' writes. IMAGE is a picture, or a folder of them. They are
prepared as the checkpoint wants it. Pictures that are broken are named and left out;
the exit status is then 1.

  keras-nfnets predict digits scan.png
  keras-nfnets predict NFNetL0 holiday/ --plot=holiday.png
  keras-nfnets predict runs/digits-NFNetTiny-1/model.keras scan.png --json
""",
    run,
)
_flag = COMMAND.define
_flag("integer", "top", 3, "How many classes to name.", lower_bound=1)
_flag(
    "boolean", "json", False, "Print JSON, with numbers of classes, in place of text."
)
_flag(
    "string",
    "plot",
    None,
    f"Picture file to draw the first {_PICTURES_A_PLOT} with their labels into.",
)
