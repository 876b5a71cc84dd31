"""Inference time of a network on this machine, next to the same network of peers."""

import importlib.util
import os
import statistics
import time
import typing

import keras
import numpy as np

from keras_nfnets.deploy import fold, inference_function
from keras_nfnets.pretrained import architectures, find_network

# Label suffixes of the variants to time: TensorFlow compiles with XLA or not, JAX always.
_XLA = {"tensorflow": ("", ", XLA"), "jax": (", XLA",), "torch": ("",)}


class InferenceTimes(typing.NamedTuple):
    """Inference times of a network.

    Attributes:
        image_size: int. In pixels.
        seconds: dict `{variant: {batch size: seconds}}`, the medians of all rounds.
        missing: dict `{peer: reason}` of the peers that could not be measured.

    Example:

    >>> times = InferenceTimes(32, {"folded": {1: 0.01, 8: 0.04}}, {})
    >>> times.images_per_second("folded")
    200.0
    """

    image_size: int
    seconds: dict
    missing: dict

    def images_per_second(self, variant):
        """Return the throughput at the best batch size."""
        return max(batch / s for batch, s in self.seconds[variant].items())


def inference_times(
    name, batch_sizes=(1, 8), image_size=None, rounds=7, peers=False, progress=iter
):
    """Measure the inference time of a network with random weights.

    It is measured by `inference_function`, and by `predict_on_batch` folded and not
    folded, on TensorFlow each as a graph and compiled by XLA. Variants take turns, so
    that a machine that slows down does so for all.

    Args:
        name: str. Name of a network, see `pretrained.find_network`.
        batch_sizes: sequence of int.
        image_size: int or None. In pixels; None for the test size of the network.
        rounds: int. Number of measurements of each.
        peers: bool. Whether to measure the same network of timm and kecam, where they
            are installed.
        progress: callable that wraps the variants to compile, and then the rounds, such
            as `tqdm.tqdm`.

    Returns:
        `InferenceTimes`.

    Raises:
        ValueError: there is no such network.

    Example:

    >>> times = inference_times("NFNetTest", [1], image_size=32, rounds=1)
    >>> times.seconds["inference_function"][1] < 10
    True
    """
    network = find_network(name)
    size = image_size or network.constructor.test_size
    model = network.build(input_shape=(size, size, 3), classifier_activation=None)
    makers, missing = _ours(model), {}
    if peers:
        of_peers, missing = _peers(network, size)
        makers |= of_peers
    calls = {
        (label, batch): make(batch)
        for label, make in progress(list(makers.items()))  # compiling takes longest
        for batch in batch_sizes
    }
    laps = {key: [] for key in calls}
    for _ in progress(range(rounds)):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            laps[key].append(time.perf_counter() - start)
    seconds = {
        label: {batch: statistics.median(laps[label, batch]) for batch in batch_sizes}
        for label in makers
    }
    return InferenceTimes(size, seconds, missing)


def _ours(model):
    """Return `{label: function}`; each function makes the call to time at a batch size."""
    folded = fold(model)
    makers = {
        f"{label}{xla}": _maker(network, bool(xla))
        for label, network in (("not folded", model), ("folded", folded))
        for xla in _XLA[keras.backend.backend()]
    }
    runtimes = {"inference_function": None, "inference_function, Keras": "keras"}
    return makers | {
        label: _function_maker(folded, runtime) for label, runtime in runtimes.items()
    }


def _function_maker(model, runtime):
    predict = inference_function(model, runtime)

    def make(batch):
        x = _noise(batch, *model.input_shape[1:])
        return _ready(lambda: keras.ops.convert_to_numpy(predict(x)))

    return make


def _maker(model, compiled):
    # A separate model with the same weights, since a model is compiled in one way only.
    model = type(model)(model.inputs, model.outputs)
    model.compile(jit_compile=compiled)

    def make(batch):
        x = _noise(batch, *model.input_shape[1:])
        return _ready(lambda: model.predict_on_batch(x))

    return make


def _peers(network, size):
    """Return functions as `_ours` does for other packages, and why some are missing."""
    makers, missing = {}, {}
    for peer, of_peer in (("timm", _timm), ("kecam", _kecam)):
        try:
            makers |= of_peer(network, size)
        except (ImportError, LookupError) as error:
            missing[peer] = str(error)
    return makers, missing


def _timm(network, size):
    import timm
    import torch

    ours = network.architecture
    names = [
        name  # timm's names are in lower case
        for name, known in architectures.NETWORKS.items()
        if name.islower() and known.architecture == ours
    ]
    if not names:
        raise LookupError("it has no such network")

    def maker(layout):
        def make(batch):
            model = timm.create_model(names[0]).eval().to(memory_format=layout)
            x = torch.from_numpy(_noise(batch, 3, size, size))
            x = x.contiguous(memory_format=layout)

            def call():
                with torch.inference_mode():
                    model(x)

            return _ready(call)

        return make

    label = f"timm {timm.__version__} {names[0]}"
    return {
        f"{label}, NCHW": maker(torch.contiguous_format),
        f"{label}, channels_last": maker(torch.channels_last),
    }


def _kecam(network, size):
    if importlib.util.find_spec("keras_cv_attention_models") is None:
        raise ImportError("No module named 'keras_cv_attention_models'")
    if os.environ.get("TF_USE_LEGACY_KERAS") != "1":
        raise ImportError("it needs TF_USE_LEGACY_KERAS=1 in the environment")
    import keras_cv_attention_models as kecam
    from keras_cv_attention_models import nfnets

    name = network.constructor.__name__.replace("ECANFNet", "ECA_NFNet")
    build = getattr(nfnets, name, None)
    if build is None:
        raise LookupError("it has no such network")
    model = build((size, size, 3), pretrained=None, classifier_activation=None)
    label = f"kecam {kecam.__version__} {name}"
    return {label: _maker(model, False), f"{label}, XLA": _maker(model, True)}


def _noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def _ready(call):
    """Warm up a call and return it."""
    for _ in range(2):
        call()
    return call
