"""From what a user gives as `weights` to weights in a network."""

import re
import typing

from keras_nfnets import checks
from keras_nfnets.pretrained import deepmind, keras_files, timm
from keras_nfnets.pretrained.architectures import (
    NETWORKS,
    Network,
    find_network,
    without_memory,
)
from keras_nfnets.pretrained.assign import assign, existing_file
from keras_nfnets.pretrained.checkpoints import (
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
)

# By the ending of the file: modules with `read(path)` and `match(model, arrays)`.
_FORMATS = {
    ".keras": keras_files,
    ".h5": keras_files,
    ".safetensors": timm,
    ".npz": deepmind,
}


class Source(typing.NamedTuple):
    """Weights that fit a network, as far as can be told before they are read.

    Attributes:
        name: what the user gave: a checkpoint's name or a path.
        checkpoint: the `Checkpoint`, or None for a file.

    Raises:
        OSError, ValueError: in `path()`, a file that cannot be had.

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
    """What `weights` stands for, for a network of that architecture.

    Args:
        weights: `"imagenet"`, the name of a checkpoint or the path of a file.
        architecture: an `Architecture`.

    Returns:
        A `Source`.

    Raises:
        ValueError: it is neither `"imagenet"` nor the name of a checkpoint nor the path
            of a file, or is published for another network, or not at all.

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
                f"settings. Received: weights='imagenet' for {_describe(architecture)}. "
                "Published are, by the names of pretrained.create:\n"
                + "\n".join(f"  {c.network}: {c.name}" for c in checkpoints)
            )
        return Source(trained[0].name, trained[0])
    checkpoint = find_checkpoint(weights)
    if checkpoint is not None and not is_weight_file(weights):
        if checkpoint not in ours:
            raise ValueError(
                f"{weights!r} is a checkpoint of another network: "
                f"pretrained.create({checkpoint.network!r}, weights={weights!r}) "
                f"makes it. Received: {_describe(architecture)}"
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
    """The checkpoints of an architecture.

    Args:
        architecture: an `Architecture`.

    Returns:
        A list of `Checkpoint`, the most accurate first.

    Example:

    >>> [c.name for c in published(keras_nfnets.NFNetL0.architecture())]
    ['nfnet_l0.ra2_in1k']
    """
    found = [
        checkpoint
        for checkpoint in list_checkpoints()
        if NETWORKS[checkpoint.network].architecture == architecture
    ]
    return sorted(found, key=lambda checkpoint: -checkpoint.top1)


def load(model, source, progress=iter):
    """Loads a `Source` into a network, all of it or nothing.

    Args:
        model: a network of this package.
        source: of `find`.
        progress: a function that wraps the variables while they are set, such as a bar.

    Raises:
        ValueError: the file is not whole, or of another network; the message lists
            what differs. Nothing in the model has changed.
        OSError: it could not be fetched.

    Example:

    >>> model = keras_nfnets.NFNetTiny()
    >>> load(model, find("digits", keras_nfnets.NFNetTiny.architecture()))
    """
    path = source.path()
    reader = _reader(path)
    assign(*reader.match(model, reader.read(path)), source.name, progress)


def create(name, /, **options):
    """Creates a network by its name in timm's spelling, or in ours.

    Args:
        name: `"eca_nfnet_l1"`, `"nf_resnet50"`, `"NFNetF0"`, ... in any case. timm's
            `dm_nfnet_f0` to `f6` are `NFNetF0` to `F6`. With the tag of a checkpoint,
            as `"eca_nfnet_l1.ra2_in1k"`, the network comes with those weights.
        **options: of the constructor: `weights`, `include_top`, `classes`, ...

    Returns:
        An `AGCModel`.

    Raises:
        ValueError: there is no such network; or as the constructor.
        OSError: weights could not be fetched.

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
    """The network that a file holds the weights of."""

    name: str
    network: Network
    options: dict


def recognize(path):
    """Tells of which network of the zoo the weights in a file are.

    Args:
        path: of a file of any of the kinds that `weights` takes.

    Returns:
        `Recognized`: the network's name, the network, and what to build it with
        (`classes`, or `include_top=False` if the file has no classifier).

    Raises:
        ValueError: the file is not whole, or of no network of the zoo.

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
        f"The weights in {path} are of no network here. Received: {len(arrays)} arrays, "
        f"{len(blocks)} residual blocks; networks with as many blocks: "
        f"{', '.join(tried) or 'none'}"
    )


# In Keras's, timm's and Haiku's names.
_BLOCK = re.compile(r"stage\d+_block\d+|stages\.\d+\.\d+|nf_(res_)?block(_\d+)?(?=/|$)")


def _fits(variables, arrays):
    """The `classes` of arrays that are this network's, or None if they are not."""
    head = {key for key in variables if key.startswith("predictions/")}
    if variables.keys() - head != arrays.keys() - head:
        return None
    for key in variables.keys() - head:
        if tuple(variables[key].shape) != getattr(arrays[key], "shape", None):
            return None
    # In an order of their own: that of a set differs from one process to the next.
    given = [getattr(arrays[key], "shape", ()) for key in sorted(head & arrays.keys())]
    if not given:
        return {"include_top": False}
    # The bias and the kernel both end in the classes.
    return {"classes": int(given[0][-1])} if all(given) else None


def is_weight_file(name):
    """Whether there is a file of that name, of a kind that `weights` takes.

    The authors' files have names that are also names of checkpoints.

    Args:
        name: a string or a path.

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
            f"A weight file ends in {', '.join(_FORMATS)}. Received: {path}"
        )
    return reader


def _describe(architecture):
    settings = ", ".join(f"{k}={v!r}" for k, v in architecture.settings.items())
    return f"{architecture.builder}({settings})"
