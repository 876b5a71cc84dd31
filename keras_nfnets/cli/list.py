"""`keras-nfnets list`."""

import keras_nfnets
from keras_nfnets.cli.command import Command, UsageError
from keras_nfnets.models.figures import count_flops, variants, without_memory


def run(flags, arguments):
    if arguments:
        raise UsageError(f"'list' takes no arguments. Received: {' '.join(arguments)}")
    print(f"{'network':<14}{'parameters':>14}{'FLOPs':>10}{'train':>8}{'test':>6}")
    for name, variant in variants().items():
        size = variant.test_size
        with without_memory():
            model = getattr(keras_nfnets, name)(input_shape=(size, size, 3))
            parameters, flops = model.count_params(), count_flops(model)
        # Flushed: the large ones take a second each to build.
        print(
            f"{name:<14}{parameters:>14,}{flops / 1e9:>9.2f}G"
            f"{variant.train_size:>8}{size:>6}",
            flush=True,
        )
    return 0


COMMAND = Command(
    "list",
    "list",
    """\
Lists the networks there are, each a function of the same name in keras_nfnets.

parameters   with the 1000 classes of ImageNet
FLOPs        multiply-adds for one picture at the test size, in billions
train, test  the pixels a side the network was trained and tested at; any size does
""",
    run,
)
