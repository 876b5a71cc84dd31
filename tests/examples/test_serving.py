"""The server of examples/serving.py, in a process of its own."""

import http.client
import io
import json
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from keras_nfnets import data, runs

PROGRAM = pathlib.Path(__file__).parents[2] / "examples" / "serving.py"


@pytest.fixture(scope="module")
def classifier():
    return runs.load_classifier("digits")


@pytest.fixture(scope="module")
def folder(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a server")
    classifier.export(folder / "digits.onnx", preprocessing=True)
    classifier.export(folder / "prepared.onnx")
    Image.fromarray(data.load_digits()[1][0][0]).resize((40, 30)).save(folder / "7.png")
    return folder


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, PROGRAM, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# Processes ignore the signal if the tests run in the background of a shell.
HEEDS_CTRL_C = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_images_are_classified_and_other_requests_refused(folder, classifier):
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDS_CTRL_C, PROGRAM, "digits.onnx", "--port=0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = re.search(r"http://127.0.0.1:(\d+)/", process.stdout.readline())[1]
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)

        def post(content, length=None):
            headers = {} if length is None else {"Content-Length": length}
            connection.request("POST", "/", content, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

        [expected] = classifier.predict_classes([folder / "7.png"])
        status, answer = post((folder / "7.png").read_bytes())
        assert status == 200
        assert [x["class"] for x in answer["classes"]] == [x.name for x in expected]
        found = [x["probability"] for x in answer["classes"]]
        np.testing.assert_allclose(found, [x.probability for x in expected], atol=0.02)
        assert post(b"no image")[0] == 400
        gif = io.BytesIO()
        Image.new("RGB", (8, 8)).save(gif, "gif")
        status, answer = post(gif.getvalue())
        assert status == 400 and "JPEG, PNG, WEBP" in answer["error"]
        # A line, too: resizing takes memory in proportion to its length.
        for size in [(5000, 5000), (1, 100_000)]:
            large = io.BytesIO()
            Image.new("1", size).save(large, "png")
            status, answer = post(large.getvalue())
            assert status == 400 and "pixels" in answer["error"]
        assert post(b"", str(2**40))[0] == 413
        assert post(b"", "-1")[0] == 411
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.status == 405 and "POST" in json.loads(response.read())["error"]
        # After all this, it still answers.
        assert post((folder / "7.png").read_bytes())[0] == 200
    finally:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert out.endswith("Ended.\n") and process.returncode == 0


def test_images_are_decoded_as_by_the_package(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    import serving

    rng = np.random.default_rng(0)
    turned, half = Image.Exif(), rng.integers(0, 256, (10, 30, 4), "uint8")
    turned[0x0112] = 6  # orientation
    rgb, gray = Image.fromarray(half[..., :3]), Image.fromarray(half[..., 0])
    for image, options in [
        (rgb, {}),
        (rgb, {"exif": turned}),
        (gray, {}),
        (Image.fromarray(half), {}),
        (gray.convert("P"), {}),
    ]:
        path = tmp_path / "a.png"
        image.save(path, **options)
        found = np.asarray(serving.read(path.read_bytes())).astype(int)
        assert np.abs(found - data.read_picture(path)).max() <= 1
    Image.fromarray(rng.integers(0, 2**16, (9, 9)).astype("uint16")).save(path)
    with pytest.raises(ValueError, match="8 bits"):
        serving.read(path.read_bytes())


def test_latency_is_measured(folder):
    result = run(folder, "digits.onnx", "--measure=7.png")
    assert (result.returncode, result.stderr) == (0, "")
    rows = [line for line in result.stdout.splitlines() if line.startswith("| ")][2:]
    assert [row.split()[1] for row in rows] == ["1", "8", "32"]


def test_a_file_without_preprocessing_is_refused(folder):
    for name, message in [
        ("prepared.onnx", "Export it with --preprocessing"),
        ("missing.onnx", "missing.onnx"),
        ("7.png", "7.png"),
    ]:
        result = run(folder, name)
        assert result.returncode == 1 and message in result.stderr
        assert "Traceback" not in result.stderr
