"""Script that writes `compiled.keras`, `converted.keras` and their outputs.

The files go next to this one. `run` is the folder of a run that was killed when its first
epoch was saved: `python tests/one_block.py train` with the flags in `test_saved.py`.
"""

import pathlib

import keras
import numpy as np

import keras_nfnets

HERE = pathlib.Path(__file__).parent
X = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32")
Y = np.eye(3, dtype="float32")[np.arange(8) % 3]


def compiled():
    inputs = keras.Input((16, 16, 3))
    x = keras_nfnets.WSConv2D(8, 3, strides=2, name="stem")(inputs)
    for name, options in {
        "block1": {
            "strides": 2,
            "stochastic_depth_rate": 0.1,
            "beta": 1.0,
            "attention": "se",
            "activation": "silu",
        },
        "block2": {
            "convention": "timm",
            "beta": 0.9,
            "attention": "eca",
            "activation": "gelu",
        },
    }.items():
        x = keras_nfnets.NFBlock(
            16, bottleneck_filters=8, group_size=4, alpha=0.2, name=name, **options
        )(x)
    x = keras_nfnets.ScaledActivation("gelu", name="act")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(3, activation="softmax", name="predictions")(x)
    model = keras_nfnets.AGCModel(inputs, x)
    schedule = keras_nfnets.training.warmup_cosine(
        0.1, batch_size=8, steps_per_epoch=2, epochs=3, warmup_epochs=1
    )
    model.compile(
        keras_nfnets.SGDAGC(schedule, momentum=0.9, weight_decay=2e-5),
        "categorical_crossentropy",
        metrics=["accuracy"],
        ema_decay=0.9,
        sam_rho=0.05,
        skip_nonfinite=True,
    )
    model.fit(X, Y, batch_size=4, verbose=0)
    model.save(HERE / "compiled.keras")
    results = model.evaluate(X, Y, verbose=0, return_dict=True)
    predictions = model.predict(X, verbose=0)
    again = keras.saving.load_model(HERE / "compiled.keras")
    again.train_on_batch(X, Y)
    np.savez_compressed(
        HERE / "compiled.npz",
        predictions=predictions,
        after_a_step=again.predict(X, verbose=0),
        loss=results["loss"],
        ema_loss=results["ema_loss"],
    )


def converted():
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    x = shortcut = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.Conv2D(8, 1, use_bias=False)(x)
    x = keras.layers.Add()([shortcut, keras.layers.BatchNormalization()(x)])
    x = keras.layers.GlobalAveragePooling2D()(x)
    network = keras.Model(inputs, keras.layers.Dense(3, name="predictions")(x))
    network.compile("sgd", "mse")
    network.fit(X, Y, epochs=2, verbose=0)
    model = keras_nfnets.normalizer_free(network, X)
    for variable in model.trainable_variables:
        random = np.random.default_rng(len(variable.shape))
        variable.assign(random.normal(0, 0.3, variable.shape))
    model.save(HERE / "converted.keras")
    predictions = model.predict(X, verbose=0)
    np.savez_compressed(HERE / "converted.npz", predictions=predictions)


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    compiled()
    converted()
