"""`keras-nfnets benchmark`."""

import importlib.util
import os
import statistics
import time

import keras
import numpy as np

from keras_nfnets.cli.command import Command, UsageError, find_network, progress_bar
from keras_nfnets.deploy import fold
from keras_nfnets.pretrained import architectures

# Label suffixes of the variants to time: TensorFlow compiles with XLA or not, JAX always.
_XLA = {"tensorflow": ("", ", XLA"), "jax": (", XLA",), "torch": ("",)}


def run(flags, arguments):
    if len(arguments) != 1:
        raise UsageError(
            "'benchmark' takes the name of one network. "
            f"Received: {' '.join(arguments) or 'none'}"
        )
    network = find_network(arguments[0])
    size = flags.image_size or network.constructor.test_size
    batches = sorted({1, flags.batch_size})
    model = network.build(input_shape=(size, size, 3), classifier_activation=None)
    makers = _ours(model)
    if flags.peers:
        makers |= _peers(network, size)
    print(
        f"{model.name}, {size} x {size} pixels, {os.cpu_count()} cores, milliseconds:\n"
    )
    columns = [f"batch {n}" for n in batches] + ["images/s"]
    width = max(map(len, makers)) + 2
    print(" " * width + "".join(f"{column:>12}" for column in columns))
    calls = {
        (label, batch): make(batch)
        for label, make in progress_bar(makers.items(), "compiling", "networks")
        for batch in batches
    }
    laps = {key: [] for key in calls}
    # Networks take turns, so that a machine that slows down does so for all of them.
    for _ in progress_bar(range(flags.rounds), "measuring", "rounds"):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            laps[key].append(time.perf_counter() - start)
    for label in makers:
        seconds = [statistics.median(laps[label, batch]) for batch in batches]
        images = max(batch / s for batch, s in zip(batches, seconds))
        cells = [f"{1e3 * s:.1f}" for s in seconds] + [f"{images:.1f}"]
        print(f"{label:<{width}}" + "".join(f"{cell:>12}" for cell in cells))
    print(f"\nMedians of {flags.rounds} calls, in turns; random weights.")
    return 0


def _ours(model):
    """Return `{label: function}`; each function makes the call to time at a batch size."""
    return {
        f"{label}{xla}": _maker(network, bool(xla))
        for label, network in (("not folded", model), ("folded", fold(model)))
        for xla in _XLA[keras.backend.backend()]
    }


def _maker(model, compiled):
    # A separate model with the same weights, since a model is compiled in one way only.
    model = type(model)(model.inputs, model.outputs)
    model.compile(jit_compile=compiled)

    def make(batch):
        x = _noise(batch, *model.input_shape[1:])
        return _ready(lambda: model.predict_on_batch(x))

    return make


def _peers(network, size):
    """Return functions as `_ours` does, for this network in other installed packages."""
    makers = {}
    for peer, of_peer in (("timm", _timm), ("kecam", _kecam)):
        try:
            makers |= of_peer(network, size)
        except (ImportError, LookupError) as error:
            print(f"{peer} is left out: {error}.")
    return makers


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


COMMAND = Command(
    "benchmark",
    "benchmark NAME [FLAGS]",
    """\
Measures the inference time of a network on this machine, for one image and for a batch:
unfolded and folded (keras_nfnets.fold), on TensorFlow each as a graph and compiled by
XLA. NAME is one of 'keras-nfnets list'.

  keras-nfnets benchmark NFNetF0
  keras-nfnets benchmark ECANFNetL0 --image_size=192 --peers
""",
    run,
)
_flag = COMMAND.define
_flag(
    "integer",
    "batch_size",
    8,
    "Images per batch, measured in addition to one.",
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
_flag("integer", "rounds", 7, "Number of measurements of each.", lower_bound=1)
_flag(
    "boolean",
    "peers",
    False,
    "Also measure the same network of timm and kecam, if they are installed.",
)
