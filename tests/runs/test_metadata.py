"""What the metadata of a model say is bounded, and starts nothing."""

import json
import os
import random
import resource
import shutil
import time

import keras
import numpy as np
import pytest
from fuzz import long_run
from fuzz import metadata as hostile

from keras_nfnets import data, runs
from keras_nfnets.cli.main import main
from keras_nfnets.runs.metadata import checked


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    layers = [keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
    keras.Sequential([keras.Input((16, 16, 1)), *layers]).save(path)
    return path


def saved(model, tmp_path, metadata):
    path = tmp_path / "model.keras"
    shutil.copy(model, path)
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    path.with_suffix(".json").write_text(text, "utf-8", "surrogatepass")
    return path


def test_sound_metadata_are_accepted(model, tmp_path):
    classifier = runs.load_classifier(saved(model, tmp_path, hostile.SOUND))
    assert classifier.preparation == hostile.SOUND["preparation"]
    assert classifier.metadata == hostile.SOUND


def test_wrong_metadata_are_refused_at_once():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    for name, metadata in hostile.wrong():
        if name == "class_names=['a', 'a', 'a', 'a',":
            continue  # their number is compared with that of the model's outputs
        with pytest.raises(ValueError) as error:
            checked(metadata)
        assert 0 < len(str(error.value)) < 1000, name
        assert "\x1b" not in str(error.value)
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize(
    "name", ["size=4097", "crop=1e-09", "mean=[nan]", "class_names=None"]
)
def test_a_model_with_wrong_metadata_is_an_error_with_its_file(name, model, tmp_path):
    path = saved(model, tmp_path, dict(hostile.wrong())[name])
    with pytest.raises(
        ValueError, match=r"model.json is not metadata .*: .*Received: "
    ):
        runs.load_classifier(path)


@pytest.mark.parametrize("name", [name for name, _ in hostile.texts()])
def test_metadata_that_are_no_json_of_usual_depth_are_an_error(name, model, tmp_path):
    path = saved(model, tmp_path, dict(hostile.texts())[name])
    with pytest.raises(ValueError, match="model.json is not metadata of a"):
        runs.load_classifier(path)


def test_one_number_may_be_for_all_channels():
    preparation = {**hostile.SOUND["preparation"], "mean": 0.5, "deviation": 0.25}
    assert checked({**hostile.SOUND, "preparation": preparation})


def test_what_is_unknown_is_left_out():
    assert "classes_of" not in checked({**hostile.SOUND, "classes_of": "imagenet2012"})


def test_random_metadata_are_refused_or_prepare_finite_images():
    prepare_with(seed=0, count=4000)


@pytest.mark.slow
def test_many_random_metadata_are_refused_or_prepare_finite_images():
    for seed in long_run.seeds():
        prepare_with(seed, count=100)


def prepare_with(seed, count):
    rng = random.Random(seed)
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), "uint8")
    for _ in range(count):
        metadata = hostile.changed(rng)
        try:
            preparation = checked(metadata)["preparation"]
        except ValueError:
            continue
        if {
            "size",
            "crop_mode",
            "interpolation",
            "mean",
            "deviation",
        } <= preparation.keys():
            x = data.prepare(image, **preparation)
            assert np.isfinite(x).all() and x.shape[0] <= 4096, (seed, preparation)


@pytest.mark.parametrize("split", [None, "all", "test"])
def test_metadata_start_no_download(split, model, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def download(self, **_):
        raise AssertionError("a download was started")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    path = saved(model, tmp_path, {**hostile.SOUND, "data": "mnist", "split": "test"})
    with pytest.raises(ValueError, match="trained on 'mnist', .*not downloaded yet"):
        runs.evaluate(path, split=split)


def parsed(capsys):
    """Return what the standard output has as strict JSON."""

    def refuse(name):
        raise AssertionError(name)

    out, err = capsys.readouterr()
    value = json.loads(out, parse_constant=refuse)
    json.dumps(value, ensure_ascii=False).encode()  # no halves of characters
    return value, err


def test_json_is_json_whatever_the_names(model, tmp_path, capsys):
    from PIL import Image

    names = [f"{i}\x1b\u202e\udce9" for i in range(10)]
    path = saved(model, tmp_path, {**hostile.SOUND, "class_names": names})
    folder = tmp_path / os.fsdecode(b"f\xe9")
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.new("L", (16, 16)).save(folder / name / os.fsdecode(b"\xe9.png"))
    (folder / names[0] / "broken\x1b.png").write_text("no image")
    capsys.readouterr()
    assert main(["predict", str(path), str(folder), "--json"]) == 1
    rows, err = parsed(capsys)
    assert len(rows) == 11 and "\x1b" not in err
    assert main(["evaluate", str(path), f"--data={folder}", "--json"]) == 0
    result, _ = parsed(capsys)
    assert len(result["left_out"]) == 1 and len(result["classes"]) == 10


def test_json_has_no_number_that_is_not_finite(capsys):
    from keras_nfnets.cli.command import print_json

    print_json(
        {"a": [float("nan"), float("inf"), np.float64(-np.inf), np.float64(0.5)]}
    )
    assert parsed(capsys)[0] == {"a": [None, None, None, 0.5]}


@pytest.mark.parametrize("command", ["predict none.keras x.png", "evaluate none.keras"])
def test_an_error_prints_no_json(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--json"]) != 0
    assert capsys.readouterr().out == ""
