"""What a classifier makes of its model's outputs, and of the names of its classes."""

import keras
import numpy as np
import pytest
from PIL import Image

from keras_nfnets import runs
from keras_nfnets.data.preparation import DIGITS

PREPARATION = {**DIGITS, "size": 8}
LOGITS = np.array([3.0, 2.0, -3.0], "float32")
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum()
SIGMOID = 1 / (1 + np.exp(-LOGITS))


class Unknown(keras.layers.Layer):
    def call(self, x):
        return keras.ops.sigmoid(x)


def classifier_model(*last, activation=None):
    """Model with constant logits, an activation, and layers or operations after it."""
    inputs = keras.Input((8, 8, 3))
    dense = keras.layers.Dense(
        3,
        activation,
        kernel_initializer="zeros",
        bias_initializer=lambda shape, dtype: LOGITS,
    )
    x = dense(keras.layers.Flatten()(inputs))
    for operation in last:
        x = operation(x)
    return keras.Model(inputs, x)


def nested(inner, index=None):
    inputs = keras.Input((8, 8, 3))
    outputs = inner(inputs)
    return keras.Model(inputs, outputs if index is None else outputs[index])


def two_outputs():
    model = classifier_model()
    return keras.Model(model.inputs, [ops.softmax(model.output), model.output])


layers, ops = keras.layers, keras.ops


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("make", "expected", "known"),
    [
        (lambda: classifier_model(activation="softmax"), SOFTMAX, True),
        pytest.param(
            lambda: classifier_model(layers.Softmax()), SOFTMAX, True, marks=SLOW
        ),
        pytest.param(
            lambda: classifier_model(layers.Activation("softmax")),
            SOFTMAX,
            True,
            marks=SLOW,
        ),
        (lambda: classifier_model(ops.softmax), SOFTMAX, True),
        (lambda: nested(classifier_model(activation="softmax")), SOFTMAX, True),
        pytest.param(
            lambda: keras.Sequential(classifier_model().layers),
            SOFTMAX,
            True,
            marks=SLOW,
        ),
        pytest.param(lambda: nested(two_outputs(), 0), SOFTMAX, True, marks=SLOW),
        (lambda: nested(two_outputs(), 1), SOFTMAX, True),
        # Logits.
        pytest.param(classifier_model, SOFTMAX, True, marks=SLOW),
        (lambda: classifier_model(layers.Activation("linear")), SOFTMAX, True),
        pytest.param(
            lambda: classifier_model(layers.Reshape((3,))), SOFTMAX, True, marks=SLOW
        ),
        # Independent probabilities.
        pytest.param(
            lambda: classifier_model(activation="sigmoid"), SIGMOID, True, marks=SLOW
        ),
        pytest.param(
            lambda: classifier_model(layers.Activation("sigmoid")),
            SIGMOID,
            True,
            marks=SLOW,
        ),
        (lambda: classifier_model(ops.sigmoid), SIGMOID, True),
        # Not known, so not changed.
        (lambda: classifier_model(Unknown()), SIGMOID, False),
        (lambda: classifier_model(lambda x: 2 * x), 2 * LOGITS, False),
        (
            lambda: classifier_model(activation="relu"),
            np.maximum(LOGITS, 0),
            False,
        ),
    ],
)
def test_outputs_become_probabilities_by_the_last_activation(make, expected, known):
    classifier = runs.Classifier(make(), PREPARATION)
    [row] = classifier.predict(np.zeros((8, 8, 3), "uint8"))
    np.testing.assert_allclose(row, expected, rtol=1e-5)
    assert classifier.gives_probabilities == known
    [[best]] = classifier.predict_classes(np.zeros((8, 8, 3), "uint8"), top=1)
    assert best.text == (f"{row[0]:.0%}" if known else f"{row[0]:.3g}")


def folder_of(path, *classes):
    for i, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for j in range(5):
            shade = np.full((8, 8, 3), 40 * i + j, "uint8")
            Image.fromarray(shade).save(path / name / f"{j}.png")
    return path


def dense_classifier(classes, names=None, metadata=None, **options):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Dense(classes, **options)(keras.layers.Flatten()(inputs))
    return runs.Classifier(keras.Model(inputs, x), PREPARATION, names, metadata)


@pytest.fixture(scope="module")
def imagenet():
    names = [f"class {i}" for i in range(1000)]
    names[134] = names[517] = "crane"
    return dense_classifier(1000, names, {"classes_of": "imagenet2012"})


def test_imagenet_classes_are_known_by_their_ids(imagenet, tmp_path):
    folder = folder_of(tmp_path, "n01440764", "n02012849", "n03126707")
    evaluation = runs.evaluate(imagenet, folder)
    assert set(evaluation.results.labels) == {0, 134, 517}
    assert set(evaluation.classes) == {"class 0", "crane (134)", "crane (517)"}


def test_imagenet_classes_are_known_by_unique_names(imagenet, tmp_path):
    evaluation = runs.evaluate(
        imagenet, folder_of(tmp_path / "1", "class 7", "class 5")
    )
    assert set(evaluation.results.labels) == {5, 7}
    with pytest.raises(
        ValueError, match="Several classes .* have the name 'crane'.*WordNet"
    ):
        runs.evaluate(imagenet, folder_of(tmp_path / "2", "class 7", "crane"))
    with pytest.raises(
        ValueError, match="does not know the classes dog; it knows class"
    ):
        runs.evaluate(imagenet, folder_of(tmp_path / "3", "class 7", "dog"))


def test_imagenet_classes_are_known_by_their_numbers(imagenet, tmp_path):
    evaluation = runs.evaluate(imagenet, folder_of(tmp_path, "0", "134", "517"))
    assert set(evaluation.results.labels) == {0, 134, 517}
    assert set(evaluation.classes) == {"class 0", "crane (134)", "crane (517)"}


def test_classes_without_names_are_known_by_their_numbers(tmp_path):
    classifier = dense_classifier(4)
    x = np.zeros((4, 8, 8, 3), "uint8")
    evaluation = runs.evaluate(classifier, {"test": (x, [3, 1, 1, 0])})
    assert evaluation.results.labels.tolist() == [3, 1, 1, 0]
    folder = folder_of(tmp_path / "1", *"abcd")
    assert set(runs.evaluate(classifier, folder).results.labels) == {0, 1, 2, 3}
    with pytest.raises(
        ValueError, match="names .* 4 classes are not known.*: 3 classes"
    ):
        runs.evaluate(classifier, folder_of(tmp_path / "2", *"abc"))


def test_outputs_that_are_no_probabilities_have_no_loss():
    classifier = dense_classifier(2, activation="relu", kernel_initializer="zeros")
    x = np.zeros((4, 8, 8, 3), "uint8")
    evaluation = runs.evaluate(classifier, {"test": (x, [0, 1, 1, 0])})
    assert evaluation.loss is None and evaluation.accuracy == 0.5


def test_outputs_that_are_not_finite_are_an_error():
    classifier = dense_classifier(
        2, bias_initializer=keras.initializers.Constant(np.nan)
    )
    x = np.zeros((4, 8, 8, 3), "uint8")
    with pytest.raises(runs.RunError, match="not finite for 4 of 4 images"):
        runs.evaluate(classifier, {"test": (x, [0, 1, 1, 0])})


def test_all_images_of_a_new_folder_are_evaluated(tmp_path):
    classifier = dense_classifier(3, list("abc"))
    one = folder_of(tmp_path / "one", "b")
    for folder, count in ((one, 5), (folder_of(tmp_path / "two", "c", "a"), 10)):
        evaluation = runs.evaluate(classifier, folder)
        assert (evaluation.split, len(evaluation.results.labels)) == ("all", count)
    split = folder_of(tmp_path / "divided" / "train", "a", "b").parent
    folder_of(split / "val", "b")
    assert runs.evaluate(classifier, split).split == "validation"
    unusual = folder_of(tmp_path / "for evaluation" / "val", "c").parent
    assert runs.evaluate(classifier, unusual, "validation").split == "validation"
    # A split that is asked for is the one of `data.find`.
    assert len(runs.evaluate(classifier, folder, "test").results.labels) < 10
