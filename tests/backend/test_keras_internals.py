"""Keras has the internals that `backend/keras_internals.py` expects."""

import threading
import zipfile

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
from comparing import assert_close
from internals import expected

from keras_nfnets.backend import keras_internals


class Outer(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.layers.Dense(2, name="inner")

    def call(self, x):
        return self.inner(x)


def small_model():
    inputs = keras.Input((3,), name="inputs")
    x = Outer(name="outer")(inputs)
    return keras.Model(inputs, keras.layers.Dense(1, name="last")(x), name="model")


def test_layers_inside_of_layers_are_listed():
    with expected(keras_internals.layers_of):
        names = [layer.name for layer in keras_internals.layers_of(small_model())]
        assert names == ["model", "inputs", "outer", "inner", "last"]
        outer = small_model().get_layer("outer")
        [inner] = keras_internals.layers_of(outer, include_self=False, recursive=False)
        assert inner.name == "inner"


def test_state_is_known_from_frozen_weights():
    with expected(keras_internals.state_variables):
        model = keras.Sequential(
            [
                keras.Input(batch_shape=(4, 3, 2)),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.5),
                keras.layers.SimpleRNN(1, stateful=True),
                keras.layers.Dense(1),
            ]
        )
        model.trainable = False
        names = {v.name for v in keras_internals.state_variables(model)}
        statistics = {"moving_mean", "moving_variance"}
        assert names == {*statistics, "seed_generator_state", "rnn_state"}


def test_writing_the_old_format_is_noticed(tmp_path):
    class Asking(keras.Model):
        @keras_internals.as_if_not_overridden
        def get_config(self):
            noticed.append(keras_internals.is_saving_as_h5())
            return super().get_config()

    noticed = []
    inputs = keras.Input((2,))
    model = Asking(inputs, keras.layers.Dense(1, name="last")(inputs))
    with expected(keras_internals.is_saving_as_h5):
        model.save(tmp_path / "m.h5")
        model.save(tmp_path / "m.keras")
        assert noticed == [True, False]
    with expected(keras_internals.as_if_not_overridden):
        renamed = keras.models.clone_model(
            model, call_function=lambda layer, *args, **kwargs: layer(*args, **kwargs)
        )
        assert [layer.name for layer in renamed.layers][-1] == "last"


def test_a_tensor_knows_the_call_that_gives_it():
    with expected(keras_internals.node_of):
        model = small_model()
        layer = model.get_layer("last")
        again = layer(model.get_layer("outer").output)
        for tensor in (model.output, again):
            assert keras_internals.operation_of(tensor) is layer
            node = keras_internals.node_of(tensor)
            assert node.operation is layer
            assert list(node.outputs) == [tensor]
            assert node.arguments.args == (model.get_layer("outer").output,)
            assert node.arguments.kwargs == {}
            assert list(node.input_tensors) == list(node.arguments.args)


def test_a_subclassed_model_knows_the_shapes_it_was_built_with():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    with expected(keras_internals.built_shapes):
        model = Subclassed()
        model(np.zeros((4, 3)))
        shape = keras_internals.built_shapes(model)
        if isinstance(shape, dict):
            [shape] = shape.values()
        assert tuple(shape) == (4, 3)


def test_layers_of_a_variable_are_found():
    with expected(keras_internals.layers_with):
        inputs = keras.Input((3,))
        model = keras.Model(inputs, Outer(name="outer")(inputs))
        other = keras.Model(inputs, keras.layers.Dense(1)(inputs))
        assert other.built
        kernel = model.trainable_variables[0]
        outer = model.get_layer("outer")
        found = [*map(id, keras_internals.layers_with([kernel]))]
        assert sorted(found) == sorted(map(id, (model, outer, outer.inner)))


def test_an_optimizer_knows_its_variables():
    with expected(keras_internals.optimized_variables):
        variables = [keras.Variable(np.zeros(n), name=f"v{n}") for n in (2, 3)]
        optimizer = keras.optimizers.SGD()
        optimizer.build(variables)
        found = keras_internals.optimized_variables(optimizer)
        assert [v.path for v in found] == [v.path for v in variables]
        for i, variable in enumerate(variables):
            assert keras_internals.variable_index(optimizer, variable) == i
            assert keras_internals.optimizes(optimizer, variable)
        assert not keras_internals.optimizes(optimizer, keras.Variable(np.zeros(2)))


def test_accumulated_gradients_and_calls_are_counted():
    with expected(keras_internals.accumulated_gradient):
        variable = keras.Variable(np.zeros(2, "float32"))
        optimizer = keras.optimizers.SGD(gradient_accumulation_steps=3)
        for calls in (1, 2):
            optimizer.apply([keras.ops.ones(2)], [variable])
            assert int(keras_internals.calls_of_apply(optimizer)) == calls
            sums = keras_internals.accumulated_gradient(optimizer, variable)
            assert keras.ops.convert_to_numpy(sums).tolist() == [calls, calls]
        assert int(optimizer.iterations) == 0


def test_variables_of_an_optimizer_can_be_deleted():
    with expected(keras_internals.delete_variables):
        optimizer = keras.optimizers.SGD()
        before = len(optimizer.variables)
        added = optimizer.add_variable((2,))
        keras_internals.delete_variables(optimizer, [added])
        assert len(optimizer.variables) == before


def test_excluded_variables_have_no_weight_decay():
    with expected(keras_internals.has_weight_decay):
        optimizer = keras.optimizers.SGD(weight_decay=0.1)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        kernel, bias = (keras.Variable(np.zeros(2), name=n) for n in ("kernel", "bias"))
        assert keras_internals.has_weight_decay(optimizer, kernel)
        assert not keras_internals.has_weight_decay(optimizer, bias)


def test_the_state_of_a_step_can_be_written_into_the_model():
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            keras_internals.synchronize(self.model)
            [kernel, _] = self.model.get_weights()
            seen.append(float(kernel[0, 0]))

    with expected(keras_internals.synchronize):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(
            np.ones((4, 1)), 5 * np.ones((4, 1)), 1, verbose=0, callbacks=[Watch()]
        )
        assert len(set(seen)) == 4  # each step changed it


def test_functional_models_have_a_class():
    with expected(keras_internals.replace_base):
        inputs = keras.Input((3,))
        outputs = keras.layers.Dense(1)(inputs)
        model = keras.Model(inputs, outputs)
        assert type(model) is keras_internals.FunctionalModel
        for args, kwargs, is_functional in [
            ((inputs, outputs), {}, True),
            ((), {"inputs": inputs, "outputs": [outputs]}, True),
            ((inputs,), {}, False),
            ((), {"name": "model"}, False),
        ]:
            assert keras_internals.is_functional_call(args, kwargs) is is_functional
        assert keras_internals.runs_its_graph(model)


def test_hooks_of_the_trainer_are_called():
    class Hooked(keras_internals.ModelWithHooks, keras_internals.FunctionalModel):
        called = ()

        def built_for_training(self):
            self.called += ("built_for_training",)

        def finished_logs(self, logs, metrics_of):
            self.called += ("finished_logs",)
            return {**super().finished_logs(logs, metrics_of), "more": 1.0}

    with expected(keras_internals.ModelWithHooks):
        inputs = keras.Input((1,))
        model = Hooked(inputs, keras.layers.Dense(1)(inputs))
        model.compile("sgd", "mse", metrics=["mae"])
        x = np.ones((4, 1))
        assert set(model.fit(x, x, verbose=0).history) == {"loss", "mae", "more"}
        assert "finished_logs" in model.called
        logs = model.evaluate(x, x, verbose=0, return_dict=True)
        logs.pop("more")
        assert model.logs_as_list(logs) == [logs["loss"], logs["mae"]]
        if keras.backend.backend() != "tensorflow":  # there only under a strategy
            assert "built_for_training" in model.called


def test_a_kernel_with_lora_is_the_sum_and_may_be_enabled_late():
    class Late(keras.layers.Dense):
        def build(self, shape):
            with keras_internals.lora_after(self):
                super().build(shape)
                self.more = self.add_weight(shape=(2,), name="more")

    with expected(keras_internals.kernel_of):
        layer = Late(2, lora_rank=1)
        layer.build((None, 3))
        random = np.random.default_rng(0)
        for variable in layer.variables:
            variable.assign(random.normal(size=variable.shape))
        x = random.normal(size=(4, 3)).astype("float32")
        kernel, bias, more = (
            keras.ops.convert_to_numpy(a)
            for a in (
                keras_internals.kernel_of(layer, "kernel"),
                layer.bias,
                layer.more,
            )
        )
        outputs = keras.ops.convert_to_numpy(layer(x))
        np.testing.assert_allclose(outputs, x @ kernel + bias, rtol=1e-5)
        assert more.shape == (2,)
        assert layer.lora_enabled and layer.lora_rank == 1


def test_operations_are_distinguished_and_renamed():
    with expected(keras_internals.kind_of):
        inputs = keras.Input((3,))
        kinds = {
            "Add": [inputs + inputs, keras.layers.Add()([inputs, inputs])],
            "Multiply": [inputs * inputs, keras.layers.Multiply()([inputs, inputs])],
        }
        for kind, tensors in kinds.items():
            for tensor in tensors:
                operation = keras_internals.operation_of(tensor)
                assert keras_internals.kind_of(operation) == kind
        keras_internals.rename(operation, "product")
        model = keras.Model(inputs, tensor)
        assert model.get_layer("product") is operation
        convnext = keras.applications.convnext.ConvNeXtTiny(
            weights=None, include_top=False, input_shape=(32, 32, 3)
        )
        found = [x for x in convnext.layers if keras_internals.is_layer_scale(x)]
        assert len(found) == 18  # one in each block
        assert keras_internals.is_keras_activation(keras.activations.gelu)
        assert not keras_internals.is_keras_activation(np.tanh)


def test_calls_can_be_intercepted():
    calls = []

    def intercept(operation, call):
        def called(*args, **kwargs):
            calls.append(operation.name)
            return call(*args, **kwargs)

        return called

    with expected(keras_internals.intercepted):
        model = small_model()
        x = np.ones((2, 3), "float32")
        before = model(x)
        layers = keras_internals.layers_of(model, include_self=False)
        with keras_internals.intercepted(layers[1:], intercept):
            assert_close(model(x), before, rtol=0)
        assert calls == ["outer", "inner", "last"]
        model(x)
        assert len(calls) == 3


def test_weights_in_memory_are_those_of_a_weight_file(tmp_path):
    with expected(keras_internals.weights_in_memory):
        model, again = small_model(), small_model()
        path = tmp_path / "m.weights.h5"
        path.write_bytes(keras_internals.weights_in_memory(model))
        again.load_weights(path)
        for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_variables_of_a_model_have_a_limit():
    original = keras.Variable.__init__
    with expected(keras_internals.limited_variables):
        # The kernels and biases of 3 x 2 and 2 x 1, in float32.
        with keras_internals.limited_variables(4 * 11):
            small_model()
        # Refused before it has memory.
        inputs = keras.Input((2**20,))
        with (
            pytest.raises(ValueError, match="more than 4,398,046,511,104 bytes"),
            keras_internals.limited_variables(2**20),
        ):
            keras.layers.Dense(2**20)(inputs)
        small_model()
    assert keras.Variable.__init__ is original


def test_limits_of_threads_do_not_mix():
    original = keras.Variable.__init__
    inside, leave = threading.Event(), threading.Event()

    def load():
        with keras_internals.limited_variables(100):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=load)
    thread.start()
    inside.wait(60)
    keras.Variable(np.zeros(1000))  # in this thread there is no limit
    threading.Timer(0.2, leave.set).start()
    with keras_internals.limited_variables(10_000):  # after the other one has ended
        pass
    thread.join()
    assert keras.Variable.__init__ is original


def test_a_weight_file_has_the_names_of_layers(tmp_path):
    names = keras_internals.WeightFile
    with expected(names):
        inputs = keras.Input((3,))
        last = keras.layers.Dense(1, dtype="bfloat16", name="last")
        model = keras.Model(inputs, last(Outer(name="outer")(inputs)))
        model.save(tmp_path / "m.keras")
        model.save_weights(tmp_path / "m.weights.h5")
        with zipfile.ZipFile(tmp_path / "m.keras") as archive:
            archive.extract(names.IN_ARCHIVE, tmp_path)
        for saved in (names.IN_ARCHIVE, "m.weights.h5"):
            with h5py.File(tmp_path / saved) as file:
                layers = {
                    layer[names.VARIABLES].attrs[names.LAYER_NAME]: layer
                    for layer in file[names.LAYERS].values()
                }
                inner = layers["outer"]["inner"][names.VARIABLES]
                assert inner.attrs[names.LAYER_NAME] == "inner"
                assert {k: v.shape for k, v in inner.items()} == {
                    "0": (3, 2),
                    "1": (2,),
                }
                kernel = layers["last"][names.VARIABLES]["0"]
                assert kernel.attrs[names.DTYPE] == "bfloat16"
                np.testing.assert_array_equal(
                    kernel[()].view(ml_dtypes.bfloat16).astype("float32"),
                    keras.ops.convert_to_numpy(keras.ops.cast(last.kernel, "float32")),
                )


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="the state is JAX's")
def test_the_loss_on_jax_is_stateless():
    with expected(keras_internals.jax_loss):
        model = small_model()
        model.compile(keras.optimizers.SGD(loss_scale_factor=8.0), "mse")
        x, y = np.ones((4, 3)), np.ones((4, 1))
        model.train_on_batch(x, y)
        state = keras_internals.JaxState(
            *(
                [variable.value for variable in variables]
                for variables in (
                    model.trainable_variables,
                    model.non_trainable_variables,
                    model.optimizer.variables,
                    model.metrics_variables,
                )
            )
        )
        scaled_loss, updates = keras_internals.jax_loss(model, state, x, y, None)
        loss = float(np.mean((np.asarray(model(x)) - y) ** 2))
        assert float(updates.loss) == pytest.approx(loss)
        assert float(scaled_loss) == pytest.approx(8 * loss)
        np.testing.assert_allclose(updates.y_pred, model(x))


def test_a_detached_tensor_has_the_mask():
    embed = keras.layers.Embedding(3, 2, mask_zero=True)
    x = embed(np.array([[1, 0]]))
    with expected(keras_internals.mask_of):
        assert keras_internals.mask_of(embed.embeddings) is None
        for tensor in (x, keras_internals.detached(x)):
            assert_close(keras_internals.mask_of(tensor), [[True, False]])


@pytest.mark.parametrize("image_data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("axis", [1, -1])
def test_constants_per_channel_fit_any_image_data_format(image_data_format, axis):
    before = keras.config.image_data_format()
    keras.config.set_image_data_format(image_data_format)
    try:
        factors = keras_internals.per_channel(np.arange(1.0, 4.0), axis, 3)
        y = keras.layers.Rescaling(factors, factors)(np.ones((2, 3, 3), "float32"))
    finally:
        keras.config.set_image_data_format(before)
    values = 2 * np.arange(1.0, 4.0).reshape((-1, 1) if axis == 1 else (-1,))
    assert_close(y, np.ones((2, 3, 3)) * values)
