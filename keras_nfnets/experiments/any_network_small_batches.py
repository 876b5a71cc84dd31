"""Small batches with and without normalization, in small networks of many families."""

from keras_nfnets.experiments import plots
from keras_nfnets.experiments.any_network_training import (
    FULL_RUN,
    NORMALIZER_FREE,
    ORIGINAL,
    SMALL_RUN,
    SMALL_RUN_ON_GLYPHS,
    draw,
    leads,
    measure,
    named,
    plan_of,
    tables,
)
from keras_nfnets.experiments.experiment import CANNOT_TELL, Experiment, Finding
from keras_nfnets.experiments.results import Difference

# The batch size for which the claim is that networks train better, not only as well.
_SMALLEST = 2


def _conclude(rows, settings):
    findings = []
    for size in settings["batch_sizes"]:
        over_original = leads(rows, ORIGINAL, size)
        behind = {network: by for network, by in over_original.items() if by <= 0}
        difference = Difference.typical(list(over_original.values()))
        better = size == _SMALLEST
        bound = "zero" if better else f"{-100 * plots.AS_GOOD:g}"
        findings += [
            Finding(
                f"At batches of {size}, the median difference from the original is "
                f"{difference} over the networks; the claim needs more than {bound}.",
                difference.exceeds(0 if better else -plots.AS_GOOD),
            ),
            Finding(
                f"{len(over_original) - len(behind)} of {len(over_original)} networks are "
                f"better than their original.{named('Not better', behind)}",
                None,
            ),
        ]
    if _SMALLEST not in settings["batch_sizes"]:
        text = f"Batches of {_SMALLEST} were not tried on this data set."
        findings.append(Finding(text, CANNOT_TELL))
    return findings


EXPERIMENT = Experiment(
    name="any_network_small_batches",
    title="At batches of two, networks train better without normalization",
    claim="""\
With batches of two images, most networks train better without normalization, after
`keras_nfnets.normalizer_free` and with AGC, than with it; with batches of four they train
about as well.""",
    how="""\
The networks of [any_network_training](../any_network_training/README.md): the originals
with batch normalization (ConvNeXt: layer normalization), and after `normalizer_free`,
trained with AGC. All see the same images in the same order. The learning rate of each
version of each network is tuned in the same way, separately for each batch size. The
running statistics of batch normalization are means over a tenth of the run.""",
    beyond="""\
Batch normalization computes its statistics over positions too: where feature maps are
large, as before the pooling of a VGG, even two images give many values. Their noise also
regularizes, which helps if there are few images (see
[regularization](../regularization/README.md)).""",
    scales={
        "small": {
            **SMALL_RUN,
            # With batches this small, one epoch has many steps.
            "epochs": 1,
            "learning_rates": [0.4, 1.6, 6.4],
            "batch_sizes": [4, 2],
            "settings_by_dataset": {
                "glyphs": {
                    **SMALL_RUN_ON_GLYPHS,
                    "learning_rates": [0.1, 0.4, 1.6, 6.4],
                    "batch_sizes": [4],
                }
            },
        },
        "full": {**FULL_RUN, "epochs": 5, "batch_sizes": [4, 2]},
    },
    plan=plan_of(ORIGINAL, NORMALIZER_FREE),
    measure=measure,
    draw=draw,
    conclude=_conclude,
    tables=tables,
    figure_size=(9, 5.5),
)
