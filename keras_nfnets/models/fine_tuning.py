"""Fine-tuning of a network: another classifier, frozen stages, learning rates by depth."""

import itertools
import re

import keras

from keras_nfnets import checks
from keras_nfnets.models import network
from keras_nfnets.models.feature_pyramid import layers_of_network
from keras_nfnets.training.schedules import ScaledSchedule


def reset_classifier(model, classes, *, activation="softmax", drop_rate=None):
    """Create a network with the layers of another one and a new classifier.

    Args:
        model: `keras.Model`. A network of this package, with or without top.
        classes: int. Number of classes.
        activation: str or callable. Activation of the classifier; None for logits.
        drop_rate: float in [0, 1) or None. Rate of the dropout before the classifier;
            None for that of the network, or 0 if it has no top.

    Returns:
        A model of the same class, not compiled, that shares all layers and weights but
        those of the head. The kernel of the classifier is normal with standard deviation
        0.01, as in a new network.

    Raises:
        ValueError: an argument is invalid, or the model is not a network of this package.

    Example:

    >>> model = keras_nfnets.NFNetTiny(weights="digits")
    >>> reset_classifier(model, classes=2).output.shape
    (None, 2)
    """
    layers = layers_of_network(model, "features")
    if drop_rate is None:
        drop_rate = getattr(layers.get("top_dropout"), "rate", 0.0)
    head = network.Head(True, None, classes, activation, drop_rate).checked()
    x = network.classified(layers["features"].output, head)
    return type(model)(model.input, x, name=model.name)


def freeze(model, until):
    """Freeze the first layers of a network, and unfreeze the others.

    Compile the model afterwards: Keras reads `trainable` in `compile`. Call `enable_lora`
    afterwards, too: `freeze` would unfreeze the kernels that LoRA has frozen.

    Args:
        model: `keras.Model`. A network of this package, with or without top.
        until: str or None. Name of the last layer to freeze: an endpoint (`"stem"`,
            `"stage1"`, ..., `"features"`: all but the classifier) or a block
            (`"stage3_block2"`). None freezes nothing.

    Raises:
        ValueError: the model is not a network of this package, or has no such layer.

    Example:

    >>> model = keras_nfnets.NFNetTiny()
    >>> freeze(model, until="stage2")
    >>> [layer.name for layer in model.layers if layer.trainable and layer.weights]
    ['stage3_block1', 'stage4_block1', 'final_conv', 'predictions']
    """
    layers = layers_of_network(model, "features")
    checks.one_of("until", until, (None, *layers))
    model.trainable = True  # a frozen model would train none of its layers
    is_frozen = until is not None
    for name, layer in layers.items():
        layer.trainable = not is_frozen
        is_frozen = is_frozen and name != until


def layerwise_optimizer(model, create, learning_rate, decay):
    """Create an optimizer whose learning rates decay from the last layers to the first.

    The classifier and the layers after the last block are trained with `learning_rate`,
    each block with `decay` times the rate of the block after it, and the stem with `decay`
    times that of the first block.

    Args:
        model: `keras.Model`. A network of this package, with or without top.
        create: callable from a learning rate, a float or a schedule, to a new
            `keras.optimizers.Optimizer`. It is called once per rate.
        learning_rate: float or `keras.optimizers.schedules.LearningRateSchedule`.
        decay: float in (0, 1].

    Returns:
        A `keras.optimizers.MultiOptimizer`, which Keras has since 3.15. It can be saved
        if the optimizers can.

    Raises:
        ValueError: an argument is invalid, `create` returns one optimizer for several
            rates, or the model is not a network of this package.
        ImportError: Keras is older than 3.15.

    Example:

    >>> model = keras_nfnets.NFNetTiny()
    >>> optimizer = layerwise_optimizer(model, keras.optimizers.SGD, 0.1, decay=0.5)
    >>> model.compile(optimizer, "sparse_categorical_crossentropy")

    Reference: Bao et al. (2021), arXiv 2106.08254, for fine-tuning transformers.
    """
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        raise ImportError(
            "layerwise_optimizer needs keras.optimizers.MultiOptimizer: install Keras 3.15 "
            f"or newer. Received: Keras {keras.__version__}"
        )
    decay = checks.number("decay", decay, exclusive=True)
    if decay > 1:
        raise ValueError(f"`decay` must be at most 1. Received: decay={decay}")
    if not callable(create):
        raise ValueError(
            "`create` must be a function from a learning rate to an optimizer, such as "
            f"the class keras.optimizers.SGD. Received: create={create!r}"
        )
    groups = _by_depth(layers_of_network(model, "features"))
    optimizers = {}
    for distance, names in enumerate(reversed(groups)):
        factor = decay**distance
        if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = ScaledSchedule(learning_rate, factor)
        else:
            rate = checks.number("learning_rate", learning_rate) * factor
        pattern = "|".join(re.escape(name) for name in names)
        # Paths begin with the name scope that the network was built in, if any.
        optimizers[f"(.*/)?({pattern})/.*"] = create(rate)
    if len(set(map(id, optimizers.values()))) < len(optimizers):
        raise ValueError(
            "`create` must return a new optimizer for each learning rate. Received: "
            f"create={create!r}, which returned the same one more than once"
        )
    last = next(iter(optimizers.values()))
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(last, optimizers)
    )


def _by_depth(layers):
    """Return lists of layer names: the stem, each block, and the layers after them."""
    names = list(layers)
    blocks = [i for i, n in enumerate(names) if re.fullmatch(r"stage\d+_block\d+", n)]
    bounds = [0, *blocks, blocks[-1] + 1, len(names)]
    return [names[start:end] for start, end in itertools.pairwise(bounds)]
