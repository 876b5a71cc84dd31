import numpy as np
import onnxruntime
import pytest
from PIL import Image

import keras_nfnets
from keras_nfnets.cli.main import main


@pytest.fixture(name="images")
def _pictures(tmp_path):
    folder = tmp_path / "some images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        pixels = rng.integers(0, 256, (8, 8), dtype="uint8")
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_exports_a_network(tmp_path, capsys):
    out = tmp_path / "digits.onnx"
    out.write_text("precious")
    assert main(["export", "digits", str(out)]) == 1
    assert (
        f"{out} exists already. Choose another OUT, or use --overwrite to replace"
        in capsys.readouterr().err
    )
    assert out.read_text() == "precious"
    flags = ["--input_name=x", "--output_name=y", "--opset=17", "--batch_size=2"]
    assert main(["export", "digits", str(out), "--overwrite", *flags]) == 0
    size = out.stat().st_size
    assert 600_000 < size < 700_000  # 0.16 million parameters of four bytes each
    assert f"{out}  ({size / 2**20:.1f} MB)" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(out))
    [probabilities] = session.run(["y"], {"x": np.zeros((2, 32, 32, 3), "float32")})
    assert probabilities.sum() == pytest.approx(2, abs=1e-5)


def test_int8_takes_a_folder_of_images(tmp_path, images, capsys):
    model = keras_nfnets.NFNet(
        (1,), (64,), group_size=16, input_shape=(8, 8, 3), classes=10
    )
    # Distinct probabilities, as after training; otherwise there would be a warning.
    head = model.get_layer("predictions").kernel
    head.assign(np.random.default_rng(0).normal(size=head.shape))
    model.save(tmp_path / "small.keras")
    out = tmp_path / "small.tflite"
    arguments = ["export", str(tmp_path / "small.keras"), str(out), "--quantize=int8"]
    assert main([*arguments, f"--examples={images}"]) == 0
    # A parameter takes one byte instead of four.
    assert out.stat().st_size < 3 * model.count_params()
    assert main([*arguments[:-1], f"--examples={images}"]) == 2
    assert "--examples has no effect without --quantize=int8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, status, sentence",
    [
        (["digits"], 2, "takes a network and the file"),
        (["digits", "x.onnx", "--format=torch"], 2, "format"),
        (["digits", "x.onnx", "--format=litert"], 1, "must end in .tflite"),
        (["digitz", "x.onnx"], 1, "; perhaps digits?"),
    ],
)
def test_says_what_is_wrong(arguments, status, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == status
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
