"""`keras-nfnets evaluate`."""

import itertools

from keras_nfnets.cli.command import (
    Command,
    Failure,
    UsageError,
    only_json,
    print_json,
    progress_bar,
    received,
    tell_data,
)
from keras_nfnets.cli.quiet import import_keras
from keras_nfnets.printing import printable


def run(flags, arguments):
    if len(arguments) != 1:
        raise UsageError(f"'evaluate' takes one network. {received(arguments)}")
    [name] = arguments
    tell_data(flags.data)
    import_keras()
    from keras_nfnets import runs

    try:
        with only_json(flags.json):
            evaluation = runs.evaluate(
                name,
                flags.data,
                flags.split,
                flags.batch_size,
                progress=lambda batches: progress_bar(batches, "evaluating", "batches"),
            )
    except (ValueError, OSError, runs.RunError) as error:
        raise Failure(str(error)) from error
    (_print_json if flags.json else _print)(name, evaluation, flags)
    return 0


def _print_json(name, evaluation, flags):
    classes = {
        name: {"accuracy": accuracy, "pictures": count}
        for name, (accuracy, count) in evaluation.classes.items()
    }
    result = {
        "network": name,
        "data": evaluation.data,
        "split": evaluation.split,
        "pictures": len(evaluation.results.labels),
        "left_out": evaluation.source.left_out,
        "accuracy": evaluation.accuracy,
        "loss": evaluation.loss,
        "classes": classes,
    }
    print_json(result)


def _print(name, evaluation, flags):
    count = len(evaluation.results.labels)
    data = printable(evaluation.data)
    print(f"{printable(name)} on {count:,} images of {data}, {evaluation.split}:")
    print(f"  accuracy {evaluation.accuracy:.2%}")
    smoothing = evaluation.label_smoothing
    with_smoothing = f" (label smoothing {smoothing:g}, as in training)"
    if evaluation.has_loss:
        print(f"  loss {evaluation.loss:.4f}" + (with_smoothing if smoothing else ""))
    worst = [
        (printable(class_name), value)
        for class_name, value in itertools.islice(
            evaluation.classes.items(), flags.worst
        )
    ]
    if worst:
        print("  classes, lowest accuracy first:")
    width = max((len(class_name) for class_name, _ in worst), default=0)
    for class_name, (accuracy, count) in worst:
        print(f"    {class_name.ljust(width)}  {accuracy:7.2%} of {count:,}")
    if evaluation.source.left_out:
        left_out = len(evaluation.source.left_out)
        print(f"  {left_out} images were left out; the warnings above say why.")


COMMAND = Command(
    "evaluate",
    "evaluate NETWORK [FLAGS]",
    """\
Evaluates a network on labeled images.

  keras-nfnets evaluate digits --data=digits
  keras-nfnets evaluate runs/holiday-NFNetL0-1
  keras-nfnets evaluate NFNetF0 --data=imagenet2012 --split=validation

NETWORK is as in 'keras-nfnets predict'. A model written by 'keras-nfnets train'
is evaluated on its validation images by default, with the same results as at
the end of training.
""",
    run,
)
_flag = COMMAND.define
_flag(
    "string",
    "data",
    None,
    "Folder with one subfolder of images per class, 'digits' or a data set of TensorFlow "
    "Datasets; by default the data that the network was trained on.",
)
_flag(
    "string",
    "split",
    None,
    "Split of the data set; by default the validation split of training, or 'test'.",
)
_flag("integer", "batch_size", 64, "Images per batch.", lower_bound=1)
_flag(
    "integer",
    "worst",
    10,
    "Number of classes to list, lowest accuracy first.",
    lower_bound=0,
)
_flag("boolean", "json", False, "Print JSON, with all classes.", excludes=["worst"])
