"""Serving of a folded network by `mlflow models serve`, as docs/tools/tracking.md says.

It needs MLflow: as a program, in an environment that has it.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import keras
import mlflow
import numpy as np

import keras_nfnets

URI = "sqlite:///mlflow.db"
TIMEOUT = 300


def logged():
    """Log a folded network; return the network and the address of what was logged."""
    model = keras_nfnets.NFResNet((1, 1), 1, classes=10, input_shape=(8, 8, 1))
    mlflow.set_tracking_uri(URI)
    with mlflow.start_run():
        folded = keras_nfnets.fold(model)
        return model, mlflow.keras.log_model(folded, name="folded").model_uri


def wait(server, url):
    """Wait until a server answers."""
    end = time.monotonic() + TIMEOUT
    while True:
        assert server.poll() is None, "the server has ended"
        try:
            return urllib.request.urlopen(url).close()
        except OSError:
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.5)


def main():
    keras.utils.set_random_seed(0)
    model, model_uri = logged()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager=local"]
    command += [f"--model-uri={model_uri}", f"--port={port}"]
    # MLflow starts `uvicorn`, which an activated environment has in its path.
    scripts = str(pathlib.Path(sys.executable).parent)
    path = os.pathsep.join([scripts, os.environ["PATH"]])
    environment = {**os.environ, "MLFLOW_TRACKING_URI": URI, "PATH": path}
    # The server has processes of its own, which end with it.
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        wait(server, f"http://127.0.0.1:{port}/ping")
        x = np.random.default_rng(0).uniform(-1, 1, (5, 8, 8, 1)).astype("float32")
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": x.tolist()}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            predicted = json.load(response)["predictions"]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(predicted, expected, atol=1e-5)


if __name__ == "__main__":
    main()
