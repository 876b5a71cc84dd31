"""Two processes with a model of `keras.distribution` train as one (JAX).

As a command, this file is one of the processes:

    python test_processes_jax.py INDEX COUNT ADDRESS WEIGHTS_FILE
"""

import json
import os
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_nfnets

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
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, clip_factor=0.001)
    return model


def train(index, count):
    """Train on a part of each batch of 16; return the history and the model."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 8, 8, 3)).astype("float32")
    y = rng.integers(0, 10, 32)
    here = np.arange(32).reshape(2, count, -1)[:, index].ravel()
    model = create_model()
    history = model.fit(
        x[here], y[here], 16 // count, epochs=2, verbose=0, shuffle=False
    ).history
    return history, model


def work(index, count, address, weights_file):
    keras.distribution.initialize(",".join([address] * count), count, index)
    devices = keras.distribution.list_devices()
    assert len(devices) == count * DEVICES_PER_PROCESS
    keras.distribution.set_distribution(
        # Each process has its own part of the data.
        keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    )
    history, model = train(index, count)
    model.save_weights(weights_file)
    print(json.dumps(history))


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = "127.0.0.1:{1}".format(*listener.getsockname())
    flags = f"--xla_force_host_platform_device_count={DEVICES_PER_PROCESS}"
    environment = {**os.environ, "XLA_FLAGS": flags, "KERAS_BACKEND": "jax"}
    paths = [tmp_path / f"{index}.weights.h5" for index in (0, 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(index), "2", address, str(path)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index, path in enumerate(paths)
    ]
    expected, one = train(0, 1)
    assert expected["clip_share"][-1] > 0.5
    loaded = create_model()
    loaded.optimizer.build(loaded.trainable_variables)
    for process, path in zip(processes, paths):
        out, _ = process.communicate()
        assert process.returncode == 0
        history = json.loads(out.splitlines()[-1])
        for name, values in expected.items():
            np.testing.assert_allclose(history[name], values, rtol=1e-6, err_msg=name)
        loaded.load_weights(path)
        for variable, other in zip(loaded.trainable_variables, one.trainable_variables):
            scale = max(np.abs(other.numpy()).max(), 1e-3)
            difference = np.abs(variable.numpy() - other.numpy()).max()
            assert difference < 2e-6 * scale, variable.path


if __name__ == "__main__":
    index, count, *others = sys.argv[1:]
    work(int(index), int(count), *others)
