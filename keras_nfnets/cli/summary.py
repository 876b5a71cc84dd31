"""`keras-nfnets summary`."""

from keras_nfnets.cli.command import Command, UsageError, check_network, received
from keras_nfnets.cli.quiet import import_keras


def run(flags, arguments):
    if len(arguments) != 1:
        raise UsageError(
            f"'summary' takes the name of one network. {received(arguments)}"
        )
    name = check_network(arguments[0])
    import_keras()
    from keras_nfnets.models.costs import count_flops
    from keras_nfnets.pretrained import find_network, without_memory

    network = find_network(name)
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
Prints a network layer by layer, with shapes, parameters and FLOPs.

  keras-nfnets summary NFNetF0
  keras-nfnets summary NFResNet26 --image_size=64

NAME is a network of 'keras-nfnets list', or its name in timm.
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
