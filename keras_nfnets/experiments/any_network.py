"""Signal variance in networks of many families, with and without normalization."""

import keras
import numpy as np

from keras_nfnets import models
from keras_nfnets.experiments import images, small_networks
from keras_nfnets.experiments.experiment import Experiment, Finding
from keras_nfnets.experiments.results import distinct, markdown, median, select

# Networks of `keras.applications`, with the options that let them take standardized images.
_NO_PREPROCESSING = {"include_preprocessing": False}
_APPLICATIONS = {
    "ResNet50": {},
    "ResNet50V2": {},
    "VGG16": {},
    "MobileNetV2": {},
    "MobileNetV3Small": _NO_PREPROCESSING,
    "DenseNet121": {},
    "InceptionV3": {},
    "Xception": {},
    "EfficientNetB0": {},
    "EfficientNetV2B0": _NO_PREPROCESSING,
    "ConvNeXtTiny": _NO_PREPROCESSING,
}
# Without normalization from the start.
_NEVER_NORMALIZED = "VGG16"
# It has no such option and always rescales its input from the range 0 to 255.
_RESCALES_PIXELS = ("EfficientNetB0",)

# Families that `keras.applications` lacks.
_SMALL = ("RegNet", "U-Net")

_NOISE, _IMAGES = "noise", "pictures"
_ORIGINAL, _DELETED = "original", "normalization deleted"
_NORMALIZER_FREE = "normalizer_free"
_VERSIONS = (_ORIGINAL, _DELETED, _NORMALIZER_FREE)


def _plan(settings, rows):
    return [
        {"network": network, "images": kind, "seed": seed}
        for seed in range(settings["seeds"])
        for kind in (_NOISE, _IMAGES)
        for network in (*_APPLICATIONS, *_SMALL)
    ]


def _build(network, size):
    if network in _SMALL:
        return small_networks.build(network, (size, size, 3), 10)
    build = getattr(keras.applications, network)
    options = _APPLICATIONS[network]
    return build(weights=None, input_shape=(size, size, 3), **options)


def _calibration_and_other_images(settings, cell):
    """Return the images to find the constants with, and other images to measure with."""
    size, known = settings["image_size"], settings["known"][cell["images"]]
    count = known + settings["pictures"]
    if cell["images"] == _NOISE:
        generator = np.random.default_rng(cell["seed"])
        x = generator.standard_normal((count, size, size, 3)).astype("float32")
    else:
        x, _ = images.load(settings).test_images(count)
        x = keras.ops.image.resize(x, (size, size))
        x = keras.ops.convert_to_numpy(x)
        x = np.broadcast_to(x, (*x.shape[:-1], 3))
    if cell["network"] in _RESCALES_PIXELS:
        x = 64 * x + 128
    return x[:known], x[known:]


def _measure(settings, cell):
    keras.utils.set_random_seed(cell["seed"])
    original = _build(cell["network"], settings["image_size"])
    calibration, others = _calibration_and_other_images(settings, cell)
    # With a skip gain of zero, residual branches would not contribute to the signal.
    result = models.normalizer_free(original, calibration, skip_gain_initializer="ones")
    steps = result.conversion.variances
    expected = {name: step.variance for name, step in steps.items()}
    measured = models.signal_propagation(result, others, layers=list(expected))
    ratios = measured["avg_var"] / list(expected.values())
    means = measured["avg_sq_mean"] / measured["avg_var"]
    rows = [
        {
            "layers": len(ratios),
            "least": _rounded(ratios.min()),
            "most": _rounded(ratios.max()),
            "mean_square": _rounded(means.max()),
        }
    ]
    compared = _compared_layers(steps, original)
    networks = {
        _ORIGINAL: original,
        _DELETED: small_networks.without_normalization(original),
        _NORMALIZER_FREE: result,
    }
    for version, network in networks.items():
        signal = models.signal_propagation(
            network, others, training=version == _ORIGINAL, layers=compared
        )
        rows += [
            {"version": version, "place": index, "variance": _rounded(variance)}
            for index, variance in enumerate(signal["avg_var"])
        ]
        if version == _NORMALIZER_FREE:
            for row, name in zip(rows[-len(compared) :], compared):
                row["expected"] = _rounded(expected[name])
    return rows


def _rounded(number):
    return float(f"{number:.4g}")


def _compared_layers(steps, original):
    """List the layers after which all versions are compared: the ends of blocks.

    A network with fewer than six of these is compared after its convolutions.
    """
    # The result has separate layers for activations inside the original's convolutions.
    there = {operation.name for operation in original.operations}
    kinds = {name: step.kind for name, step in steps.items() if name in there}
    ends = [name for name, kind in kinds.items() if kind in ("Add", "Concatenate")]
    weighted = [name for name, kind in kinds.items() if "Conv" in kind]
    return ends if len(ends) >= 6 else weighted


def _draw(figure, rows, settings):
    networks = distinct(rows, "network")
    grid = figure.subplots(-(-len(networks) // 3), 3, sharey=True, squeeze=False)
    styles = {_ORIGINAL: "C0", _DELETED: "C1", _NORMALIZER_FREE: "C4"}
    for axes in grid.flat[len(networks) :]:
        axes.axis("off")
    for axes, network in zip(grid.flat, networks):
        for version, color in styles.items():
            for kind, style in ((_NOISE, "-"), (_IMAGES, "--")):
                line_rows = select(rows, network=network, images=kind, version=version)
                places = distinct(line_rows, "place")
                medians = [
                    median(select(line_rows, place=p), "variance") for p in places
                ]
                axes.plot(places, medians, style, color=color, linewidth=1.3)
        expected = select(
            rows, network=network, images=_NOISE, version=_NORMALIZER_FREE, seed=0
        )
        axes.plot(
            [row["place"] for row in expected],
            [row["expected"] for row in expected],
            "o",
            color="gray",
            markersize=3,
        )
        axes.set_yscale("log")
        axes.set_ylim(1e-6, 1e2)
        axes.set_title(network, fontsize=10)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=9)
    figure.supylabel("variance of a channel, from the first layer to the last")
    for version, color in styles.items():
        grid[0, 0].plot([], [], "-", color=color, label=version)
    grid[0, 0].plot([], [], "o", color="gray", markersize=3, label="expected")
    grid[0, 0].plot([], [], "k--", label="on images")
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
    )


def _range(rows, version):
    """Return the ratio of the largest to the smallest variance over the measured layers."""
    values = [row["variance"] for row in select(rows, version=version)]
    least, most = min(values), max(values)
    return most / least if least > 0 else float("inf")


def _conclude(rows, settings):
    summaries = [row for row in rows if "least" in row]
    least = min(row["least"] for row in summaries)
    most = max(row["most"] for row in summaries)
    outside = {
        row["network"]
        for row in summaries
        if not (0.75 < row["least"] and row["most"] < 1.25)
    }
    shifted = max(row["mean_square"] for row in summaries)
    by_network = {n: select(rows, network=n) for n in distinct(rows, "network")}
    normalized = [network for network in by_network if network != _NEVER_NORMALIZED]
    unstable = [n for n in normalized if _range(by_network[n], _DELETED) > 100]
    stable = [n for n, some in by_network.items() if _range(some, _NORMALIZER_FREE) < 2]
    where = (
        f" Off by more than a quarter: {', '.join(sorted(outside))}." if outside else ""
    )
    return [
        Finding(
            f"In {sum(row['layers'] for row in summaries):,} measurements after layers, on "
            f"images not used for calibration, the variance is {least:.2f} to {most:.2f} "
            f"times the expected variance.{where}",
            not outside,
        ),
        Finding(
            f"The squared mean of a channel is at most {shifted:.2f} times its variance.",
            shifted < 1.5,
        ),
        Finding(
            f"From block to block the variance stays within a factor of two in {len(stable)} "
            f"of {len(by_network)} networks.",
            len(stable) == len(by_network),
        ),
        Finding(
            "With normalization deleted without replacement, it changes more than a "
            f"hundredfold in {len(unstable)} of {len(normalized)} networks with normalization: "
            f"{', '.join(unstable)}.",
            len(unstable) > len(normalized) / 2,
        ),
    ]


def _tables(rows, settings):
    lines = []
    for network in distinct(rows, "network"):
        some = select(rows, network=network)
        summaries = [row for row in some if "least" in row]
        cells = []
        for kind in (_NOISE, _IMAGES):
            of_kind = select(summaries, images=kind)
            least = min((row["least"] for row in of_kind), default=float("nan"))
            most = max((row["most"] for row in of_kind), default=float("nan"))
            cells.append(f"{least:.2f} to {most:.2f}")
        ranges = [f"{_range(some, version):.3g}" for version in _VERSIONS]
        layers = max((row["layers"] for row in summaries), default=0)
        lines.append([network, layers, *cells, *ranges])
    return {
        "Measured variance divided by expected variance, over all layers with an expected "
        "variance; and the largest variance after a block divided by the smallest.": markdown(
            ["network", "layers", "on noise", "on images", *_VERSIONS], lines
        )
    }


EXPERIMENT = Experiment(
    name="any_network",
    title="normalizer_free keeps variances as expected in any network",
    claim="""\
The papers analyze ResNets. With `keras_nfnets.normalizer_free` the analysis holds for
networks of any shape: at initialization the variance after every layer is within a quarter
of its expected value.""",
    how="""\
Eleven networks of keras.applications, a RegNet and a U-Net: the original (with batch
statistics), with normalization deleted without replacement, and after `normalizer_free`
with calibration images (skip gains of one). They are measured on other images than these:
noise or test images. Test images differ more from each other than noise does, so more of
them are used for calibration.""",
    beyond="""\
The networks are at initialization, and the images are smaller than those they are made for.
Test images are enlarged, and so smoother than photographs of that size.""",
    scales={
        "small": {
            "image_size": 128,
            "known": {_NOISE: 16, _IMAGES: 96},
            "pictures": 64,
            "seeds": 2,
        },
        "full": {
            "dataset": "imagenet2012",
            "image_size": 224,
            "known": {_NOISE: 32, _IMAGES: 128},
            "pictures": 64,
            "test_split": "validation",
            "seeds": 3,
        },
    },
    plan=_plan,
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
    tables=_tables,
    figure_size=(6.8, 9.6),
)
