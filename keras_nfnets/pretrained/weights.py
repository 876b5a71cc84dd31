"""Finding and loading the weights that a user names by the argument `weights`."""

import re
import typing

import keras

from keras_nfnets import checks
from keras_nfnets.pretrained import deepmind, keras_files, timm
from keras_nfnets.pretrained.architectures import (
    NETWORKS,
    Network,
    find_network,
    without_memory,
)
from keras_nfnets.pretrained.assign import FIRST_KERNEL, assign, existing_file
from keras_nfnets.pretrained.checkpoints import (
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
)

# Modules with `read(path)` and `match(model, arrays)`, by file extension.
_FORMATS = {
    ".keras": keras_files,
    ".h5": keras_files,
    ".safetensors": timm,
    ".npz": deepmind,
}


class Source(typing.NamedTuple):
    """Weights for a network, located but not read yet.

    Attributes:
        name: str. Name of a checkpoint or path, as the user gave it.
        checkpoint: the `Checkpoint`, or None for a file.

    Raises:
        OSError, ValueError: in `path()`, the file is not available.

    Example:

    >>> find("digits", keras_nfnets.NFNetTiny.architecture()).path().name
    'digits.weights.h5'
    """

    name: str
    checkpoint: Checkpoint | None

    def path(self):
        if self.checkpoint is None:
            return existing_file(self.name)
        return self.checkpoint.fetch(self.name)


def find(weights, architecture):
    """Find the weights that `weights` names, for a network of an architecture.

    Args:
        weights: str or path. `"imagenet"`, the name of a checkpoint or the path of a
            file.
        architecture: an `Architecture`.

    Returns:
        A `Source`.

    Raises:
        ValueError: `weights` is neither `"imagenet"` nor the name of a checkpoint nor
            the path of a file; or the checkpoint belongs to another network; or no
            ImageNet weights of this network are published.

    Example:

    >>> find("imagenet", keras_nfnets.NFNetF0.architecture()).name
    'dm_nfnet_f0.dm_in1k'
    """
    checkpoints = list_checkpoints()
    ours = published(architecture)
    if weights == "imagenet":
        trained = [c for c in ours if c.class_names is None]
        if not trained:
            raise ValueError(
                "There are no published ImageNet weights of this network with these "
                "settings. Published weights, by the names of pretrained.create:\n"
                + "\n".join(f"  {c.network}: {c.name}" for c in checkpoints)
                + f"\nReceived: weights='imagenet' for {_describe(architecture)}"
            )
        return Source(trained[0].name, trained[0])
    checkpoint = find_checkpoint(weights)
    if checkpoint is not None and not is_weight_file(weights):
        if checkpoint not in ours:
            raise ValueError(
                f"{weights!r} is a checkpoint of another network. Create that by "
                f"pretrained.create({checkpoint.network!r}, weights={weights!r}). "
                f"Received: {_describe(architecture)}"
            )
        return Source(weights, checkpoint)
    try:
        existing_file(weights)
    except ValueError as error:
        names = [name for checkpoint in checkpoints for name in checkpoint.names]
        suggestion = checks.perhaps(weights, ["imagenet", *names]) or "."
        raise ValueError(
            "`weights` must be None, 'imagenet', the name of a published checkpoint "
            "(keras-nfnets list --weights) or the path of a .keras, .weights.h5, "
            f".safetensors or .npz file. Received: weights={str(weights)!r}, where "
            f"there is no file{suggestion}"
        ) from error
    return Source(str(weights), None)


def published(architecture):
    """List the checkpoints of an architecture.

    Args:
        architecture: an `Architecture`.

    Returns:
        A list of `Checkpoint`, the most accurate first, those of unknown accuracy last.

    Example:

    >>> [c.name for c in published(keras_nfnets.NFNetL0.architecture())]
    ['nfnet_l0.ra2_in1k']
    """
    found = [
        checkpoint
        for checkpoint in list_checkpoints()
        if NETWORKS[checkpoint.network].architecture == architecture
    ]
    return sorted(found, key=lambda checkpoint: -(checkpoint.top1 or 0.0))


def load(model, source, progress=iter):
    """Load a `Source` into a network, all of it or nothing.

    If the network has other than three input channels and the weights are those of an
    RGB network, the kernel of its first convolution is adapted as by timm's `in_chans`:
    for one channel (grayscale), the sum over the three input channels; for n channels,
    the three input channels, repeated and multiplied by `3 / n`. The rule applies to the
    kernel as it is stored. Since weight-standardized layers remove its mean and scale
    before use, the network of a grayscale image does not compute exactly what the RGB
    network computes of that image in three equal channels; it is a starting point for
    training.

    Args:
        model: a network of this package.
        source: a `Source`, as returned by `find`.
        progress: callable that wraps the list of variables to assign, such as a
            progress bar.

    Raises:
        ValueError: the file is incomplete, or its weights are of another network; the
            message lists the differences. The model is then unchanged.
        OSError: the file could not be downloaded.

    Example:

    >>> model = keras_nfnets.NFNetTiny()
    >>> load(model, find("digits", keras_nfnets.NFNetTiny.architecture()))

    Reference: `adapt_input_conv` of timm 1.0, models/_manipulate.py.
    """
    path = source.path()
    reader = _reader(path)
    assign(*reader.match(model, reader.read(path)), source.name, progress)


def create(name, /, **options):
    """Create a network by its name in timm's spelling or in ours.

    Args:
        name: str. `"eca_nfnet_l1"`, `"nf_resnet50"`, `"NFNetF0"`, ...; case is ignored.
            timm's `dm_nfnet_f0` to `f6` are `NFNetF0` to `F6`. With the tag of a
            checkpoint, as in `"eca_nfnet_l1.ra2_in1k"`, the network has those weights.
        **options: arguments of the constructor: `weights`, `include_top`, `classes`,
            ...

    Returns:
        An `AGCModel`.

    Raises:
        ValueError: there is no such network, or the constructor raises it.
        OSError: the weights could not be downloaded.

    Example:

    >>> model = create("test_nfnet", classes=10, input_shape=(64, 64, 3))
    >>> model.output_shape
    (None, 10)
    """
    checkpoint = find_checkpoint(name)
    if checkpoint is not None:
        name, options = checkpoint.network, {"weights": name, **options}
    return find_network(name).build(**options)


class Recognized(typing.NamedTuple):
    """Network whose weights a file contains."""

    name: str
    network: Network
    options: dict


def recognize(path):
    """Find out which network of the zoo the weights in a file belong to.

    Args:
        path: str or path. Path of a file in any of the formats that `weights` accepts.

    Returns:
        `Recognized`: the network's name, the network, and the options to build it with
        (`classes`, or `include_top=False` if the file has no classifier; and
        `input_shape` if its network has other than three input channels).

    Raises:
        ValueError: the file is incomplete, or belongs to no network of the zoo.

    Example:

    >>> keras_nfnets.NFNetTest(classes=3).save_weights("three.weights.h5")
    >>> recognized = recognize("three.weights.h5")
    >>> recognized.name, recognized.options
    ('NFNetTest', {'classes': 3})
    """
    path = existing_file(path)
    reader = _reader(path)
    arrays = reader.read(path)
    matches = [_BLOCK.search(str(name)) for name in arrays]
    blocks = {match[0] for match in matches if match}
    tried = []
    for name, network in NETWORKS.items():
        if sum(network.architecture.settings["depths"]) != len(blocks):
            continue
        tried.append(name)
        with without_memory():
            model = network.build()
            fits = _fits(*reader.match(model, arrays))
        if fits is not None:
            return Recognized(name, network, fits)
    raise ValueError(
        f"The weights in {path} match no network of this package. Networks with as many "
        f"residual blocks: {', '.join(tried) or 'none'}. "
        f"Received: {len(arrays)} arrays, {len(blocks)} residual blocks"
    )


# Residual blocks in the names of Keras, timm and Haiku.
_BLOCK = re.compile(r"stage\d+_block\d+|stages\.\d+\.\d+|nf_(res_)?block(_\d+)?(?=/|$)")


def _fits(variables, arrays):
    """Return the constructor options with which these arrays fit, or None."""
    head = {key for key in variables if key.startswith("predictions/")}
    if variables.keys() - head != arrays.keys() - head:
        return None
    options = {}
    for key in variables.keys() - head:
        ours, theirs = tuple(variables[key].shape), getattr(arrays[key], "shape", None)
        if key in FIRST_KERNEL and theirs is not None and len(theirs) == 4:
            # Its input channels, the third axis, are those of the images.
            channels = int(theirs[2])
            ours = (*ours[:2], max(channels, 1), ours[3])
            if channels != 3:
                options["input_shape"] = _any_size(channels)
        if ours != theirs:
            return None
    given = {key: getattr(arrays[key], "shape", ()) for key in head & arrays.keys()}
    if not given:
        return {"include_top": False, **options}
    [kernel] = [key for key in head if len(variables[key].shape) == 2]
    # Its last axis is the classes. Those that it has no values for are not believed.
    shape = given.get(kernel, ())
    if shape[:-1] != tuple(variables[kernel].shape[:-1]) or not all(shape):
        return None
    return {"classes": int(shape[-1]), **options}


def _any_size(channels):
    """Return the `input_shape` of images of any size."""
    if keras.config.image_data_format() == "channels_first":
        return (channels, None, None)
    return (None, None, channels)


def is_weight_file(name):
    """Whether `name` is an existing file in a format that `weights` accepts.

    The authors' files have names that are also names of checkpoints.

    Args:
        name: str or path.

    Returns:
        A bool.

    Example:

    >>> is_weight_file("F0_haiku.npz")  # unless it is in this folder
    False
    """
    try:
        return existing_file(name).suffix.lower() in _FORMATS
    except ValueError:
        return False


def _reader(path):
    reader = _FORMATS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"A weight file must end in {', '.join(_FORMATS)}. Received: {path}"
        )
    return reader


def _describe(architecture):
    settings = ", ".join(f"{k}={v!r}" for k, v in architecture.settings.items())
    return f"{architecture.builder}({settings})"
