"""`keras.distribution.ModelParallel`: kernels divided among eight devices (JAX)."""

import collections
import contextlib
import re

import jax
import keras
import numpy as np
import pytest
from comparing import assert_close
from jax.sharding import NamedSharding, PartitionSpec

import keras_nfnets

# Axes of kernels that are divided. `NFBlock`s multiply by kernels of alternating layouts
# in "alternating", as one does to divide activations, too.
LAYOUTS = {
    "outputs": {
        r".*conv\w*/kernel": (None, None, None, "model"),
        r".*(fc\d|predictions)/kernel": (None, "model"),
    },
    "inputs": {
        r".*(conv1|conv1b|conv2|final_conv)/kernel": (None, None, "model", None),
        r".*(fc\d|predictions)/kernel": ("model", None),
    },
    "alternating": {
        r".*(conv0|conv1b|final_conv|shortcut_conv)/kernel": (
            None,
            None,
            None,
            "model",
        ),
        r".*(conv1|conv2)/kernel": (None, None, "model", None),
        r".*(fc0)/kernel": (None, "model"),
        r".*(fc1|predictions)/kernel": ("model", None),
    },
}
OPTIONS = {
    "momentum": lambda: {"optimizer": keras.optimizers.SGD(0.1, momentum=0.9)},
    "all at once": lambda: {
        "optimizer": keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
        "sam_rho": 0.05,
        "ema_decay": 0.9,
        "skip_nonfinite": True,
    },
}


@contextlib.contextmanager
def divided(mesh_shape, layout):
    """Context in which kernels are divided over the second axis of a mesh of devices.

    Without a shape, models are on one device.
    """
    distribution = None
    if mesh_shape:
        devices = keras.distribution.list_devices()
        mesh = keras.distribution.DeviceMesh(mesh_shape, ["batch", "model"], devices)
        layouts = keras.distribution.LayoutMap(mesh)
        for pattern, axes in LAYOUTS[layout].items():
            layouts[pattern] = axes
        distribution = keras.distribution.ModelParallel(
            layout_map=layouts, batch_dim_name="batch"
        )
    keras.distribution.set_distribution(distribution)
    try:
        yield
    finally:
        keras.distribution.set_distribution(None)


def compiled_network(options):
    keras.utils.set_random_seed(0)
    model = keras_nfnets.NFNet(
        (1,),
        (16,),
        group_size=8,
        stem_width=16,
        classes=16,
        classifier_activation=None,
        drop_rate=0.2,
        stochastic_depth_rate=0.2,
        input_shape=(8, 8, 3),
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, clip_factor=0.001, **OPTIONS[options]())
    return model


def examples():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 8, 8, 3)).astype("float32")
    return x, rng.integers(0, 16, 32)


def train(options, mesh_shape=None, layout=None):
    with divided(mesh_shape, layout):
        model = compiled_network(options)
        x, y = examples()
        history = model.fit(x, y, 16, epochs=2, verbose=0, shuffle=False).history
    return history, model


@pytest.fixture(scope="module")
def on_one_device():
    """Results by options, trained when they are needed."""
    results = {}

    def result(options):
        if options not in results:
            results[options] = train(options)
        return results[options]

    return result


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("mesh_shape", "layout", "options"),
    [
        ((2, 4), "alternating", "momentum"),
        pytest.param((1, 8), "outputs", "momentum", marks=SLOW),
        pytest.param((2, 4), "outputs", "momentum", marks=SLOW),
        pytest.param((8, 1), "outputs", "momentum", marks=SLOW),
        pytest.param((1, 8), "inputs", "momentum", marks=SLOW),
        pytest.param((2, 4), "alternating", "all at once", marks=SLOW),
    ],
)
def test_divided_kernels_are_trained_as_on_one_device(
    mesh_shape, layout, options, on_one_device
):
    expected, one = on_one_device(options)
    assert expected["clip_share"][-1] > 0.5
    history, model = train(options, mesh_shape, layout)
    kernels = [v.value for v in model.trainable_variables if v.name == "kernel"]
    parts = {k.size // k.addressable_shards[0].data.size for k in kernels}
    assert max(parts) == mesh_shape[1]
    assert set(history) == set(expected)
    for name, values in history.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, err_msg=name)
    for variable, other in zip(model.variables, one.variables):
        scale = max(np.abs(other.numpy()).max(), 1e-3)  # gains and biases start at zero
        assert_close(variable.numpy() / scale, other.numpy() / scale, atol=2e-6)


def collectives(program):
    """Count the collective operations of a compiled program by name."""
    names = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    pattern = rf"= [^=]*? ({names})(?:-start)?\("
    return collections.Counter(re.findall(pattern, program.as_text()))


@pytest.mark.parametrize(
    ("axes", "sums"),
    [((None, None, None, "model"), 0), ((None, None, "model", None), 1)],
)
def test_norms_of_divided_kernels_gather_nothing(axes, sums):
    mesh = jax.sharding.Mesh(np.reshape(jax.devices(), (2, 4)), ("batch", "model"))
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    layer = keras_nfnets.WSConv2D(32, 3)
    layer.build((None, 8, 8, 16))

    def clip(weights, gradient):
        with keras.StatelessScope([(layer.kernel, weights)]):
            return keras_nfnets.adaptive_clip([gradient], [layer.kernel])

    def standardize(weights, gradient):
        def kernel(weights):
            with keras.StatelessScope([(layer.kernel, weights)]):
                return layer.standardized_kernel()

        outputs, backward = jax.vjp(kernel, weights)
        return outputs, backward(gradient)

    rng = np.random.default_rng(0)
    arrays = [
        jax.device_put(rng.normal(size=(3, 3, 16, 32)).astype("float32"), sharding)
        for _ in range(2)
    ]
    for function in (clip, standardize):
        program = jax.jit(function).lower(*arrays).compile()
        found = collectives(program)
        assert set(found) <= {"all-reduce"}
        assert bool(found) == bool(sums)
        for result in jax.tree.leaves(program(*arrays)):
            assert result.sharding == sharding
