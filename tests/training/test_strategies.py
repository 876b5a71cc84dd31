"""Strategies by name, and several local worker processes (TensorFlow)."""

import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from keras_nfnets import training
from keras_nfnets.training import strategies


def test_strategies_by_name(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("TPU_NAME", raising=False)
    for name in ("auto", "none"):
        strategy = training.strategy(name)
        assert strategy.num_replicas_in_sync == 1
        assert training.is_chief(strategy)
        assert not training.has_workers(strategy)
    mirrored = training.strategy("mirrored")
    # The number of devices that conftest.py creates.
    assert isinstance(mirrored, tf.distribute.MirroredStrategy)
    assert mirrored.num_replicas_in_sync == 4
    assert training.is_chief(mirrored)


SLURM = {
    "SLURM_JOB_ID": "123",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NODELIST": "n[9-10],gpu",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURMD_NODENAME": "n9",
}


def slurm_task(monkeypatch, **variables):
    """Set the variables of a task of a Slurm step; None removes one."""
    monkeypatch.setenv("TF_CONFIG", "")
    monkeypatch.delenv("TPU_NAME", raising=False)
    for name, value in {**SLURM, **variables}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("node", "local", "procid", "address"),
    [
        ("n9", "0", "0", "n9:22300"),
        ("n9", "1", "1", "n9:22301"),
        ("n10", "0", "2", "n10:22300"),
        ("gpu", "0", "4", "gpu:22300"),
        ("n10", "0", "1", "n10:22300"),  # --distribution=cyclic
    ],
)
def test_each_task_of_slurm_is_the_worker_on_its_own_node(
    node, local, procid, address, monkeypatch
):
    """Even where the order of Slurm's tasks is not that of the addresses."""
    slurm_task(
        monkeypatch, SLURM_PROCID=procid, SLURM_LOCALID=local, SLURMD_NODENAME=node
    )
    strategies._set_tf_config_from_slurm(tf)
    config = json.loads(os.environ["TF_CONFIG"])
    workers = config["cluster"]["worker"]
    assert workers[config["task"]["index"]] == address
    assert sorted(workers) == sorted(
        ["gpu:22300", "n10:22300", "n10:22301", "n9:22300", "n9:22301"]
    )


@pytest.mark.parametrize("tasks", [None, "1"])
def test_one_task_of_slurm_is_not_a_worker(tasks, monkeypatch):
    """As in a batch script without `srun`, or in an interactive allocation."""
    slurm_task(monkeypatch, SLURM_STEP_NUM_TASKS=tasks)
    assert not training.has_workers(training.strategy("auto"))
    assert not os.environ["TF_CONFIG"]
    with pytest.raises(ValueError, match="TF_CONFIG must list .* srun"):
        training.strategy("multi_worker")


@pytest.mark.parametrize("name", ["auto", "multi_worker"])
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *((variable, None) for variable in SLURM if variable != "SLURM_STEP_NUM_TASKS"),
        ("SLURM_JOB_ID", "x"),
        ("SLURM_STEP_NUM_TASKS", "4"),
        ("SLURM_STEP_NUM_TASKS", "0"),
        ("SLURM_STEP_NUM_TASKS", "two"),
        ("SLURM_STEP_NODELIST", "n[9-"),
        ("SLURM_STEP_NODELIST", "n9"),
        ("SLURM_STEP_TASKS_PER_NODE", "2(x2"),
        ("SLURM_LOCALID", "2"),
        ("SLURMD_NODENAME", "elsewhere"),
    ],
)
def test_incomplete_variables_of_slurm_are_refused(variable, value, name, monkeypatch):
    slurm_task(monkeypatch, **{variable: value})
    with pytest.raises(ValueError, match="several tasks.*with srun.*Received") as error:
        training.strategy(name)
    assert f"'{variable}': {value!r}" in str(error.value)
    assert not os.environ["TF_CONFIG"]


@pytest.mark.parametrize("name", ["Mirrored", "", None, 3])
def test_an_unknown_strategy_is_refused(name):
    with pytest.raises(ValueError, match="must be one of 'auto', 'none'"):
        training.strategy(name)


@pytest.mark.parametrize(
    "config",
    [
        None,
        "",
        "{",
        "[]",
        '{"cluster": {"worker": ["localhost:1"]}}',
        '{"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker"}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": -1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "boss", "index": 0}}',
        '{"cluster": ["a:1"], "task": {"type": "worker", "index": 0}}',
    ],
)
def test_workers_need_a_complete_tf_config(config, monkeypatch):
    if config is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match="TF_CONFIG must list .* Received: TF_CONFIG="):
        training.strategy("multi_worker")


def test_a_missing_tpu_is_an_error(monkeypatch):
    monkeypatch.setenv("TPU_NAME", "nosuch")
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name in ("tpu", "auto"):
        with pytest.raises(ValueError, match="There is no TPU here"):
            training.strategy(name)


# Program that trains, evaluates, predicts and prints the results, with callbacks,
# validation and metrics, and an epoch that does not divide evenly among the workers.
WORKER = """
import json
import numpy as np
import tensorflow as tf
import keras_nfnets, keras
from keras_nfnets import training

strategy = training.strategy("auto")
random = np.random.default_rng(0)
x = random.normal(size=(31, 8, 8, 1)).astype("float32")
y = np.eye(4, dtype="float32")[random.integers(0, 4, 31)]
with strategy.scope():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 1))
    z = keras_nfnets.WSConv2D(8, 3, activation="relu", name="stem_conv")(inputs)
    z = keras_nfnets.StochasticDepth(0.2, seed=5)(z)
    z = keras.layers.GlobalAveragePooling2D()(z)
    z = keras.layers.Dense(4, activation="softmax", name="predictions")(z)
    model = keras_nfnets.AGCModel(inputs, z)
    optimizer = keras.optimizers.SGD(
        0.1, momentum=0.9, gradient_accumulation_steps=2
    )
    model.compile(
        optimizer, "categorical_crossentropy", metrics=["accuracy"], ema_decay=0.9,
        skip_nonfinite=True,
    )
train = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(31, seed=3).batch(8)
test = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)
seen = []
seen_by = keras.callbacks.LambdaCallback(
    on_train_batch_end=lambda batch, logs: seen.append(float(logs["loss"]))
)
history = model.fit(
    train, epochs=3, validation_data=test, verbose=0,
    callbacks=[training.TrainingLog(31), seen_by],
).history
del history["images_per_second"]
result = {
    "chief": training.is_chief(strategy),
    "replicas": strategy.num_replicas_in_sync,
    "history": history,
    "batches": len(seen),
    "evaluated": model.evaluate(test, verbose=0, return_dict=True),
    "predicted": model.predict(x, batch_size=8, verbose=0).tolist(),
    "weights": [w.tolist() for w in model.get_weights()],
}
print("RESULT", json.dumps(result, default=float))
"""


def addresses(count):
    """Return `count` unused local addresses."""
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("localhost", 0))
    names = [f"localhost:{listener.getsockname()[1]}" for listener in sockets]
    for listener in sockets:
        listener.close()
    return names


def unused(port):
    """Whether nothing listens on a local port."""
    with socket.socket() as listener:
        return listener.connect_ex(("localhost", port)) != 0


def start(workers, index, *arguments, variables=None, **options):
    """Start a process as one of several workers, or as the only one."""
    config = {
        "cluster": {"worker": workers},
        "task": {"type": "worker", "index": index},
    }
    environment = {**os.environ, "TF_CONFIG": json.dumps(config), **(variables or {})}
    if not workers:
        del environment["TF_CONFIG"]
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def results(processes):
    found = []
    for process in processes:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-3000:]
        found.append(json.loads(re.search("RESULT (.*)", out)[1]))
    return found


@pytest.mark.slow
def test_workers_compute_what_one_process_computes(monkeypatch, tmp_path):
    # (Batches of 7 do not divide evenly.)
    count, hosts = 2, addresses(2)
    processes = [start(hosts, index, "-c", WORKER) for index in range(count)]
    monkeypatch.delenv("TF_CONFIG", raising=False)
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    expected = runpy.run_path(script)["result"]
    assert expected["chief"] and expected["replicas"] == 1
    assert expected["batches"] == 12
    workers = results(processes)
    assert [w["chief"] for w in workers] == [True] + [False] * (count - 1)
    for worker in workers:
        assert worker["replicas"] == count
        assert worker["batches"] == expected["batches"]
        assert worker["history"].keys() == expected["history"].keys()
        assert "clip_share_stem" in worker["history"]
        for part in ("history", "evaluated"):
            for name, value in expected[part].items():
                np.testing.assert_allclose(
                    worker[part][name], value, 2e-5, 1e-6, err_msg=name
                )
        predicted = np.array(worker["predicted"])
        np.testing.assert_allclose(predicted, expected["predicted"], 1e-4)
        for a, b in zip(worker["weights"], expected["weights"]):
            scale = max(np.abs(b).max(), 1e-3)
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * scale)


def test_two_tasks_of_slurm_are_two_workers():
    """Real processes, with the variables of `srun --ntasks=2` on this machine."""
    code = """
import json, os
from keras_nfnets import training
strategy = training.strategy("auto")
print("RESULT", json.dumps([
    training.is_chief(strategy), training.has_workers(strategy),
    strategy.num_replicas_in_sync, json.loads(os.environ["TF_CONFIG"])["task"]["index"],
]))
"""
    job = next(
        job
        for job in range(os.getpid(), os.getpid() + 100)
        if all(unused(strategies.SLURM_PORT + job % 100 * 100 + i) for i in range(2))
    )
    processes = []
    for index in range(2):
        variables = {
            "SLURM_JOB_ID": str(job),
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_TASKS_PER_NODE": "2",
            "SLURM_PROCID": str(index),
            "SLURM_LOCALID": str(index),
            "SLURMD_NODENAME": "localhost",
        }
        processes.append(start([], 0, "-c", code, variables=variables))
    assert results(processes) == [[True, True, 2, 0], [False, True, 2, 1]]


def test_ctrl_c_reaches_a_worker_that_waits():
    code = "from keras_nfnets import training; training.strategy('multi_worker')"
    process = start([*addresses(1), "localhost:1"], 0, "-c", code)
    line = ""
    while "Waiting for all workers" not in line:
        line = process.stderr.readline()
    time.sleep(1)  # so that TensorFlow is waiting
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT


@pytest.mark.slow
def test_a_worker_stops_waiting_for_the_others():
    code = (
        "from keras_nfnets import training;"
        "training.strategy('multi_worker', start_timeout=2)"
    )
    hosts = addresses(2)
    processes = [start([hosts[0], "localhost:1"], 0, "-c", code)]
    processes += [start(["localhost:1", hosts[1]], 1, "-c", code)]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "Waiting for all workers of TF_CONFIG" in error
        assert "this process ends after 2 seconds" in error
