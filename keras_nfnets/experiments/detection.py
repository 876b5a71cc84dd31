"""Object detection at small batch sizes."""

import contextlib
import io
import math

import keras
import numpy as np

from keras_nfnets.experiments import dense
from keras_nfnets.experiments.experiment import Experiment

_LEVELS = 3, 4
_FORMAT = "xyxy"
# Probability of an object that the predictions start with.
_PRIOR = 0.01
# Label that KerasHub gives to anchors that count neither as objects nor as background.
_IGNORED = -2


def _body(settings, encoder):
    import keras_hub

    side = settings["side"]
    backbone = keras_hub.models.RetinaNetBackbone(
        encoder,
        *_LEVELS,
        use_p5=False,
        use_fpn_batch_norm=True,
        image_shape=(side, side, 3),
    )
    # Only coarser levels than the encoder's use these, and Keras warns of variables without
    # gradients.
    for layer in backbone.feature_pyramid.output_batch_norms.values():
        layer.trainable = False
    return backbone


def _predictor(settings, body):
    detector = _detector(settings, body)

    def targets(scenes):
        boxes, labels = map(
            np.asarray,
            detector.label_encoder(scenes.images, scenes.boxes, scenes.labels),
        )
        classes = np.eye(settings["classes"], dtype="float32")[labels.astype(int)]
        positive = (labels >= 0).astype("float32")
        # The losses are means over anchors, classes and coordinates. In RetinaNet they are
        # sums, divided by the number of positive anchors, here those of an image.
        scale = labels.shape[1] / np.maximum(positive.sum(axis=1, keepdims=True), 1)
        return (
            {
                "bbox_regression": boxes,
                "cls_logits": classes * positive[..., None],
            },
            {
                "bbox_regression": boxes.shape[-1] * scale * positive,
                "cls_logits": classes.shape[-1] * scale * (labels != _IGNORED),
            },
        )

    def score(predictions, scenes):
        found = detector.decode_predictions(predictions, scenes.images)
        found = {name: np.asarray(values) for name, values in found.items()}
        return average_precision(scenes, **found)

    return dense.Predictor(detector, targets, score)


def _detector(settings, body):
    import keras_hub

    # A converted backbone lacks these attributes of a `RetinaNetBackbone`.
    body.min_level, body.max_level = _LEVELS
    body.image_shape = body.input_shape[1:]
    detector = keras_hub.models.RetinaNetObjectDetector(
        body,
        settings["classes"],
        _FORMAT,
        anchor_generator=keras_hub.layers.AnchorGenerator(
            _FORMAT,
            *_LEVELS,
            num_scales=3,
            aspect_ratios=[1.0],
            anchor_size=2.0,
        ),
        pre_logits_num_conv_layers=1,
        prediction_decoder=keras_hub.layers.NonMaxSuppression(
            _FORMAT, from_logits=True, confidence_threshold=0.01, max_detections=20
        ),
    )
    # As in RetinaNet (arXiv 1708.02002, section 4.1). KerasHub, which expects trained weights,
    # starts with larger kernels, and gives the bias of the prior to the boxes.
    for head in (detector.box_head, detector.classification_head):
        for variable in head.trainable_variables:
            if variable.name == "kernel":
                variable.assign(keras.random.normal(variable.shape, stddev=0.01))
            else:
                variable.assign(np.zeros(variable.shape))
    prior = detector.classification_head.prediction_layer.bias
    prior.assign(np.full(prior.shape, -math.log(1 / _PRIOR - 1)))
    return detector


def average_precision(scenes, boxes, labels, confidence, **_):
    """Compute the mean over classes of the average precision at an IoU of 0.5.

    Args:
        scenes: `pasted.Scenes`.
        boxes, labels, confidence: arrays `(n, most detections, 4)` and twice `(n, most
            detections)`, with labels of -1 where there is no detection.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = _annotations(boxes, labels, confidence)
    if not found:
        return 0.0
    true = COCO()
    true.dataset = {
        "images": [{"id": i} for i in range(len(labels))],
        "categories": [{"id": i} for i in range(1 + int(scenes.labels.max()))],
        "annotations": _annotations(scenes.boxes, scenes.labels),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        true.createIndex()
        evaluation = COCOeval(true, true.loadRes(found), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.evaluate()
        evaluation.accumulate()
    # The axes are thresholds of IoU and recall, classes, areas (all first), and largest
    # numbers of detections (most last).
    precision = evaluation.eval["precision"][0, :, :, 0, -1]
    return float(precision[precision >= 0].mean())  # -1: no object of the class


def _annotations(boxes, labels, confidence=None):
    """Return boxes as annotations of COCO, which have the left, top, width and height."""
    found = []
    for i, j in np.argwhere(labels >= 0).tolist():
        left, top, right, bottom = boxes[i, j].tolist()
        width, height = right - left, bottom - top
        annotation = {
            "id": 1 + len(found),
            "image_id": i,
            "category_id": int(labels[i, j]),
            "bbox": [left, top, width, height],
            "area": width * height,
            "iscrowd": 0,
        }
        if confidence is not None:
            annotation["score"] = float(confidence[i, j])
        found.append(annotation)
    return found


def _loss():
    return {
        "bbox_regression": keras.losses.Huber(),
        "cls_logits": keras.losses.BinaryFocalCrossentropy(from_logits=True),
    }


_TASK = dense.Task(_body, _predictor, _loss, "logits_layer")

_SETTINGS = {
    "score": "average_precision",
    "learning_rates": [0.05, 0.1, 0.2, 0.4],
}

EXPERIMENT = Experiment(
    name="detection",
    title="Detection without normalization needs no large batches",
    claim="""At batches of one and two images, a RetinaNet without normalization, after
`keras_nfnets.normalizer_free` and with AGC, detects better than with batch norm and with
frozen batch norm; at larger ones it is as good.""",
    how="""KerasHub's RetinaNet, with batch norm in the feature pyramid and none in the heads that
predict, finds the box of each stamp, and its digit. The loss of an image is divided by the number of its
own positive anchors, not by those of the batch. """
    + dense.HOW,
    beyond=dense.BEYOND,
    scales={
        "small": {**dense.SMALL, **_SETTINGS, "examples": 1200},
        "full": {**dense.FULL, **_SETTINGS},
    },
    plan=dense.plan,
    measure=dense.measure(_TASK),
    draw=dense.draw,
    conclude=dense.conclude,
    tables=dense.tables,
    needs=("keras_hub", "skimage", "pycocotools"),
)
