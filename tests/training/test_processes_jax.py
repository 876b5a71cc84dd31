"""Two processes with a model of `keras.distribution` train as one (JAX).

As a command, this file is one of the processes:

    python test_processes_jax.py INDEX COUNT ADDRESS FOLDER DISTRIBUTION
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_nfnets
from keras_nfnets.training import Checkpoints

DEVICES_PER_PROCESS = 2


def create_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = keras_nfnets.WSConv2D(8, 3, activation="relu")(inputs)
    block = keras_nfnets.NFBlock(
        8, group_size=4, stochastic_depth_rate=0.3, skip_gain_initializer="ones"
    )
    x = keras.layers.GlobalAveragePooling2D()(block(x))
    model = keras_nfnets.AGCModel(inputs, keras.layers.Dense(10, name="predictions")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, loss, clip_factor=0.001, ema_decay=0.9)
    return model


def train(model, index=0, count=1, **options):
    """Train on a part of each batch of 16; return the history."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 8, 8, 3)).astype("float32")
    y = rng.integers(0, 10, 32)
    here = np.arange(32).reshape(2, count, -1)[:, index].ravel()
    return model.fit(
        x[here], y[here], 16 // count, verbose=0, shuffle=False, **options
    ).history


def distribution(name):
    devices = keras.distribution.list_devices()
    if name == "data":
        # Each process has its own part of the data.
        return keras.distribution.DataParallel(
            devices=devices, auto_shard_dataset=False
        )
    # Each process has its own part of kernels, and all data.
    mesh = keras.distribution.DeviceMesh((1, len(devices)), ["batch", "model"], devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*conv.*/kernel"] = (None, None, None, "model")
    return keras.distribution.ModelParallel(
        layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False
    )


def work(index, count, address, folder, name):
    """Train for an epoch, and go on with a new model for another."""
    keras.distribution.initialize(",".join([address] * count), count, index)
    devices = keras.distribution.list_devices()
    assert len(devices) == count * DEVICES_PER_PROCESS
    share = (index, count) if name == "data" else ()
    for epochs in (1, 2):
        keras.utils.clear_session()  # names are those of a new process
        keras.distribution.set_distribution(distribution(name))
        model = create_model()
        checkpoints = Checkpoints(folder / "checkpoints", {}, write=index == 0)
        orbax = keras.callbacks.OrbaxCheckpoint(str(folder / "orbax"))
        done, _ = checkpoints.restore(model)
        train(
            model,
            *share,
            initial_epoch=done,
            epochs=epochs,
            callbacks=[checkpoints, orbax],
        )
    with model.averaged_weights():
        try:
            model.save_weights(folder / f"{index}.weights.h5")
        except ValueError as error:
            assert name == "kernels"
            assert "which have only parts of them" in str(error)
    print(json.dumps(checkpoints.history))


def restored(folder):
    model = create_model()
    assert Checkpoints(folder / "checkpoints", {}).restore(model)[0] == 2
    return model


def loaded(folder):
    keras.utils.clear_session(free_memory=False)
    # Keras reads an Orbax checkpoint onto the devices of a distribution.
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    try:
        model = create_model()
        model.load_weights(folder / "orbax")
    finally:
        keras.distribution.set_distribution(None)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data", "kernels"])
def test_two_processes_train_and_resume_as_one(name, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = "127.0.0.1:{1}".format(*listener.getsockname())
    flags = f"--xla_force_host_platform_device_count={DEVICES_PER_PROCESS}"
    environment = {**os.environ, "XLA_FLAGS": flags, "KERAS_BACKEND": "jax"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(index), "2", address, str(tmp_path), name],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    one = create_model()
    expected = train(one, epochs=2)
    assert expected["clip_share"][-1] > 0.5
    for process in processes:
        out, _ = process.communicate()
        assert process.returncode == 0
        history = json.loads(out.splitlines()[-1])
        for metric, values in expected.items():
            np.testing.assert_allclose(history[metric], values, rtol=1e-6)
    for model in (restored(tmp_path), loaded(tmp_path)):
        for variable, other in zip(
            [*model.trainable_variables, *model.optimizer.variables],
            [*one.trainable_variables, *one.optimizer.variables],
        ):
            assert_close(variable, other)
    files = sorted(tmp_path.glob("*.weights.h5"))
    assert len(files) == (2 if name == "data" else 0)
    for file in files:
        model.load_weights(file)
        with one.averaged_weights():
            for variable, other in zip(
                model.trainable_variables, one.trainable_variables
            ):
                assert_close(variable, other)


def assert_close(variable, other):
    scale = max(np.abs(other.numpy()).max(), 1e-3)
    difference = np.abs(variable.numpy() - other.numpy()).max()
    assert difference < 2e-6 * scale, variable.path


if __name__ == "__main__":
    index, count, address, folder, name = sys.argv[1:]
    work(int(index), int(count), address, pathlib.Path(folder), name)
