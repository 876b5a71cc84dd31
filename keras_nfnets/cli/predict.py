"""`keras-nfnets predict`."""

import pathlib
import sys

from keras_nfnets import data
from keras_nfnets.cli.command import (
    Command,
    Failure,
    UsageError,
    only_json,
    print_json,
    progress_bar,
    received,
)
from keras_nfnets.cli.quiet import import_keras
from keras_nfnets.printing import printable

_IMAGES_PER_PLOT = 40


def run(flags, arguments):
    if len(arguments) < 2:
        raise UsageError(
            "'predict' takes a network and one or more images or folders of images. "
            f"{received(arguments)}"
        )
    name, *paths = arguments
    if flags.plot is not None:
        _check_plot(flags.plot)
    try:
        files = data.find_pictures(paths)
    except ValueError as error:
        raise UsageError(str(error)) from error
    import_keras()
    from keras_nfnets import runs
    from keras_nfnets.runs import figures

    try:
        with only_json(flags.json):
            classifier = runs.load_classifier(name)
    except (ValueError, OSError) as error:
        raise Failure(str(error)) from error
    predictions = runs.predict(
        classifier,
        files,
        flags.top,
        progress=lambda batches: progress_bar(batches, "predicting", "batches"),
    )
    rows, shown = [], []
    for prediction in predictions:
        rows.append(_row(prediction))
        if prediction.error:
            print(f"Left out: {printable(prediction.error)}", file=sys.stderr)
            continue
        if flags.plot and len(shown) < _IMAGES_PER_PLOT:
            small = figures.shrink(prediction.image, 480)
            shown.append((small, prediction.path.name, prediction.classes))
        if not flags.json:
            _print(prediction)
    if flags.json:
        print_json(rows)
    if shown:
        try:
            figures.labeled(shown, flags.plot)
        except (OSError, ValueError) as error:
            raise Failure(f"Cannot write --plot={flags.plot}: {error}") from error
    broken = sum("error" in row for row in rows)
    if broken:
        print(f"{broken} of {len(files)} images were left out.", file=sys.stderr)
    return int(broken > 0)


def _check_plot(path):
    from matplotlib.figure import Figure

    kinds = Figure().canvas.get_supported_filetypes()
    path = pathlib.Path(path)
    if path.suffix[1:].lower() not in kinds or not path.parent.is_dir():
        raise UsageError(
            "--plot must be a file in an existing folder, ending in one of "
            f"{', '.join(sorted(kinds))}. Received: {str(path)!r}"
        )


def _row(prediction):
    """Return the JSON object of an image, for --json."""
    row = {"image": str(prediction.path)}
    if prediction.error:
        return {**row, "error": prediction.error}
    scores = [
        {
            "class": score.index,
            "name": score.name,
            "probability" if score.is_probability else "output": score.probability,
        }
        for score in prediction.classes
    ]
    return {**row, "predictions": scores}


def _print(prediction):
    print(printable(prediction.path))
    for score in prediction.classes:
        value = score.probability
        text = f"{value:7.2%}" if score.is_probability else f"{value:7.4g}"
        print(f"  {text}  {printable(score.name)}")


COMMAND = Command(
    "predict",
    "predict NETWORK IMAGE... [FLAGS]",
    """\
Predicts the classes of images.

  keras-nfnets predict digits scan.png
  keras-nfnets predict NFNetL0 holiday/ --plot=holiday.png
  keras-nfnets predict runs/digits-NFNetTiny-1 scan.png --json

NETWORK is the folder of a run of 'keras-nfnets train', a .keras file, a
checkpoint or a network with published weights ('keras-nfnets list --weights'),
or a weight file. To use a folder with a published name, write ./NAME. IMAGE is
an image file or a folder of images. Images are preprocessed as in the training
of the network. Images that cannot be read are reported and left out; the exit
status is then 1.
""",
    run,
)
_flag = COMMAND.define
_flag("integer", "top", 3, "Number of predicted classes per image.", lower_bound=1)
_flag("boolean", "json", False, "Print JSON, which also has the class indices.")
_flag(
    "string",
    "plot",
    None,
    f"Draw the first {_IMAGES_PER_PLOT} images with their predicted classes into this image file.",
)
