"""Signal propagation at initialization."""

import functools

import keras
import numpy as np

from keras_nfnets import models, plotting
from keras_nfnets.backend import keras_internals
from keras_nfnets.experiments import images
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.results import (
    distinct,
    markdown,
    median,
    select,
    with_spread,
)
from keras_nfnets.layers import NFBlock, WSConv2D

# The default of `NFResNet`.
_ALPHA = 0.2

_STATISTICS = ("avg_sq_mean", "avg_var", "res_avg_var")
_BATCH_NORM, _PLAIN = "batch norm", "no normalization"
_NOT_STANDARDIZED, _STANDARDIZED = "NF, kernels not standardized", "NF-ResNet"


def _network(name, **common):
    if name in (_BATCH_NORM, _PLAIN):
        normalization = "batch" if name == _BATCH_NORM else None
        return models.PreActResNet(**common, normalization=normalization)
    model = models.NFResNet(**common)
    for block in model.layers:
        if isinstance(block, NFBlock):
            # At its initial zero, the residual branch would not contribute to the signal.
            block.skip_gain.assign(1.0)
    if name == _NOT_STANDARDIZED:
        for layer in keras_internals.layers_of(model):
            if isinstance(layer, WSConv2D):
                layer.precise_kernel = functools.partial(_unstandardized_kernel, layer)
    return model


def _unstandardized_kernel(layer, *_):
    """Replace `WSConv2D.precise_kernel` by the kernel as drawn, of variance 1 / fan-in."""
    return keras.ops.convert_to_tensor(layer.kernel)


def _plan(settings, rows):
    return [
        {"network": network, "seed": seed}
        for seed in range(settings["seeds"])
        for network in (_BATCH_NORM, _PLAIN, _NOT_STANDARDIZED, _STANDARDIZED)
    ]


def _measure(settings, cell):
    keras.utils.set_random_seed(cell["seed"])
    dataset = images.load(settings)
    model = _network(
        cell["network"],
        depths=settings["depths"],
        width=settings["width"],
        input_shape=dataset.input_shape,
        include_top=False,
    )
    x, _ = dataset.test_images(settings["pictures"])
    # The running statistics of an untrained network are meaningless.
    signal = models.signal_propagation(
        model, x, training=cell["network"] == _BATCH_NORM
    )
    return [
        {
            "block": block,
            **{
                name: float(f"{value:.6g}")
                for name, value in zip(_STATISTICS, values)
                if not np.isnan(value)
            },
        }
        for block, values in enumerate(
            zip(
                signal["avg_sq_mean"],
                signal["avg_var"],
                # The stem has no residual branch.
                [np.nan, *signal["res_avg_var"]],
            )
        )
    ]


def _medians(rows, network, name):
    runs = select(rows, network=network)
    values = [median(select(runs, block=b), name) for b in distinct(runs, "block")]
    return np.array(values if name != "res_avg_var" else values[1:])


def _draw(figure, rows, settings):
    signals = {
        network: {name: _medians(rows, network, name) for name in _STATISTICS}
        for network in distinct(rows, "network")
    }
    models.draw_signal_propagation(figure, signals)
    for axes in figure.axes:
        axes.get_legend().remove()
        plotting.label_lines(axes)


def _shift(rows, network):
    """Return the largest squared mean after a block, relative to the variance there."""
    return float(
        np.max(
            _medians(rows, network, "avg_sq_mean")[1:]
            / _medians(rows, network, "avg_var")[1:]
        )
    )


def _conclude(rows, settings):
    shift = {network: _shift(rows, network) for network in distinct(rows, "network")}
    growth = {
        network: float(
            _medians(rows, network, "avg_var")[-1]
            / _medians(rows, network, "avg_var")[1]
        )
        for network in shift
    }
    residual = _medians(rows, _STANDARDIZED, "res_avg_var")
    first, last = (_medians(rows, _NOT_STANDARDIZED, "avg_sq_mean")[i] for i in (1, -1))
    # The predicted variance is reset to one in each stage.
    predicted = [
        1 + (block + 1) * _ALPHA**2
        for depth in settings["depths"]
        for block in range(depth)
    ]
    error = _medians(rows, _STANDARDIZED, "avg_var")[1:] / predicted - 1
    return [
        Finding(
            "Without standardized kernels the channel means of a ReLU network shift: the "
            f"average squared mean is {first:.2f} after the first block and {last:.2f} "
            f"after the last, up to {shift[_NOT_STANDARDIZED]:.1f} times the variance.",
            bool(last > first and shift[_NOT_STANDARDIZED] > 0.5),
        ),
        Finding(
            f"In the NF-ResNet it is at most {shift[_STANDARDIZED]:.2f} times the "
            "variance.",
            shift[_STANDARDIZED] < 0.3,
        ),
        Finding(
            "The variance of the NF-ResNet differs from the prediction of alpha and beta "
            f"by {error.min():+.0%} to {error.max():+.0%}; that of its residual branches is "
            f"{residual.min():.2f} to {residual.max():.2f}, and should be one.",
            bool(np.max(np.abs(error)) < 0.25),
        ),
        Finding(
            "From the first block to the last the variance grows by a factor of "
            f"{growth[_PLAIN]:.2g} without any normalization, {growth[_BATCH_NORM]:.2g} with "
            f"batch normalization and {growth[_STANDARDIZED]:.2g} in the NF-ResNet.",
            None,
        ),
    ]


def _tables(rows, settings):
    blocks = distinct(rows, "block")
    some = [
        b for b in blocks if b in (1, blocks[-1]) or b % max(1, len(blocks) // 6) == 0
    ]
    return {
        f"{name} after blocks: median (minimum to maximum) of the seeds.": markdown(
            ["network", *some],
            [
                [
                    network,
                    *(
                        with_spread(
                            select(rows, network=network, block=block),
                            name,
                            "{:.3g}".format,
                        )
                        for block in some
                    ),
                ]
                for network in distinct(rows, "network")
            ],
        )
        for name in _STATISTICS
    }


EXPERIMENT = Experiment(
    name="mean_shift",
    title="Without standardized kernels, means grow with depth",
    claim="""\
At initialization the squared mean of the activations grows with depth in a ReLU network
whose kernels are not standardized; in an NF-ResNet it does not, and the variance is as
alpha and beta predict (arXiv 2101.08692, figures 1 to 3).""",
    how="""\
Signal propagation plots of four networks of one shape at initialization: pre-activation
ResNets with batch normalization (using batch statistics) and without, an NF-ResNet, and an
NF-ResNet whose kernels are not standardized, with a variance of one over the fan-in. The
skip gains of the blocks, which start at zero, are set to one here.""",
    beyond="""\
The paper plots 600 layers and images of 224 pixels (`--scale full`). Here there are two of
the four stages, with feature maps of 7 x 7 and 4 x 4 pixels: in smaller ones a padded
convolution sees mostly zeros, and so gives less variance than the analysis predicts.""",
    scales={
        "small": {"depths": [12, 12], "width": 1, "pictures": 500, "seeds": 3},
        "full": {
            "dataset": "imagenet2012",
            "depths": [50, 50, 50, 50],
            "width": 4,
            "pictures": 64,
            "image_size": 224,
            "test_split": "validation",
            "seeds": 3,
        },
    },
    plan=_plan,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
    tables=_tables,
    figure_size=(7.6, 9.4),
)
