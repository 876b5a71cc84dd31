import keras
import numpy as np
import pytest
from eager import eager_functions
from environments import Environment
from quick import quick

from keras_nfnets import experiments
from keras_nfnets.experiments import dense, fitting, pasted
from keras_nfnets.experiments.fitting import MAIN

SETTINGS = {
    "dataset": "digits",
    "classes": 2,
    "side": 32,
    "objects": 2,
    "depths": [1, 1],
    "width": 1,
    "alpha": 1.0,
    "clip_factor": 0.16,
    "agc_eps": 0.1,
}


def pyramid(settings, encoder):
    """Build a decoder with batch norm, as DeepLabV3+ and RetinaNet have."""

    def normalized(x):
        x = keras.layers.Conv2D(8, 1, use_bias=False)(x)
        return keras.layers.ReLU()(keras.layers.BatchNormalization()(x))

    fine, coarse = map(normalized, encoder.pyramid_outputs.values())
    x = keras.layers.Concatenate()([fine, keras.layers.UpSampling2D()(coarse)])
    return keras.Model(encoder.input, normalized(x))


def segmenter(settings, body):
    x = keras.layers.Conv2D(1 + settings["classes"], 1, name="predictions")(body.output)
    model = keras.Model(body.input, keras.layers.UpSampling2D(4)(x))
    return dense.Predictor(model, lambda scenes: (scenes.masks,), None)


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


TASK = dense.Task(pyramid, segmenter, loss, "predictions")


def built(version):
    keras.utils.set_random_seed(0)
    family = fitting.CLIPPED if version == dense.NORMALIZER_FREE else fitting.BATCH_NORM
    shape, classes = (None, None, 3), SETTINGS["classes"]
    network = fitting.build(SETTINGS, family, shape, classes)
    scenes = pasted.scenes(SETTINGS, "train", 16, 0)
    encoder = dense.as_encoder(network)
    model, _ = dense.build(TASK, SETTINGS, version, encoder, scenes.images, 100)
    return model, encoder, scenes


@pytest.mark.parametrize(
    "version", quick(dense.VERSIONS, dense.BATCH_NORM, dense.NORMALIZER_FREE)
)
def test_gradient_of_a_batch_is_the_mean_of_its_examples_except_with_batch_norm(
    version,
):
    model, _, scenes = built(version)
    before = model.get_weights()
    with eager_functions():
        difference = dense.gradient_difference(
            model, loss(), scenes.images[:8], scenes.masks[:8]
        )
    if version == dense.BATCH_NORM:
        assert difference > 0.01
    else:
        assert difference < 1e-5
    for weights, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weights, then)


def values(variable):
    return np.array(keras.ops.convert_to_numpy(variable))


def test_frozen_statistics_are_measured_once_and_the_encoder_keeps_its_own():
    model, encoder, scenes = built(dense.FROZEN)
    variables = {v.path: v for v in model.non_trainable_variables if "moving" in v.path}
    of_encoder = {v.path for v in encoder.non_trainable_variables}
    assert 0 < len(of_encoder & set(variables)) < len(variables)
    for path, variable in variables.items():
        untouched = (values(variable) == ("variance" in path)).all()
        assert untouched == (path in of_encoder), path
    before = {path: values(variable) for path, variable in variables.items()}
    trained = [v for v in model.trainable_variables if "gamma" in v.path]
    gammas = [values(v) for v in trained]
    model.compile(keras.optimizers.SGD(1.0), loss(), clip_factor=None)
    with eager_functions():
        model.train_on_batch(scenes.images, scenes.masks)
    for path, variable in variables.items():
        np.testing.assert_array_equal(values(variable), before[path])
    assert any((values(v) != b).any() for v, b in zip(trained, gammas, strict=True))


def test_the_claim_is_supported_if_all_parts_of_it_are():
    experiment = experiments.find("segmentation")
    settings = experiments.settings_of(experiment, "small", "digits")
    at_small_batches = dict(zip(dense.VERSIONS, (0.1, 0.3, 0.5), strict=True))

    def verdict(gradient_difference=1e-7, at_eight=0.5):
        def measured(cell):
            row = {**cell, "diverged": False, "encoder_accuracy": 0.8}
            row["mean_iou"] = at_small_batches[cell["network"]]
            if cell.get("batch_size") == 8:
                exact = cell["network"] == dense.NORMALIZER_FREE
                row["mean_iou"] = at_eight if exact else 0.5
                row["gradient_difference"] = gradient_difference if exact else 0.1
            return row

        rows = []
        for _ in range(2):
            rows = [measured(cell) for cell in experiment.plan(settings, rows)]
        return experiments.verdict(experiment.conclude(rows, settings))

    assert verdict() == "supported"
    assert verdict(gradient_difference=0.1) == "partly supported"
    assert verdict(at_eight=0.4) == "partly supported"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segmentation"])
def test_models_of_keras_hub_are_trained_and_tested(name, tmp_path):
    """The exact statement about gradients, for the models of the experiments."""
    environment = Environment(tmp_path / "environment", "keras-hub")
    program = tmp_path / "program.py"
    program.write_text(f"""
import warnings
from keras_nfnets import experiments
from keras_nfnets.experiments import dense

experiment = experiments.find({name!r})
experiments.check_installed(experiment)
warnings.simplefilter("error", UserWarning)
settings = experiments.settings_of(experiment, "small", "digits")
settings |= {{"examples": 16, "test_examples": 10, "encoder_examples": 32}}
settings |= {{"encoder_epochs": 1}}
for version in dense.VERSIONS:
    cell = {{"part": {MAIN!r}, "network": version, "learning_rate": 0.1}}
    row = experiment.measure(settings, {{**cell, "batch_size": 8, "seed": 0}})
    assert not row["diverged"] and 0 <= row[settings["score"]] <= 1, row
    exact = row["gradient_difference"] < 1e-3
    assert exact == (version != dense.BATCH_NORM), row
""")
    environment.run(program, folder=tmp_path)
