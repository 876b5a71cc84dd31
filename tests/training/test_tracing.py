"""`AGCModel` is built before the first batch, so a step is traced once (TensorFlow)."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_nfnets import AGCModel

X = np.random.default_rng(0).normal(size=(10, 3)).astype("float32")
Y = np.eye(2, dtype="float32")[np.arange(10) % 2]


class Traced(keras.layers.Dense):
    """Dense layer that counts how often it is traced in training."""

    traces = 0

    def call(self, x, training=False):
        self.traces += bool(training)
        return super().call(x)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        part = slice(4 * i, 4 * i + 4)  # the last one is smaller
        return X[part], Y[part], np.ones(len(X[part]), "float32")


def network(cls=AGCModel, outputs=1):
    inputs = keras.Input((3,))
    x = Traced(4, name="traced")(keras.layers.Dropout(0.5)(inputs))
    found = [keras.layers.Dense(2, name=f"out{i}")(x) for i in range(outputs)]
    return cls(inputs, found if outputs > 1 else found[0])


def two_of_each():
    return tf.data.Dataset.from_tensor_slices((X, (Y, Y))).batch(4)


@pytest.mark.parametrize(
    "data, outputs",
    [
        (Batches, 1),
        (lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(4), 1),
        (two_of_each, 2),
    ],
)
def test_a_step_is_traced_once_with_unchanged_results(data, outputs):
    """Otherwise the first step of a deep network would take twice as long."""
    keras.utils.set_random_seed(0)
    model = network(outputs=outputs)
    metrics = [["accuracy"]] * outputs if outputs > 1 else ["accuracy"]
    model.compile("sgd", "mse", metrics=metrics, clip_factor=None)
    history = model.fit(data(), epochs=2, shuffle=False, verbose=0).history
    assert model.get_layer("traced").traces == 1

    # A Keras model creates the variables of its metrics at the first step.
    keras.utils.set_random_seed(0)
    other = network(keras.Model, outputs)
    other.compile("sgd", "mse", metrics=metrics)
    expected = other.fit(data(), epochs=2, shuffle=False, verbose=0).history
    assert history.keys() == expected.keys()
    for name, values in expected.items():
        assert history[name] == pytest.approx(values, rel=1e-5), name


def test_evaluation_before_training_knows_its_metrics():
    model = network()
    model.compile(
        "sgd", "mse", metrics=["accuracy"], weighted_metrics=["mae"], ema_decay=0.9
    )
    result = model.evaluate(Batches(), verbose=0, return_dict=True)
    # No averaged weights before training, and no state that only training needs.
    assert set(result) == {"loss", "accuracy", "mae"}
    assert not model.optimizer.built
    predicted = model.predict(X, verbose=0)
    assert result["mae"] == pytest.approx(np.abs(predicted - Y).mean(), rel=1e-5)


class WithALossOfItsOwn(AGCModel):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return keras.ops.mean(keras.ops.square(tf.reshape(y, (-1, 2)) - y_pred))


def without_rank(x, y):
    return x, tf.py_function(lambda y: y, [y], tf.float32)


def test_labels_of_unknown_rank_are_accepted_if_the_loss_accepts_them():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(5).map(without_rank)
    model = network(WithALossOfItsOwn)
    model.compile("sgd", clip_factor=0.1)
    assert np.isfinite(model.fit(data, verbose=0).history["loss"]).all()


def test_sparse_inputs_are_accepted():
    x = tf.sparse.from_dense(np.maximum(X, 0))
    data = tf.data.Dataset.from_tensor_slices((x, Y)).batch(5)
    inputs = keras.Input((3,), sparse=True)
    model = AGCModel(inputs, keras.layers.Dense(2)(inputs))
    model.compile("sgd", "mse", metrics=["mae"])
    assert np.isfinite(model.fit(data, verbose=0).history["loss"]).all()


class OfItsOwn(AGCModel):
    """Model with a custom `train_step` for batches of another structure."""

    def train_step(self, data):
        x, y, _, _ = data
        return super().train_step((x, y))


def test_a_custom_step_sees_the_data_first():
    data = tf.data.Dataset.from_tensor_slices((X, Y, X, X)).batch(5)
    model = network(OfItsOwn)
    model.compile("sgd", "mse", metrics=["accuracy"])
    assert np.isfinite(model.fit(data, verbose=0).history["loss"]).all()


def test_python_in_a_loss_may_see_values_when_run_eagerly():
    def loss(y, predicted):
        return float(abs(y.numpy() - predicted.numpy()).mean()) + 0 * predicted

    model = network()
    model.compile("sgd", loss, metrics=["accuracy"], run_eagerly=True)
    assert np.isfinite(model.fit(X, Y, verbose=0).history["loss"]).all()
