"""Models whose kernels `keras.distribution.ModelParallel` divides among eight devices."""

import contextlib

import keras
import numpy as np

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

    Without a shape, models are on one device. Names are those of a new process.
    """
    keras.utils.clear_session(free_memory=False)
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


def compiled(model, options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, clip_factor=0.001, **OPTIONS[options]())
    return model


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
    return compiled(model, options)


def compiled_block(options):
    """Return a smaller model, of one `NFBlock`."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = keras_nfnets.WSConv2D(16, 3, activation="relu", name="stem_conv0")(inputs)
    block = keras_nfnets.NFBlock(
        16, group_size=8, stochastic_depth_rate=0.2, skip_gain_initializer="ones"
    )
    x = keras.layers.GlobalAveragePooling2D()(block(x))
    x = keras.layers.Dropout(0.2)(x)
    outputs = keras.layers.Dense(16, name="predictions")(x)
    return compiled(keras_nfnets.AGCModel(inputs, outputs), options)


def examples(number=32):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(number, 8, 8, 3)).astype("float32")
    return x, rng.integers(0, 16, number)


def most_parts(model):
    """Return the largest number of parts into which a kernel of a model is divided."""
    kernels = [v.value for v in model.trainable_variables if v.name == "kernel"]
    return max(k.size // k.addressable_shards[0].data.size for k in kernels)
