"""Images that state more than the memory holds, or would start another program."""

import os
import pathlib
import resource
import threading
import time

import numpy as np
import pytest
from fuzz import images as hostile
from fuzz.without_keras import output_of
from PIL import Image

from keras_nfnets import data, runs
from keras_nfnets.cli.main import main
from keras_nfnets.data import images
from keras_nfnets.runs import classifier as classifiers

READ = """
import pathlib
from keras_nfnets.data.images import read_picture
for path in sorted(pathlib.Path(sys.argv[2]).iterdir()):
    try:
        print(path.name, read_picture(path).shape)
    except ValueError as error:
        print(path.name, "refused:", error)
"""


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_too_large_images_are_refused_before_they_are_decoded(tmp_path):
    files = hostile.too_large()
    folder = write(tmp_path, files)
    with open(folder / "sparse.jpg", "wb") as file:
        file.truncate(100 * 2**30)
    lines = output_of(READ, folder, memory=2**29, seconds=20).splitlines()
    assert len(lines) == len(files) + 1
    for line in lines:
        assert " refused: " in line and "is too large to be decoded" in line, line


def test_the_largest_image_takes_a_few_bytes_per_pixel(tmp_path):
    folder = write(tmp_path, {"alpha.png": hostile.png(8192, 8192, 8, color=6)})
    # 7 bytes per pixel for those of the file and ours, and the libraries.
    output = output_of(READ, folder, memory=3 * 2**28, seconds=60)
    assert output == "alpha.png (8192, 8192, 3)\n"


def test_the_environment_sets_the_largest_image(monkeypatch):
    content = hostile.png(2000, 1500)
    monkeypatch.setenv("KERAS_NFNETS_MAX_PIXELS", "2000000")
    with pytest.raises(
        ValueError, match="2,000 x 1,500 pixels, more than 2,000,000. Make"
    ):
        data.read_picture(content)
    monkeypatch.setenv("KERAS_NFNETS_MAX_PIXELS", "4000000")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert data.read_picture(content).shape == (1500, 2000, 3)
    monkeypatch.setenv("KERAS_NFNETS_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="must be a number .*Received: KERAS_.*'many'"):
        data.read_picture(content)


@pytest.mark.parametrize("name", hostile.not_opened())
def test_no_image_starts_another_program(name, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    path = write(tmp_path / "images", hostile.not_opened()) / name
    with pytest.raises(ValueError, match="it is none of AVIF, BMP, "):
        data.read_picture(path)
    assert not (tmp_path / "started").exists()


# FF 01 is a marker without a segment.
@pytest.mark.parametrize("before", [b"", b"\xff\x01"])
def test_a_jpeg_of_many_scans_is_refused_at_once(before, tmp_path):
    content = hostile.jpeg_of_scans(3000, 3000, 2000, before)
    start = time.process_time()
    with pytest.raises(ValueError, match="more than 100 scans"):
        data.read_picture(content)
    for name in ("a", "b"):
        write(tmp_path / name, {"0.jpg": hostile.saved("JPEG"), "1.jpg": content})
        write(tmp_path / name, {f"{i}.jpg": hostile.saved("JPEG") for i in (2, 3)})
    source = data.find(tmp_path, divide=False)
    assert sum(len(x) for x, _ in data.load(source, "all", 16, 8)) == 6
    assert len(source.left_out) == 2
    assert time.process_time() - start < 10


def test_progressive_jpegs_with_other_data_behind_them_are_read():
    for behind in (b"", b"\xff\xda" * 500):
        content = hostile.saved("JPEG", progressive=True) + behind
        assert data.read_picture(content).shape == (8, 16, 3)


def test_a_named_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="not a regular file"):
        data.read_picture(tmp_path / "pipe.png")


def test_too_little_memory_is_an_error_of_the_image(monkeypatch):
    def decode(_):
        raise MemoryError

    monkeypatch.setattr(images, "_rgb", decode)
    with pytest.raises(ValueError, match="needs more memory than is available"):
        data.read_picture(hostile.saved("BMP"))


@pytest.fixture
def folder(tmp_path):
    """Folder of two classes with images that are too large, and more that are not."""
    files = hostile.too_large()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        folder = write(tmp_path / name, files if name == "a" else {})
        for i in range(len(files)):
            pixels = rng.integers(0, 256, (20, 30, 3), "uint8")
            Image.fromarray(pixels).save(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
    with open(tmp_path / "a" / "sparse.jpg", "wb") as file:
        file.truncate(100 * 2**30)
    return tmp_path


@pytest.mark.parametrize("training", [True, False])
def test_batches_leave_too_large_images_out(folder, training):
    source = data.find(folder, divide=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    batches = data.load(
        source, "all", 16, 8, training=training, augmentation="crop flip"
    )
    count = sum(len(x) for x, _ in batches)
    assert time.process_time() - start < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
    wrong = {*hostile.too_large(), "sparse.jpg"}
    assert {pathlib.Path(name).name for name in source.left_out} == wrong
    assert all("is too large" in reason for reason in source.left_out.values())
    assert count == source.splits["all"] - (0 if training else len(wrong))


@pytest.mark.parametrize(
    ("crop_mode", "augmentation"),
    [
        ("crop_resize", None),
        pytest.param("whole", None, marks=pytest.mark.slow),
        pytest.param("center", None, marks=pytest.mark.slow),
        ("whole", "crop flip"),
    ],
)
def test_large_images_are_prepared_one_at_a_time_as_others_are(
    crop_mode, augmentation, folder, monkeypatch
):
    # (Of a JPEG, a window that is decoded alone has other colors at its border.)
    ending = ".png" if augmentation else ""
    source = data.find(folder, divide=False)
    files = [(p, c) for p, c in source.files("all") if "/b/" in p and ending in p]
    source._files = {"all": files}
    source.splits = {"all": len(files)}
    preparation = {"crop_mode": crop_mode, "crop": 0.8}

    def batches():
        loaded = data.load(
            *(source, "all", 16, 8),
            training=augmentation is not None,
            augmentation=augmentation,
            preparation=preparation,
        )
        return np.concatenate([x for x, _ in loaded])

    expected = batches()
    at_once, most = threading.Semaphore(1), []
    read = source.read

    def alone(name, image):
        most.append(at_once.acquire(blocking=False))
        time.sleep(0.01)
        result = read(name, image)
        at_once.release()
        return result

    monkeypatch.setattr(source, "read", alone)
    monkeypatch.setattr(images, "LARGE", 100)
    np.testing.assert_array_equal(batches(), expected)
    assert len(most) == len(files) and all(most)


@pytest.fixture(scope="module")
def digits():
    return runs.load_classifier("digits")


def test_predictions_hold_few_large_images(folder, digits, monkeypatch):
    paths = sorted((folder / "b").iterdir())[:8]
    expected = list(runs.predict(digits, paths))
    monkeypatch.setattr(classifiers, "LARGE", 1000)
    alive = []
    predict = classifiers.Classifier.predict_prepared
    monkeypatch.setattr(
        classifiers.Classifier,
        "predict_prepared",
        lambda self, x: alive.append(len(x)) or predict(self, x),
    )
    found = list(runs.predict(digits, paths))
    assert max(alive) <= 2
    assert [(f.path, f.classes[0].name) for f in found] == [
        (e.path, e.classes[0].name) for e in expected
    ]


def test_predict_reports_too_large_images(folder, digits, capsys, monkeypatch):
    monkeypatch.setattr(runs, "load_classifier", lambda _: digits)
    assert main(["predict", "digits", str(folder / "a")]) == 1
    errors = capsys.readouterr().err
    for name in hostile.too_large():
        assert f"Left out: {folder / 'a' / name} is too large to be decoded" in errors
