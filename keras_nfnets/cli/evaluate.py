"""`keras-nfnets evaluate`."""

import json

import numpy as np

from keras_nfnets import data
from keras_nfnets.cli import held_out, networks
from keras_nfnets.cli.command import Command, Failure, UsageError, explained


def run(flags, arguments):
    if len(arguments) != 1:
        raise UsageError(
            f"'evaluate' takes one network. Received: {' '.join(arguments) or 'none'}"
        )
    [name] = arguments
    try:
        network = networks.find(name)
    except (ValueError, OSError) as error:
        raise Failure(str(error)) from error
    # For a network that `train` wrote, its metadata name the data that it was trained on.
    about = network.about
    where, split = flags.data or about.get("data"), flags.split
    if where is None:
        raise UsageError(
            f"What {name} was trained on is not known; --data says what to evaluate it on"
        )
    if split is None:
        split = about.get("split", "test") if where == about.get("data") else "test"
    try:
        source = data.find(where)
        source.size_of(split)
        new_labels = _new_labels(source, network)
        with explained(source):
            results = held_out.results_of(
                network.model.predict_on_batch,
                source,
                split,
                {"channels": 3, **network.preparation},
                flags.batch_size,
            )
    except (ValueError, OSError) as error:
        raise Failure(str(error)) from error
    results = results._replace(labels=new_labels[results.labels])
    smoothing = about.get("label_smoothing", 0.0)
    accuracy, counts = results.accuracy_by_class()
    names = network.class_names or [str(i) for i in range(len(counts))]
    if flags.json:
        print(
            json.dumps(
                {
                    "network": name,
                    "data": where,
                    "split": split,
                    "pictures": len(results.labels),
                    "left_out": source.left_out,
                    "accuracy": results.accuracy,
                    "loss": results.loss(smoothing),
                    "classes": {
                        names[i]: {"accuracy": accuracy[i], "pictures": int(counts[i])}
                        for i in np.flatnonzero(counts)
                    },
                },
                indent=2,
            )
        )
        return 0
    print(f"{name} on {len(results.labels):,} pictures of {where}, {split}:")
    print(f"  accuracy {results.accuracy:.2%}")
    with_smoothing = f" (labels smoothed by {smoothing:g}, as in training)"
    print(
        f"  loss {results.loss(smoothing):.4f}" + (with_smoothing if smoothing else "")
    )
    there = np.flatnonzero(counts)
    worst = there[np.argsort(accuracy[there], kind="stable")][: flags.worst]
    if len(worst):
        print("  classes, the worst first:")
    width = max((len(names[i]) for i in worst), default=0)
    for i in worst:
        print(f"    {names[i].ljust(width)}  {accuracy[i]:7.2%} of {counts[i]:,}")
    if source.left_out:
        print(f"  {len(source.left_out)} pictures were left out, as said above.")
    return 0


def _new_labels(source, network):
    """Return the model's class index for each class of the data set."""
    known = network.class_names
    if known is None or list(known) == list(source.class_names):
        outputs = network.model.output_shape[-1]
        if len(source.class_names) > outputs:
            raise ValueError(
                f"The pictures are of {len(source.class_names)} classes, the network "
                f"knows {outputs}"
            )
        return np.arange(len(source.class_names))
    unknown = [name for name in source.class_names if name not in known]
    if unknown:
        raise ValueError(
            f"The network does not know the classes {', '.join(unknown[:10])}; it knows "
            f"{', '.join(known[:10])}{', ...' if len(known) > 10 else ''}"
        )
    return np.array([known.index(name) for name in source.class_names])


COMMAND = Command(
    "evaluate",
    "evaluate NETWORK [FLAGS]",
    """\
Says how many pictures a network tells right. NETWORK is as in 'keras-nfnets predict'.
One that 'keras-nfnets train' has written is evaluated on the pictures that were held
out then, and gives the same numbers.

  keras-nfnets evaluate runs/holiday-NFNetL0-1/model.keras
  keras-nfnets evaluate NFNetF0 --data=imagenet2012 --split=validation
""",
    run,
)
_flag = COMMAND.define
_flag(
    "string",
    "data",
    None,
    "A folder of class folders, 'digits' or a set of TensorFlow Datasets; by default what "
    "the network was trained on.",
)
_flag("string", "split", None, "The part of it, 'test' unless it was another one.")
_flag("integer", "batch_size", 64, "Pictures at a time.", lower_bound=1)
_flag("integer", "worst", 10, "How many classes to name.", lower_bound=0)
_flag("boolean", "json", False, "Print JSON, with all classes, in place of text.")
