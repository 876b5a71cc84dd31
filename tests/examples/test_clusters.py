"""Scripts that start runs under Slurm and Kubernetes."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import keras
import pytest
import yaml
from sklearn.datasets import load_digits

import keras_nfnets  # noqa: F401  (its layers are needed to load models)

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
# One device per process, compiled quickly.
FLAGS = "--xla_backend_optimization_level=0"


@pytest.mark.parametrize("name", ["train", "train_jax"])
def test_bash_can_read_the_scripts_of_slurm(name):
    subprocess.run(["bash", "-n", EXAMPLES / "slurm" / f"{name}.sbatch"], check=True)


@pytest.mark.parametrize("name", ["train", "train_jax"])
def test_each_pod_finds_the_others(name):
    """Addresses in the environment are those that Kubernetes gives to the pods."""
    text = (EXAMPLES / "kubernetes" / f"{name}.yaml").read_text()
    service, job = yaml.safe_load_all(text)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == 2
    # Names of pods exist in a headless service that selects them.
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    hosts = [f"{job['metadata']['name']}-{i}.{pod['subdomain']}" for i in range(2)]

    [container] = pod["containers"]
    index, *others = container["env"]
    # An annotation of the pod, and first: $(NAME) refers to earlier entries.
    assert index["name"] == "JOB_COMPLETION_INDEX" and "valueFrom" in index
    values = {
        e["name"]: e["value"].replace("$(JOB_COMPLETION_INDEX)", "1") for e in others
    }
    if name == "train":
        config = json.loads(values["TF_CONFIG"])
        assert config["task"] == {"type": "worker", "index": 1}
        assert config["cluster"] == {"worker": [f"{host}:2222" for host in hosts]}
    else:
        assert values["KERAS_DISTRIBUTION_JOB_ADDRESSES"] == f"{hosts[0]}:2222"
        assert values["KERAS_DISTRIBUTION_NUM_PROCESSES"] == "2"
        assert values["KERAS_DISTRIBUTION_PROCESS_ID"] == "1"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def unused_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return str(listener.getsockname()[1])


def under_slurm(index, port):
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "JAX_COORDINATOR_PORT": port,  # Slurm's would follow from the job
    }


def under_kubernetes(index, port):
    return {
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"localhost:{port}",
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
        "KERAS_DISTRIBUTION_PROCESS_ID": str(index),
    }


def start(folder, environment):
    """Start two processes of train_jax.py with one device each."""
    port = unused_port()
    command = [sys.executable, EXAMPLES / "train_jax.py", f"--output_dir={folder}"]
    return [
        subprocess.Popen(
            [*command, "--epochs=3"],
            env={**os.environ, "XLA_FLAGS": FLAGS, **environment(index, port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


@pytest.mark.slow
def test_processes_of_jax_train_together_and_resume(tmp_path):
    """First started by Slurm, and killed; then as by Kubernetes."""
    processes = start(tmp_path, under_slurm)
    saved = tmp_path / "checkpoints" / "keras_nfnets-epoch-000001.npz"
    while not saved.exists():
        assert processes[0].poll() is None, processes[0].communicate()
        time.sleep(0.05)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "model.keras").exists()

    processes = start(tmp_path, under_kubernetes)
    (first, error), (second, _) = [p.communicate(timeout=600) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], error[-3000:]
    assert "Epoch 1/3" not in first and "Epoch 3/3" in first
    assert "Epoch" not in second and "accuracy" not in second
    # Half of the digits would not suffice for 22 steps per epoch.
    assert first.count("22/22") == 2
    model = keras.saving.load_model(tmp_path / "model.keras")
    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1)[-360:].repeat(4, 1).repeat(4, 2) / 8 - 1
    accuracy = (model.predict(x, verbose=0).argmax(-1) == y[-360:]).mean()
    assert accuracy > 0.7
    said = float(first.rpartition("Test accuracy:")[2])
    assert said == pytest.approx(accuracy, abs=1e-3)
