"""Names and figures that the command needs before it imports Keras.

Importing Keras takes seconds; what this module has suffices for the command's help, its
lists and its errors. Tests compare it with the networks, checkpoints and functions.
"""

import csv
import functools
import json
import pathlib
import typing

from keras_nfnets import checks

# Values of the arguments `strategy`, `format` and `quantize`, and of dtype policies.
STRATEGIES = ("auto", "none", "mirrored", "multi_worker", "tpu")
FORMATS = ("saved_model", "onnx", "litert", "openvino")
QUANTIZATIONS = ("dynamic", "int8", "float16")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")

# `python -m keras_nfnets.models.costs` writes it: building all networks takes long.
NETWORKS = pathlib.Path(__file__).parent / "models" / "costs.csv"
# `python -m keras_nfnets.experiments` writes it from the experiments.
CLAIMS = pathlib.Path(__file__).parent / "experiments" / "claims.json"
_CHECKPOINTS = pathlib.Path(__file__).parent / "pretrained" / "checkpoints.json"


class Network(typing.NamedTuple):
    """Names and figures of a network, for 1000 classes and images of the test size.

    Attributes:
        name: str. Name of its constructor.
        timm: tuple of str. Names in timm.
        parameters, flops: int. See `models.costs`.
        train_size, test_size: int. Side lengths of the published images, in pixels.
    """

    name: str
    timm: tuple
    parameters: int
    flops: int
    train_size: int
    test_size: int


@functools.cache
def networks():
    """Return `{name: Network}` of all networks, family by family."""
    with open(NETWORKS, newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["name"]: Network(
            row["name"],
            tuple(row["timm"].split()),
            **{name: int(row[name]) for name in Network._fields[2:]},
        )
        for row in rows
    }


def network_names():
    """List the names of all networks: ours, then timm's."""
    known = networks()
    return [*known, *(name for network in known.values() for name in network.timm)]


def known_network(name, known):
    """Return the one of the `known` names that equals `name` except for case.

    Raises:
        ValueError: there is none; the message suggests similar names.
    """
    found = {other.lower(): other for other in known}.get(str(name).lower())
    if found is None:
        suggestion = checks.perhaps(name, known) or "."
        raise ValueError(
            f"There is no network {name!r}{suggestion} 'keras-nfnets list' shows the names "
            f"of all networks; timm's names are accepted too. Received: {name!r}"
        )
    return found


def claims():
    """Return what is published of all experiments, in the order of the list.

    Returns:
        `{name: {"claim": str, "verdict": str, "scale": str, "minutes": int}}`.
    """
    return json.loads(CLAIMS.read_text("utf-8"))


def check_experiment(name):
    """Check that an experiment exists.

    Raises:
        ValueError: it does not; the message suggests similar names.
    """
    known = claims()
    if name not in known:
        suggestion = checks.perhaps(name, known) or "."
        raise ValueError(
            f"There is no experiment {name!r}{suggestion} The experiments are "
            f"{', '.join(known)}. Received: {name!r}"
        )


def checkpoints():
    """Return the entries of checkpoints.json, dicts of what `Checkpoint` has."""
    return json.loads(_CHECKPOINTS.read_text("utf-8"))
