"""KerasHub's own tests of its classes, for those of `keras_nfnets.hub`.

They need KerasHub: as a program, in an environment that has it.
"""

import doctest
import tempfile
import unittest

import keras
import keras_hub
import numpy as np
from keras_hub.src.tests.test_case import TestCase

import keras_nfnets
from keras_nfnets import data, hub, runs

SHAPE = (32, 32, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 50, 40, 3), "uint8")
LABELS = np.array([0, 1])
BACKBONE = {"network": "NFNetTest", "image_shape": SHAPE}
PREPARATION = {
    "image_size": (32, 32),
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": (0.5, 0.4, 0.3),
    "deviation": (0.2, 0.2, 0.3),
    "crop": 0.9,
}


class HubTest(TestCase):
    def test_backbone(self):
        self.run_vision_backbone_test(
            hub.NFNetBackbone,
            BACKBONE,
            input_data=keras.ops.ones((2, *SHAPE)),
            expected_output_shape=(2, 1, 1, 192),
            expected_pyramid_output_keys=["P2", "P3", "P4", "P5"],
            expected_pyramid_image_sizes=[(8, 8), (4, 4), (2, 2), (1, 1)],
        )

    def test_saved_backbone(self):
        x = keras.ops.ones((2, *SHAPE))
        self.run_model_saving_test(hub.NFNetBackbone, BACKBONE, input_data=x)

    def test_image_converter(self):
        for mode in ("center", "crop_resize"):  # by Pillow, and by TensorFlow
            options = {**PREPARATION, "crop_mode": mode}
            self.run_preprocessing_layer_test(hub.NFNetImageConverter, options, IMAGES)

    def test_image_classifier(self):
        self.run_task_test(
            hub.NFNetImageClassifier,
            {
                "backbone": hub.NFNetBackbone(**BACKBONE),
                "num_classes": 2,
                "preprocessor": hub.NFNetImageClassifierPreprocessor(
                    hub.NFNetImageConverter(**PREPARATION)
                ),
                "activation": "softmax",
            },
            train_data=(IMAGES, LABELS),
            expected_output_shape=(2, 2),
            compile_kwargs={
                "optimizer": keras_nfnets.AGC(keras.optimizers.SGD(0.01)),
                "loss": "sparse_categorical_crossentropy",
                "jit_compile": False,
            },
        )

    def test_preset_classifies_as_the_network_does(self):
        images = data.load_digits()[1][0][:20]
        expected = runs.load_classifier("digits").predict(list(images))
        classifier = hub.image_classifier("NFNetTiny", "digits")
        folder = tempfile.mkdtemp()
        classifier.save_to_preset(folder)
        loaded = keras_hub.models.ImageClassifier.from_preset(folder)
        self.assertIsInstance(loaded, hub.NFNetImageClassifier)
        self.assertAllClose(loaded.predict(images), expected, atol=1e-6)
        self.run_preset_test(
            hub.NFNetBackbone,
            folder,
            keras.ops.ones((2, *SHAPE)),
            {"dtype": "bfloat16"},
        )

    def test_errors_say_what_is_wrong(self):
        with self.assertRaisesRegex(ValueError, r"equal .* image_size=\(32, 64\)"):
            hub.NFNetImageConverter(**{**PREPARATION, "image_size": (32, 64)})
        with self.assertRaisesRegex(ValueError, "pass `classes` and `preparation`"):
            hub.image_classifier("NFNetTiny", keras_nfnets.pretrained.__file__)

    def test_examples_of_docstrings(self):
        names = {"keras": keras, "np": np, "keras_nfnets": keras_nfnets}
        failures, tests = doctest.testmod(hub, extraglobs=names)
        assert tests > 5
        assert failures == 0


if __name__ == "__main__":
    unittest.main()
