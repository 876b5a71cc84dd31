"""`keras-nfnets predict`."""

import json
import pathlib
import sys

import numpy as np

from keras_nfnets import data
from keras_nfnets.cli import held_out, networks, pictures
from keras_nfnets.cli.command import Command, Failure, UsageError, progress_bar

_BATCH_SIZE = 8
_PICTURES_A_PLOT = 40


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
        network = networks.find(name)
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
                shown.append((pictures.small(picture, 480), file.name, best))
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


def _predict(network, files):
    """Yield each file with its image and probabilities, or with None and an error."""
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
    return held_out.probabilities(outputs)


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
such as 'keras-nfnets train' writes, or the folder that it writes into. IMAGE is a
picture, or a folder of them. They are prepared as the checkpoint wants it. Pictures
that are broken are named and left out; the exit status is then 1.

  keras-nfnets predict digits scan.png
  keras-nfnets predict NFNetL0 holiday/ --plot=holiday.png
  keras-nfnets predict runs/digits-NFNetTiny-1 scan.png --json
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
