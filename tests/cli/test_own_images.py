"""Training on a custom folder of images: train, evaluate, predict, and the report."""

import contextlib
import csv
import html.parser
import io
import json
import logging
import pathlib
import re
import zipfile

import numpy as np
import pytest
from one_block import networks_of_one_block
from PIL import Image

from keras_nfnets import data, pretrained
from keras_nfnets.cli.main import main
from keras_nfnets.runs.folder import best_epoch

NAMES = ["zero", "one & <b>two", "three"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of real digits as PNG files, with unbalanced classes and two broken files."""
    root = tmp_path_factory.mktemp("images") / "my digits"
    [(x, y), _] = data.load_digits()
    for k, (name, count) in enumerate(zip(NAMES, (100, 100, 25))):
        (root / name).mkdir(parents=True)
        for i in np.flatnonzero(y == k)[:count]:
            Image.fromarray(x[i]).save(root / name / f"{i}.png")
    (root / "zero" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (root / "three" / "cut.jpg").write_bytes(jpeg()[:300])
    return root


def jpeg():
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype("uint8")
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


FLAGS = [
    *("--model=NFNetTiny", "--image_size=16", "--epochs=4", "--learning_rate=0.8"),
    *("--batch_size=32", "--set=augmentation=crop_0.8"),
]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """Output and warnings of a training run, and its folder."""
    where = tmp_path_factory.mktemp("somewhere")
    with contextlib.chdir(where), networks_of_one_block(), warnings_logged() as log:
        printed = printed_by("train", f"--data={folder}", *FLAGS)
    [out] = (where / "runs").iterdir()
    return printed, log.getvalue(), out


@contextlib.contextmanager
def warnings_logged():
    """Context that collects what absl logs."""
    handler = logging.StreamHandler(io.StringIO())
    logging.getLogger("absl").addHandler(handler)
    try:
        yield handler.stream
    finally:
        logging.getLogger("absl").removeHandler(handler)


def history_of(folder):
    with open(folder / "history.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def printed_by(*arguments):
    """Run a command that must succeed; return its output."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*map(str, arguments)]) == 0
    return out.getvalue()


def evaluated(*arguments):
    return json.loads(printed_by("evaluate", *arguments, "--json"))


@pytest.fixture(scope="module")
def evaluation(run):
    """Result of `evaluate` for the network of the run."""
    *_, out = run
    return evaluated(out / "model.keras")


def test_a_folder_is_learned_and_what_is_odd_is_said(run, folder):
    printed, log, out = run
    assert out.name == "my_digits-NFNetTiny-1"
    best = max(row["val_accuracy"] for row in history_of(out))
    assert best > 0.9
    assert f"Accuracy on validation images: {best:.2%} (epoch" in printed
    assert re.search(r"Unbalanced: .* has \d+ images, three has \d+\.", printed)
    assert "2 images were left out" in printed
    for name in ("broken.png", "cut.jpg"):
        assert f"{name} is not a complete image" in log
    assert {path.name for path in out.iterdir()} == {
        *("model.keras", "model.json", "history.csv", "report.html"),
        *("training_curves.png", "predictions.png"),
    }


def test_evaluate_gives_the_numbers_that_training_ended_with(
    run, evaluation, folder, capsys
):
    *_, out = run
    best = max(history_of(out), key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    result = evaluation
    assert result["accuracy"] == pytest.approx(best["val_accuracy"], abs=1e-6)
    assert result["loss"] == pytest.approx(best["val_loss"], rel=1e-4)
    assert set(result["classes"]) == set(NAMES)
    count = sum(row["pictures"] for row in result["classes"].values())
    assert count == result["pictures"]
    # Evaluation of another split.
    other = evaluated(out / "model.keras", f"--data={folder}", "--split=train")
    assert other["pictures"] + result["pictures"] == 225
    assert len(other["left_out"]) + len(result["left_out"]) == 2
    assert main(["evaluate", str(out / "model.keras"), "--data=digits"]) == 1
    assert "does not know the classes 0, 1, 2" in capsys.readouterr().err


def test_predict_gives_the_same_numbers_from_the_file_alone(
    run, evaluation, folder, tmp_path
):
    *_, out = run
    # The model file has everything that prediction needs.
    copy = tmp_path / "moved.keras"
    copy.write_bytes((out / "model.keras").read_bytes())
    source = data.find(folder)
    files = [path for path, _ in source.files("test") if not path.endswith("cut.jpg")]
    files = [path for path in files if not path.endswith("broken.png")]
    rows = json.loads(printed_by("predict", copy, *files, "--json"))
    right = [
        row["predictions"][0]["name"] == pathlib.Path(row["image"]).parent.name
        for row in rows
    ]
    assert np.mean(right) == pytest.approx(evaluation["accuracy"])


class _Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.text, self.tags = [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href", "action")]

    def handle_data(self, text):
        self.text += text


def test_the_page_needs_nothing_else_and_tells_all(run):
    *_, out = run
    page = _Page()
    content = (out / "report.html").read_text("utf-8")
    page.feed(content)
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "script" not in page.tags and "link" not in page.tags
    assert (
        "b" not in {tag for tag in page.tags if tag == "b"} or "<b>two" not in content
    )
    for name in NAMES:
        assert name in page.text
    for heading in (
        "Accuracy per class",
        "Confusion matrix",
        "Images left out",
        "How to use the model",
    ):
        assert heading in page.text
    assert "keras-nfnets predict" in page.text and "load_classifier" in page.text
    best = max(row["val_accuracy"] for row in history_of(out))
    assert f"{best:.1%} of" in page.text


def test_the_python_of_the_page_runs(run, folder, monkeypatch, capsys):
    *_, out = run
    page = _Page()
    page.feed((out / "report.html").read_text("utf-8"))
    code = page.text[page.text.index("from keras_nfnets") : page.text.index("Settings")]
    image = next(
        path for path in (folder / "zero").glob("*.png") if path.stem != "broken"
    )
    monkeypatch.chdir(out.parent.parent)
    exec(compile(code.replace("image.jpg", str(image)), "page", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out.splitlines()[-1].startswith("zero ")


@pytest.fixture(scope="module")
def from_weights(tmp_path_factory):
    """Run from published weights, on classes with odd names in a folder `digits`."""
    where = tmp_path_factory.mktemp("from weights")
    for name in ("cost_$5_to_$10", "b"):
        (where / "digits" / name).mkdir(parents=True)
        for i in range(4):
            (where / "digits" / name / f"{i}.jpg").write_bytes(jpeg())
    # A run of that name exists already.
    (where / "runs" / "digits-NFNetTiny-1").mkdir(parents=True)
    flags = ["--model=nfnettiny", "--weights=digits", "--epochs=1"]
    with contextlib.chdir(where), pytest.warns() as warned:
        # The folder has the name of a bundled data set, so it is given by its path.
        printed = printed_by(
            "train", "--data=./digits", *flags, "--noagc", "--set=head_epochs=3"
        )
    return printed, warned, where / "runs" / "digits-NFNetTiny-2"


def test_published_weights_begin_with_a_new_classifier(from_weights):
    printed, warned, out = from_weights
    assert any(
        "The classifier of digits has 10 classes" in str(warning.message)
        for warning in warned
        if warning.category is UserWarning
    )
    assert "Training the new classifier alone, 3 epochs" in printed
    assert "now training the complete network" in printed
    with zipfile.ZipFile(out / "model.keras") as archive:
        about = json.loads(archive.read("keras_nfnets.json"))
    assert about["class_names"] == ["b", "cost_$5_to_$10"]
    # Images are normalized as for the checkpoint.
    checkpoint = pretrained.find_checkpoint("digits")
    assert tuple(about["preparation"]["mean"]) == checkpoint.mean


def test_a_class_may_be_called_as_it_likes(from_weights, tmp_path):
    _, _, folder = from_weights
    assert "report.html" in {path.name for path in folder.iterdir()}
    about = json.loads((folder / "model.json").read_text())
    assert about["class_names"] == ["b", "cost_$5_to_$10"]
    images = folder.parent.parent / "digits"
    assert about["data"] == str(images)
    # The model file takes precedence over the model.json next to it.
    (tmp_path / "model.keras").write_bytes((folder / "model.keras").read_bytes())
    beside = {**about, "class_names": ["x", "y"]}
    (tmp_path / "model.json").write_text(json.dumps(beside))
    assert "cost_$5" in printed_by("predict", tmp_path, images / "b" / "1.jpg")


@pytest.fixture(scope="module")
def in_vain(folder, tmp_path_factory):
    """Warnings and folder of a run that learns nothing and fails to draw."""
    out = tmp_path_factory.mktemp("in vain")

    def fail(*arguments):
        raise RuntimeError("no ink")

    flags = [f"--data={folder}", *FLAGS, "--learning_rate=0", "--set=patience=2"]
    flags += ["--image_size=8", "--noagc", "--batch_size=256"]
    flags += [f"--output_dir={out}", "--overwrite"]
    with (
        networks_of_one_block(),
        pytest.MonkeyPatch.context() as patch,
        warnings_logged() as log,
    ):
        patch.setattr("keras_nfnets.runs.figures.predictions", fail)
        assert main(["train", *flags]) == 0
    return log.getvalue(), out


@pytest.mark.slow
def test_training_ends_when_nothing_gets_better(in_vain):
    _, out = in_vain
    assert len(history_of(out)) == 3


@pytest.mark.slow
def test_no_drawing_costs_the_model(in_vain):
    error, out = in_vain
    assert "no ink" in error
    assert (out / "model.keras").exists()


def test_a_folder_that_cannot_be_meant_is_explained(tmp_path, capsys):
    (tmp_path / "only").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "only" / "1.png")
    assert main(["train", f"--data={tmp_path}"]) == 2
    assert "two or more classes. Received: only" in capsys.readouterr().err
    assert main(["train", "--data=./nowhere"]) == 2
    assert "There is no folder './nowhere'" in capsys.readouterr().err
    assert not (pathlib.Path("runs") / "nowhere").exists()


def test_a_preview_replaces_no_file(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "preview.png").write_text("mine")
    assert main(["data", str(folder), "--preview"]) == 0
    assert "preview-2.png shows 32 training images" in capsys.readouterr().out
    assert (tmp_path / "preview.png").read_text() == "mine"


def test_data_says_what_there_is_and_draws_it(folder, tmp_path, capsys):
    sheet = tmp_path / "a sheet.png"
    arguments = ["data", str(folder), "--preview", f"--output={sheet}"]
    assert main([*arguments, "--augmentation=crop flip mixup cutmix"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"3 classes; 1\d\d in 'train', \d\d in 'test'", out)
    assert f"{sheet} shows 32 training images" in out
    with Image.open(sheet) as image:
        assert min(image.size) > 500
        assert len(set(image.convert("L").tobytes())) > 100  # it is not blank
    assert main(["data"]) == 0
    assert "digits: 10 classes" in capsys.readouterr().out
    assert main([*arguments, "--augmentation=zoom"]) == 2
    assert "Received: 'zoom'" in capsys.readouterr().err
    assert main(["data", "--split=none"]) == 2
    assert "--split must be one of 'train', 'test'" in capsys.readouterr().err


def test_nothing_but_broken_images_is_an_error(tmp_path, capsys):
    images, out = tmp_path / "images", tmp_path / "out"
    for name in "ab":
        (images / name).mkdir(parents=True)
        for i in range(5):
            (images / name / f"{i}.png").write_text("no image")
    flags = [*FLAGS, "--image_size=8", "--noagc", f"--output_dir={out}"]
    assert main(["train", f"--data={images}", *flags]) == 1
    assert "More than half of the images of" in capsys.readouterr().err
    assert not (out / "model.keras").exists()


def test_results_are_not_put_among_the_images(folder, monkeypatch, capsys):
    before = sorted(folder.iterdir())
    assert main(["train", f"--data={folder}", f"--output_dir={folder}/model"]) == 2
    assert "be treated as a class" in capsys.readouterr().err
    monkeypatch.chdir(folder)
    assert main(["train", "--data=."]) == 2
    assert sorted(folder.iterdir()) == before


def test_the_last_of_equally_good_epochs_with_the_least_loss_is_kept():
    history = {"val_accuracy": [0.5, 1.0, 1.0, 1.0], "val_loss": [2, 0.9, 0.4, 0.5]}
    assert best_epoch(history) == 2


def test_a_checkpoint_is_evaluated_on_grayscale_images_too():
    result = evaluated("digits", "--data=digits")
    assert result["pictures"] == 360 and result["accuracy"] > 0.95
