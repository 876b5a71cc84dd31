"""`keras-nfnets predict`."""

import json
import pathlib
import sys

import keras
import numpy as np

from keras_nfnets import data, decode_predictions, pretrained
from keras_nfnets.cli import pictures
from keras_nfnets.cli.command import Command, UsageError, progress_bar

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
    try:
        files = data.find_pictures(paths)
        model, preparation, class_names = _network(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        print(f"keras-nfnets predict: {error}", file=sys.stderr)
        return 1
    rows, shown = [], []
    batches = [files[i : i + _BATCH_SIZE] for i in range(0, len(files), _BATCH_SIZE)]
    for batch in progress_bar(batches, "predicting", "batches"):
        for file, picture, result in _predict(model, preparation, batch):
            if isinstance(result, ValueError):
                print(f"Left out: {result}", file=sys.stderr)
                rows.append({"image": str(file), "error": str(result)})
                continue
            best = _best(result, class_names, flags.top)
            rows.append({"image": str(file), "predictions": best})
            if flags.plot and len(shown) < _PICTURES_A_PLOT:
                shown.append((picture, file.name, best))
            if not flags.json:
                _print(file, best)
    if flags.json:
        print(json.dumps(rows, indent=2))
    if shown:
        try:
            pictures.labelled(shown, flags.plot)
        except (OSError, ValueError) as error:
            print(f"Cannot write --plot={flags.plot}: {error}", file=sys.stderr)
            return 1
    broken = sum("error" in row for row in rows)
    if broken:
        print(f"{broken} of {len(files)} pictures were left out.", file=sys.stderr)
    return int(broken > 0)


def _network(name):
    """A model, how pictures are prepared for it and what its classes are called."""
    path = pathlib.Path(name).expanduser()
    if path.suffix and path.is_file():
        return _from_file(path)
    checkpoints = pretrained.list_checkpoints()
    checkpoint = next((c for c in checkpoints if name in c.names), None)
    if checkpoint is None:
        try:
            network = pretrained.find_network(name)
        except ValueError as error:
            raise ValueError(
                f"{name!r} is neither a file nor a checkpoint of 'keras-nfnets list "
                f"--weights'. {error}"
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
    return model, checkpoint.preparation, _class_names(checkpoint)


def _from_file(path):
    about = path.with_suffix(".json")
    whole_model = path.suffix == ".keras"
    if whole_model and about.is_file():
        try:
            known = json.loads(about.read_text("utf-8"))
            return _load_model(path), known["preparation"], known["class_names"]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{about} is not what 'keras-nfnets train' writes beside a model: "
                f"{error!r}"
            ) from error
    try:
        found = pretrained.recognize(path)
    except ValueError:
        if not whole_model:
            raise
        return _load_model(path), _IMAGENET, None
    if "classes" not in found.options:
        raise ValueError(f"The network in {path} has no classifier.")
    if whole_model:
        model = _load_model(path)
    else:
        model = found.network.build(weights=path, **found.options)
    for checkpoint in pretrained.published(found.network.architecture):
        if checkpoint.classes == found.options["classes"]:
            return model, checkpoint.preparation, _class_names(checkpoint)
    return model, _IMAGENET, None


def _load_model(path):
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # of whatever type Keras stumbles over
        raise ValueError(f"{path} is not a whole .keras file: {error}") from error


def _class_names(checkpoint):
    return checkpoint.class_names or _imagenet_names()


def _imagenet_names():
    try:
        return [best[0][1] for best in decode_predictions(np.eye(1000), top=1)]
    # Keras downloads them, and raises errors of no class in particular.
    except Exception as error:  # noqa: BLE001
        print(f"Classes are numbers, for want of their names: {error}", file=sys.stderr)
        return None


def _predict(model, preparation, files):
    """Yields each file with its picture and probabilities, or with None and an error."""
    read = []
    for file in files:
        try:
            picture = data.read_picture(file)
            read.append((file, picture, data.prepare(picture, **preparation)))
        except ValueError as error:
            read.append((file, None, error))
    whole = [x for _, picture, x in read if picture is not None]
    outputs = model.predict(np.stack(whole), verbose=0) if whole else ()
    outputs = iter(np.asarray(outputs, "float64"))
    for file, picture, x in read:
        yield file, picture, x if picture is None else _probabilities(next(outputs))


def _probabilities(outputs):
    if outputs.min() >= 0 and abs(outputs.sum() - 1) < 1e-2:
        return outputs
    # Logits.
    exponentials = np.exp(outputs - outputs.max())
    return exponentials / exponentials.sum()


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
published weights ('keras-nfnets list --weights'), a weight file, or a .keras model, such
as 'keras-nfnets train' writes. IMAGE is a picture, or a folder of them. They are prepared
as the checkpoint wants it. Pictures that are broken are named and left out; the exit
status is then 1.

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
