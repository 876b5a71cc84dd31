"""`keras-nfnets benchmark`."""

import os

from keras_nfnets.cli.command import (
    Command,
    UsageError,
    check_network,
    progress_bar,
    received,
)
from keras_nfnets.cli.quiet import import_keras
from keras_nfnets.printing import printable


def run(flags, arguments):
    if len(arguments) != 1:
        raise UsageError(
            f"'benchmark' takes the name of one network. {received(arguments)}"
        )
    network = check_network(arguments[0])
    import_keras()
    from keras_nfnets import runs

    batches = sorted({1, flags.batch_size})
    times = runs.inference_times(
        network,
        batches,
        flags.image_size,
        flags.rounds,
        flags.peers,
        progress=lambda steps: progress_bar(steps, "measuring", "steps"),
    )
    for peer, reason in times.missing.items():
        print(f"{peer} was not measured: {printable(reason)}.")
    size = times.image_size
    print(f"{network}, {size} x {size} pixels, {os.cpu_count()} cores, milliseconds:\n")
    columns = [f"batch {n}" for n in batches] + ["images/s"]
    width = max(map(len, times.seconds)) + 2
    print(" " * width + "".join(f"{column:>12}" for column in columns))
    for label, seconds in times.seconds.items():
        cells = [f"{1e3 * s:.1f}" for s in seconds.values()]
        cells.append(f"{times.images_per_second(label):.1f}")
        print(f"{label:<{width}}" + "".join(f"{cell:>12}" for cell in cells))
    print(f"\nMedians of {flags.rounds} rounds; each round times every row once.")
    print("The weights are random.")
    return 0


COMMAND = Command(
    "benchmark",
    "benchmark NAME [FLAGS]",
    """\
Measures the inference time of a network on this machine.

  keras-nfnets benchmark NFNetF0
  keras-nfnets benchmark ECANFNetL0 --image_size=192 --peers

NAME is a network of 'keras-nfnets list'. The command times one image and one
batch of images: with the network as built, with the folded network
(keras_nfnets.fold) and with keras_nfnets.inference_function. On TensorFlow,
the first two are timed both as a graph and compiled by XLA.
""",
    run,
)
_flag = COMMAND.define
_flag(
    "integer",
    "batch_size",
    8,
    "Images per batch; a single image is measured too.",
    lower_bound=1,
)
_flag(
    "integer",
    "image_size",
    None,
    "Image size in pixels; by default the network's test size.",
    lower_bound=32,
    upper_bound=4096,
)
_flag(
    "integer",
    "rounds",
    7,
    "Number of measurements per row of the table.",
    lower_bound=1,
)
_flag(
    "boolean",
    "peers",
    False,
    "Also measure the same network in timm and kecam, if they are installed.",
)
