"""`keras-nfnets summary`."""

from keras_nfnets.cli.command import Command, UsageError, find_network
from keras_nfnets.models.costs import count_flops
from keras_nfnets.pretrained import without_memory


def run(flags, arguments):
    if len(arguments) != 1:
        raise UsageError(
            f"'summary' takes the name of one network. Received: {arguments or 'none'}"
        )
    network = find_network(arguments[0])
    train_size, test_size = (
        network.constructor.train_size,
        network.constructor.test_size,
    )
    size = flags.image_size or test_size
    with without_memory():
        model = network.build(input_shape=(size, size, 3))
        model.summary()
        flops = count_flops(model)
    print(f"FLOPs (multiply-adds) for one {size} x {size} image: {flops:,}")
    print(f"Published image sizes: train {train_size}, test {test_size}")
    print(
        "Endpoints, by model.get_layer(name).output: "
        + ", ".join(
            layer.name
            for layer in model.layers
            if layer.name in ("stem", "features", "avg_pool", "predictions")
            or layer.name.removeprefix("stage").isdigit()
        )
    )
    return 0


COMMAND = Command(
    "summary",
    "summary NAME [--image_size=N]",
    """\
Prints a network layer by layer, with shapes, parameters and FLOPs. NAME is one of
'keras-nfnets list', such as NFNetF0.
""",
    run,
)
COMMAND.define(
    "integer",
    "image_size",
    None,
    "Image size in pixels for shapes and FLOPs; by default the network's test size.",
    lower_bound=1,
)
