"""`keras-nfnets predict` and `convert` on real files."""

import json
import pathlib
import re

import keras
import numpy as np
import pytest
from full_disk import full_disk
from golden_case import GoldenCase
from PIL import Image
from quick import quick
from safetensors.numpy import save_file

from keras_nfnets import NFNetTest, NFNetTiny, data
from keras_nfnets.cli.main import main


def outputs(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Test digits as files of many formats, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("some digits")
    _, (x, y) = data.load_digits()
    first = [int(np.flatnonzero(y == k)[0]) for k in range(10)]
    images = [
        Image.fromarray(x[i]).resize((48, 60), Image.Resampling.BICUBIC) for i in first
    ]
    images[0].save(folder / "0.png")
    images[1].save(folder / "1.jpg", quality=95)
    images[2].convert("L").save(folder / "2.png")
    images[3].convert("CMYK").save(folder / "3.jpg", quality=95)
    images[4].convert("P").save(folder / "4.gif")
    sixteen = np.asarray(images[5].convert("L"), "uint16") * 257
    Image.fromarray(sixteen).save(folder / "5.png")
    rgba = images[6].convert("RGBA")
    rgba.putalpha(images[6].convert("L"))
    # Black strokes on transparency, as drawing programs save them.
    Image.merge("RGBA", [Image.new("L", rgba.size)] * 3 + [rgba.split()[3]]).save(
        folder / "6.png"
    )
    images[7].save(folder / "7.webp", lossless=True)
    frames = [images[8], images[0]]
    frames[0].save(folder / "8.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    images[9].rotate(180).save(folder / "9.jpg", quality=95, exif=exif)
    return folder


def test_the_shipped_checkpoint_reads_digits_of_every_kind_of_file(digits, capsys):
    status, out, err = outputs(capsys, "predict", "digits", digits, "--json", "--top=2")
    assert (status, err) == (0, "")
    rows = json.loads(out)
    assert [pathlib.Path(row["image"]).stem for row in rows] == list("0123456789")
    for row in rows:
        best, second = row["predictions"]
        assert best["name"] == str(best["class"]) == pathlib.Path(row["image"]).stem
        assert 1 > best["probability"] > second["probability"] > 0


def test_broken_pictures_are_named_and_left_out(digits, capsys, tmp_path):
    whole = (digits / "1.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_text("not asked for")
    (tmp_path / "one.jpg").write_bytes(whole)
    status, out, err = outputs(capsys, "predict", "digits", tmp_path, digits / "2.png")
    assert status == 1
    assert out.count("%") == 2 * 3
    assert "one.jpg" in out and "2.png" in out
    for name in ("cut.jpg", "text.png", "empty.png"):
        assert f"{name} is not a complete image" in err
    assert "3 of 5 images were left out" in err
    assert "notes" not in out + err
    status, out, _ = outputs(capsys, "predict", "digits", tmp_path, "--json")
    assert status == 1
    errors = [row for row in json.loads(out) if "error" in row]
    assert len(errors) == 3 and "predictions" not in errors[0]


def test_plot_draws_the_pictures(digits, capsys, tmp_path):
    sheet = tmp_path / "a sheet.png"
    assert outputs(capsys, "predict", "digits", digits, f"--plot={sheet}")[0] == 0
    with Image.open(sheet) as image:
        assert image.size[0] > 1000
        assert np.asarray(image.convert("L")).std() > 50
    for wrong in (f"{tmp_path}/no/sheet.png", f"{tmp_path}/sheet.xyz", ""):
        status, _, err = outputs(capsys, "predict", "digits", digits, f"--plot={wrong}")
        assert status == 2
        assert "--plot must be a file in an existing folder" in err


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["predict", "digits"], "one or more images .* Received: digits"),
        (["predict", "digits", "nothing.png"], "There is no file 'nothing.png'"),
        (["predict", "digits", ""], "There is no file ''"),
        (["predict", "digits", "FILE", "--top=0"], "--top must be a positive integer"),
        (["predict", "digits", "FOLDER"], "no images in the folder"),
        (["convert", "FILE"], "a weight file and the file to write"),
        (["convert", "FILE", "x.h5"], "OUT must end in .weights.h5 or .keras"),
        (
            ["convert", "FILE", "nowhere/x.keras"],
            "folder of OUT does not exist. Create nowhere",
        ),
    ],
)
def test_wrong_usage_is_explained(arguments, sentence, capsys, digits, tmp_path):
    places = {"FILE": digits / "0.png", "FOLDER": tmp_path}
    status, out, err = outputs(capsys, *(places.get(a, a) for a in arguments))
    assert (status, out) == (2, "")
    assert re.search(sentence, err)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["predict", "NFNetF9", "FILE"], "'NFNetF9' is neither .*; perhaps NFNetF"),
        (["predict", "digitz", "FILE"], "'digitz' is neither .*; perhaps digits"),
        (["predict", "nf_resnet27", "FILE"], "perhaps nf_resnet26"),
        (["predict", "NFNetF0Plus", "FILE"], "no published weights of 'NFNetF0Plus'"),
        (["predict", "nothing.keras", "FILE"], "'nothing.keras' is neither"),
        (["predict", "FILE", "FILE"], "is neither a weight file, nor"),
        (["convert", "FILE", "x.keras"], "A weight file must end in"),
        (["convert", "none.npz", "x.keras"], "'none.npz', where there is no file"),
        (["convert", "BROKEN", "x.keras"], "is not a complete .safetensors file"),
        (["convert", "TORN", "x.keras"], "predictions/bias has shape"),
    ],
)
def test_what_cannot_be_done_is_explained(
    arguments, sentence, capsys, digits, tmp_path
):
    torn = GoldenCase("timm_test_nfnet").parameters
    save_file({**torn, "head.fc.bias": np.ones(7)}, tmp_path / "torn.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    places = {
        "FILE": digits / "0.png",
        "BROKEN": tmp_path / "broken.safetensors",
        "TORN": tmp_path / "torn.safetensors",
    }
    status, out, err = outputs(capsys, *(places.get(a, a) for a in arguments))
    assert (status, out) == (1, "")
    assert re.search(sentence, err)
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def safetensors(tmp_path_factory):
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file(GoldenCase("timm_test_nfnet").parameters, path)
    return path


@pytest.mark.parametrize("ending", quick([".keras", ".weights.h5"], ".weights.h5"))
def test_convert_recognizes_the_network_and_keeps_its_function(
    ending, safetensors, tmp_path, capsys
):
    out = tmp_path / f"test nfnet{ending}"
    status, text, _ = outputs(capsys, "convert", safetensors, out)
    assert status == 0
    assert "NFNetTest (classes=1000), 383,080 parameters" in text
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    case = GoldenCase("timm_test_nfnet")
    if ending == ".keras":
        model = keras.saving.load_model(out)
    else:
        model = NFNetTest(weights=out)
    logits = np.log(model.predict(case.images, verbose=0))
    expected = case.outputs["logits"]
    expected = expected - np.log(np.exp(expected).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    before = out.read_bytes()
    status, _, err = outputs(capsys, "convert", safetensors, out)
    assert (status, out.read_bytes()) == (2, before)
    assert "--overwrite" in err
    assert outputs(capsys, "convert", safetensors, out, "--overwrite")[0] == 0


def test_convert_leaves_a_folder_alone(tmp_path, capsys):
    (tmp_path / "thesis.keras").mkdir()
    out = tmp_path / "thesis.keras"
    status, _, err = outputs(capsys, "convert", "digits", out, "--overwrite")
    assert status == 2 and f"OUT must be a file. Received: the folder {out}" in err
    assert out.is_dir()


@pytest.mark.parametrize("ending", quick([".weights.h5", ".keras"], ".keras"))
def test_convert_to_a_full_disk_leaves_the_old_file(ending, tmp_path, capsys):
    source, out = tmp_path / "m.weights.h5", tmp_path / f"out{ending}"
    NFNetTest(classes=3).save_weights(source)
    out.write_text("old")
    with full_disk():
        status, _, err = outputs(capsys, "convert", source, out, "--overwrite")
    assert status == 1
    assert f"Cannot write {out}: " in err
    assert out.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_plot_on_a_full_disk_is_an_error_that_leaves_the_old_one(
    digits, capsys, tmp_path
):
    sheet = tmp_path / "sheet.png"
    sheet.write_text("old")
    with full_disk():
        status, _, err = outputs(capsys, "predict", "digits", digits, f"--plot={sheet}")
    assert status == 1
    assert f"Cannot write --plot={sheet}: " in err
    assert sheet.read_text() == "old"
    assert list(tmp_path.iterdir()) == [sheet]


def test_convert_takes_a_network_without_a_classifier(safetensors, tmp_path, capsys):
    # A weight file of this package.
    body = tmp_path / "body.weights.h5"
    NFNetTest(weights=safetensors, include_top=False).save_weights(body)
    status, text, _ = outputs(capsys, "convert", body, tmp_path / "body.keras")
    assert status == 0
    assert "NFNetTest (include_top=False)" in text


def test_convert_names_what_it_does_not_know(tmp_path, capsys):
    golden = pathlib.Path(__file__).parent.parent / "golden"
    out = tmp_path / "x.keras"
    source = golden / "deepmind_release_dict.npz"
    status, _, err = outputs(capsys, "convert", source, out)
    assert status == 1
    assert "no network of this package" in err
    assert not out.exists()


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    """Content of a .keras file of the bundled checkpoint, as bytes."""
    path = tmp_path_factory.mktemp("saved") / "mine.keras"
    NFNetTiny(weights="digits").save(path)
    return path.read_bytes()


def test_custom_models_predict_as_they_were_trained(
    digits, keras_file, tmp_path, capsys
):
    # A checkpoint converted to .keras, and one with the model.json that `train` writes.
    (tmp_path / "mine.keras").write_bytes(keras_file)
    status, out, _ = outputs(
        capsys, "predict", tmp_path / "mine.keras", digits, "--json"
    )
    assert status == 0
    predicted = [row["predictions"][0]["class"] for row in json.loads(out)]
    assert predicted == list(range(10))
    about = {
        "preparation": {
            "size": 32,
            "crop": 1.0,
            "crop_mode": "squash",
            "interpolation": "bilinear",
            "mean": None,
            "deviation": None,
            "channels": 3,
        },
        "class_names": [f"number {k}" for k in range(10)],
    }
    (tmp_path / "mine.json").write_text(json.dumps(about))
    _, out, _ = outputs(capsys, "predict", tmp_path / "mine.keras", digits / "7.webp")
    assert "number 7" in out.splitlines()[1]
    (tmp_path / "mine.json").write_text("{}")
    status, _, err = outputs(
        capsys, "predict", tmp_path / "mine.keras", digits / "7.webp"
    )
    assert status == 1
    assert "mine.json is not metadata of a training run" in err
    (tmp_path / "mine.keras").write_bytes(b"broken")
    (tmp_path / "mine.json").unlink()
    status, _, err = outputs(
        capsys, "predict", tmp_path / "mine.keras", digits / "7.webp"
    )
    assert status == 1
    assert "not a complete .keras file" in err


def test_convert_keeps_the_function_of_a_custom_model(tmp_path, capsys):
    # The shapes are those of the network of the zoo, but the function differs.
    model = NFNetTiny(activation="silu", classifier_activation=None, classes=5)
    model.save(tmp_path / "mine.keras")
    out = tmp_path / "other.keras"
    assert outputs(capsys, "convert", tmp_path / "mine.keras", out)[0] == 0
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(
        keras.saving.load_model(out).predict(x, verbose=0), model.predict(x, verbose=0)
    )


@pytest.mark.parametrize(
    "shape, units, sentence",
    [
        ((20, 20, 3), 4, None),
        ((20, 20, 1), 4, None),
        ((20, 20, 3), 1, "one output for each of two or more classes"),
        ((20, 20, 7), 4, "gray or RGB"),
        ((9,), 4, "gray or RGB"),
    ],
)
def test_any_image_classifier_predicts(
    shape, units, sentence, digits, tmp_path, capsys
):
    inputs = keras.Input(shape)
    outputs_ = keras.layers.Dense(units)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, outputs_).save(tmp_path / "other.keras")
    status, out, err = outputs(
        capsys, "predict", tmp_path / "other.keras", digits / "0.png", "--top=9"
    )
    assert status == (0 if sentence is None else 1)
    assert out.count("%") == (4 if sentence is None else 0)
    assert sentence is None or sentence in err


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_outputs_are_printed_as_what_they_are(activation, digits, tmp_path, capsys):
    logits = keras.initializers.Constant(3.0)
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    model.add(
        keras.layers.Dense(
            2, activation, kernel_initializer="zeros", bias_initializer=logits
        )
    )
    model.save(tmp_path / "model.keras")
    command = ["predict", tmp_path / "model.keras", digits / "1.jpg"]
    status, out, _ = outputs(capsys, *command)
    expected = " 95.26%" if activation == "sigmoid" else "      3"
    assert status == 0 and out.count(f"  {expected}  ") == 2
    [row] = json.loads(outputs(capsys, *command, "--json")[1])
    key, value = ("probability", 0.9526) if activation == "sigmoid" else ("output", 3)
    assert row["predictions"][0][key] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"preparation": {"size": 32}},
        {"class_names": ["one"]},
        {"preparation": {"crop": 0}},
        {"preparation": 3},
    ],
)
def test_wrong_metadata_next_to_a_model_are_reported(
    change, digits, keras_file, tmp_path, capsys
):
    (tmp_path / "mine.keras").write_bytes(keras_file)
    about = {"preparation": {}, "class_names": [str(k) for k in range(10)]}
    (tmp_path / "mine.json").write_text(json.dumps({**about, **change}))
    status, out, err = outputs(
        capsys, "predict", tmp_path / "mine.keras", digits / "0.png"
    )
    assert (status, out) == (1, "")
    assert re.search(
        "must accept images that are preprocessed by|must be a list with one name per "
        "class|mine.json is not metadata of a training run",
        err,
    )


def test_list_weights_shows_every_checkpoint(capsys):
    from keras_nfnets import pretrained

    status, out, _ = outputs(capsys, "list", "--weights")
    assert status == 0
    for checkpoint in pretrained.list_checkpoints():
        for name in checkpoint.names[:2]:
            assert name in out


@pytest.mark.parametrize("network", quick([NFNetTiny, NFNetTest], NFNetTiny))
def test_weight_files_of_networks_for_gray_images_predict(
    network, digits, tmp_path, capsys
):
    # NFNetTiny has a published checkpoint, whose preprocessing is that of RGB images.
    path = tmp_path / "gray.weights.h5"
    network(classes=10, input_shape=(None, None, 1)).save_weights(path)
    status, out, _ = outputs(capsys, "predict", path, digits / "2.png", "--json")
    assert status == 0
    assert len(json.loads(out)[0]["predictions"]) == 3
