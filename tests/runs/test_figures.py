import numpy as np
from PIL import Image

from keras_nfnets.runs import figures


def test_curves_without_clipping_and_predictions_of_color_images_are_drawn(tmp_path):
    history = {"loss": [1.0], "accuracy": [0.5], "val_ema_loss": [0.9]}
    figures.training_curves(history, tmp_path / "curves.png", "one epoch")
    figures.predictions(
        np.random.default_rng(0).normal(size=(3, 8, 8, 3)),
        np.array([0, 1, 2]),
        np.eye(3)[[0, 1, 1]],
        ["a", "b", "c"],
        tmp_path / "predictions.png",
        "three images",
    )
    for name in ("curves.png", "predictions.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 200
