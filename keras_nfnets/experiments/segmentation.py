"""Semantic segmentation at small batch sizes."""

import keras

from keras_nfnets.experiments import dense
from keras_nfnets.experiments.experiment import Experiment


def _body(settings, encoder):
    import keras_hub

    side = settings["side"]
    backbone = keras_hub.models.DeepLabV3Backbone(
        encoder,
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P4",
        upsampling_size=4,
        dilation_rates=settings["dilation_rates"],
        image_shape=(side, side, 3),
    )
    # The backbone ends with an upsampling. As a 1 x 1 convolution commutes with it, the
    # predictions are upsampled instead, which are fewer channels.
    return keras.Model(
        backbone.input, backbone.get_layer("segmentation_head_relu").output
    )


def _predictor(settings, body):
    x = keras.layers.Conv2D(1 + settings["classes"], 1, name="predictions")(body.output)
    x = keras.layers.UpSampling2D(4, interpolation="bilinear")(x)
    return dense.Predictor(keras.Model(body.input, x), _targets, _score)


def _targets(scenes):
    return (scenes.masks,)


def _score(predictions, scenes):
    metric = keras.metrics.MeanIoU(predictions.shape[-1], sparse_y_pred=False)
    metric.update_state(scenes.masks, predictions)
    return float(metric.result())


def _loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


_TASK = dense.Task(_body, _predictor, _loss, "predictions")

_SETTINGS = {
    "score": "mean_iou",
    "dilation_rates": [1],
    "learning_rates": [0.4, 0.8, 1.6, 3.2],
}

EXPERIMENT = Experiment(
    name="segmentation",
    title="Segmentation without normalization needs no large batches",
    claim="""At batches of one and two images, DeepLabV3+ without normalization, after
`keras_nfnets.normalizer_free` and with AGC, segments better than with batch norm and with
frozen batch norm; at larger ones it is as good.""",
    how="KerasHub's DeepLabV3+ finds the pixels of each stamp, and its digit. "
    + dense.HOW,
    beyond="""\
The mean IoU is 18% if every pixel is taken for background. """
    + dense.BEYOND,
    scales={
        "small": {**dense.SMALL, **_SETTINGS},
        "full": {**dense.FULL, **_SETTINGS, "dilation_rates": [6, 12]},
    },
    plan=dense.plan,
    measure=dense.measure(_TASK),
    draw=dense.draw,
    conclude=dense.conclude,
    tables=dense.tables,
    needs=("keras_hub", "skimage"),
)
