"""Names of files, folders and classes: shown safely, and never taken for another thing."""

import pathlib
import re
import shutil

import numpy as np
import pytest
from one_block import networks_of_one_block
from PIL import Image

from keras_nfnets import runs
from keras_nfnets.cli.main import main

CLASSES = ["a\x1b[31mb", "plain"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folder of two classes; names hold controls of the terminal and of direction."""
    root = tmp_path_factory.mktemp("images") / "c\x1b]0;title\x07"
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype="uint8")
            Image.fromarray(pixels).save(root / name / f"{i}\u202e.png")
    (root / "plain" / "broken\u202e.png").write_text("no image")
    return root


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """Output of a run, and its folder."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    with networks_of_one_block(), pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *words, **_: lines.extend(words))
        flags = ["--epochs=1", "--image_size=16", f"--output_dir={folder}"]
        assert main(["train", f"--data={images}", *flags]) == 0
    return "\n".join(map(str, lines)), folder


def assert_printable(text):
    assert not re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text
    )


def test_training_shows_names_without_control_characters(trained):
    printed, _ = trained
    assert r"a\x1b[31mb" in printed and r"broken\u202e.png" in printed
    assert_printable(printed)


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "RUN", "IMAGES/plain"],
        ["predict", "digits", "IMAGES/none\x1b.png"],
        ["data", "IMAGES"],
        ["data", "IMAGES/none\x1b"],
        ["evaluate", "RUN"],
        ["evaluate", "none\x1b[1m"],
        ["train", "x\x1b[1m"],
        ["train", "--x\x1b=1"],
        ["list", "x\x1b[1m"],
        ["x\x1b[1m"],
    ],
)
def test_commands_show_names_without_control_characters(
    command, images, trained, capsys, caplog
):
    places = {"RUN": str(trained[1]), "IMAGES": str(images)}
    main([re.sub("RUN|IMAGES", lambda m: places[m[0]], word) for word in command])
    out, err = capsys.readouterr()
    assert r"\x1b" in out + err + caplog.text
    assert_printable(out + err + caplog.text)


def test_a_published_name_is_not_the_folder_of_that_name(
    trained, images, capsys, caplog, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained[1], "digits")
    assert runs.load_classifier("digits").classes == 10
    assert "'digits' is the published network" in caplog.text
    assert "the run in the folder of that name, write ./digits." in caplog.text
    caplog.clear()
    for folder in ("./digits", pathlib.Path("digits"), "digits/model.keras"):
        assert runs.load_classifier(folder).classes == 2
    assert "published" not in caplog.text
    capsys.readouterr()
    assert main(["data", "digits"]) == 0
    out, err = capsys.readouterr()
    assert "10 classes" in out
    assert (
        err
        == "'digits' is the bundled data set. To use the folder of that name, write ./digits.\n"
    )
