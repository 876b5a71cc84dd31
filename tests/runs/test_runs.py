"""Training runs from Python: what is returned, written, restored and raised."""

import csv
import functools
import os
import re
import shutil
import signal
import threading

import keras
import numpy as np
import pytest
import shades
from eager import eager_functions
from full_disk import full_disk
from one_block import networks_of_one_block
from PIL import Image
from quick import quick

import keras_nfnets
from keras_nfnets import data, plotting, pretrained, recipes, runs, training
from keras_nfnets.runs import building
from keras_nfnets.runs.training_run import KeepBest


@pytest.fixture(scope="module", autouse=True)
def _one_block():
    with networks_of_one_block(), eager_functions():
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folder of digits as PNG files, one subfolder per class."""
    folder = tmp_path_factory.mktemp("images") / "two digits"
    [(x, y), _] = data.load_digits()
    for label in (0, 1):
        (folder / f"digit {label}").mkdir(parents=True)
        for i in np.flatnonzero(y == label)[:40]:
            Image.fromarray(x[i]).save(folder / f"digit {label}" / f"{i}.png")
    return folder


SETTINGS = ["image_size=16", "clip_factor=None", "learning_rate=0.2", "batch_size=32"]


def recipe_for(images, *settings):
    recipe = runs.find_recipe("finetune")
    return recipe.changed([f"data={images}", *SETTINGS, *settings])


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """A run of three epochs without any callback."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    return runs.train(recipe_for(images, "epochs=3"), folder)


def test_training_prints_nothing_and_restores_global_settings(images, tmp_path, capfd):
    policy = keras.config.dtype_policy().name
    handler = signal.getsignal(signal.SIGINT)
    recipe = recipe_for(images, "epochs=1", "precision=mixed_bfloat16")
    run = runs.train(recipe, tmp_path / "quiet")
    assert capfd.readouterr().out == ""
    assert keras.config.dtype_policy().name == policy
    assert signal.getsignal(signal.SIGINT) is handler
    assert run.model.compute_dtype == "bfloat16"


def test_a_run_returns_what_it_has_written(trained):
    assert trained.epochs == 3
    assert set(trained.paths) == {
        *("model.keras", "model.json", "history.csv", "report.html"),
        *("training_curves.png", "predictions.png"),
    }
    assert all(path.is_file() for path in trained.paths.values())
    assert {path.name for path in trained.folder.iterdir()} == set(trained.paths)
    with open(trained.paths["history.csv"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == trained.history["loss"]
    best = max(trained.history["val_accuracy"])
    assert trained.validation["accuracy"] == best > 0.5
    assert set(trained.validation) == {"accuracy", "loss"}


def test_the_data_is_found_from_other_folders(images, tmp_path, monkeypatch):
    monkeypatch.chdir(images.parent)
    run = runs.train(recipe_for(images.name, "epochs=1", "report=False"), tmp_path)
    monkeypatch.chdir(tmp_path)
    accuracy = run.validation["accuracy"]
    assert runs.evaluate(tmp_path).accuracy == pytest.approx(accuracy)


def test_evaluation_of_the_folder_gives_the_validation_results(trained):
    evaluation = runs.evaluate(trained.folder)
    assert evaluation.accuracy == pytest.approx(trained.validation["accuracy"])
    assert evaluation.loss == pytest.approx(trained.validation["loss"], rel=1e-4)
    counts = [count for _, count in evaluation.classes.values()]
    assert sum(counts) == trained.source.size_of(trained.recipe.test_split)
    accuracies = [accuracy for accuracy, _ in evaluation.classes.values()]
    assert accuracies == sorted(accuracies)


def test_the_data_of_training_are_known_by_another_path(
    trained, images, tmp_path, monkeypatch
):
    monkeypatch.chdir(images.parent)
    moved = shutil.copytree(images, tmp_path / "moved")
    expected = trained.source.size_of(trained.recipe.test_split)
    evaluation = runs.evaluate(trained.folder, moved, "all")
    assert len(evaluation.results.labels) == 80
    for path in (images.name, f"./{images.name}/", str(moved)):
        evaluation = runs.evaluate(trained.folder, path)
        assert len(evaluation.results.labels) == expected
        assert evaluation.loss == pytest.approx(trained.validation["loss"], rel=1e-4)
    shutil.rmtree(moved / "digit 1")
    evaluation = runs.evaluate(trained.folder, moved)
    assert (evaluation.split, len(evaluation.results.labels)) == ("all", 40)
    assert set(evaluation.classes) == {"digit 0"}


def test_a_loaded_classifier_predicts_as_the_trained_model(trained, images):
    classifier = runs.load_classifier(trained.folder)
    assert classifier.class_names == ["digit 0", "digit 1"]
    paths = sorted((images / "digit 1").iterdir())[:3]
    x = np.stack(
        [data.prepare(data.read_picture(path), **trained.preparation) for path in paths]
    )
    expected = trained.model.predict(x, verbose=0)
    probabilities = classifier.predict(paths, batch_size=2)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    arrays = [data.read_picture(path) for path in paths]
    for given in (arrays, np.stack(arrays), [str(path) for path in paths]):
        np.testing.assert_allclose(classifier.predict(given), probabilities, atol=1e-6)
    np.testing.assert_allclose(
        classifier.predict(arrays[0])[0], probabilities[0], atol=1e-6
    )
    assert classifier.predict([]).shape == (0, 2)
    gray = arrays[0][..., :1]
    for given in (gray, gray[..., 0]):
        rgb = np.broadcast_to(gray, arrays[0].shape)
        np.testing.assert_array_equal(
            classifier.predict(given), classifier.predict(rgb)
        )
    for wrong in (
        arrays[0] / 255,
        arrays[0][..., :2],
        np.zeros((2, 2, 2, 2, 3), "uint8"),
    ):
        with pytest.raises(ValueError, match="uint8 array .* Received: "):
            classifier.predict(wrong)
    [[best]] = classifier.predict_classes(paths[0], top=1)
    assert best.name == classifier.class_names[probabilities[0].argmax()]
    assert best.probability == pytest.approx(probabilities[0].max())


def test_a_report_can_be_written_elsewhere(trained, tmp_path):
    path = runs.report(trained, tmp_path / "a report.html")
    text = path.read_text("utf-8")
    assert f"{trained.validation['accuracy']:.1%} of" in text
    assert [p.name for p in tmp_path.iterdir()] == ["a report.html"]


class InterruptAt(keras.callbacks.Callback):
    """Raise `error` at the end of an epoch."""

    def __init__(self, epoch, error):
        super().__init__()
        self.epoch, self.error = epoch, error

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise self.error


def test_training_ends_when_nothing_gets_better(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    path = tmp_path / "best.weights.h5"
    keep_best = KeepBest(path, {}, patience=2, write=True)
    keep_best.set_model(model)
    for epoch, accuracy in enumerate([0.5, 0.75, 0.75, 0.5]):
        assert not keep_best.is_over
        model.set_weights([np.full(v.shape, epoch) for v in model.weights])
        keep_best.on_epoch_end(epoch, {"val_accuracy": accuracy, "val_loss": epoch})
    assert model.stop_training
    model.load_weights(path)
    assert all((value == 1).all() for value in model.get_weights())


class Spoil(keras.callbacks.Callback):
    """Call `change` with the path of the weights of the best epoch, at the end."""

    def __init__(self, folder, change):
        super().__init__()
        self.folder, self.change = folder, change

    def on_epoch_end(self, epoch, logs=None):
        self.last = self.model.get_weights()

    def on_train_end(self, logs=None):
        [path] = (self.folder / "checkpoints").glob("*best.weights.h5")
        self.change(path)


def truncate(path):
    os.truncate(path, path.stat().st_size - 2000)


def remove(path):
    path.unlink()


def replace(path):
    path.write_text("?")


@pytest.mark.parametrize("change", quick([truncate, remove, replace], truncate))
def test_spoiled_weights_of_the_best_epoch_do_not_cost_the_results(
    change, images, tmp_path, caplog
):
    spoil = Spoil(tmp_path, change)
    recipe = recipe_for(images, "epochs=2", "report=False")
    run = runs.train(recipe, tmp_path, callbacks=[spoil])
    assert (
        "best epoch cannot be read, so the model has those of the last" in caplog.text
    )
    assert run.validation["accuracy"] == run.history["val_accuracy"][-1]
    saved = keras.saving.load_model(run.paths["model.keras"])
    for value, last in zip(saved.get_weights(), spoil.last, strict=True):
        np.testing.assert_array_equal(value, last)


INTERRUPT, DIVERGED = KeyboardInterrupt(), FloatingPointError("diverged")


@pytest.mark.parametrize("error", quick([INTERRUPT, DIVERGED], INTERRUPT), ids=repr)
def test_a_stopped_run_is_written_and_resumes(error, images, trained, tmp_path):
    recipe = recipe_for(images, "epochs=3", "report=False")
    with pytest.raises(type(error)):
        runs.train(recipe, tmp_path, callbacks=[InterruptAt(1, error)])
    # The files are complete, with what there was.
    assert runs.load_classifier(tmp_path).class_names == ["digit 0", "digit 1"]
    run = runs.train(recipe, tmp_path, resume=True)
    assert (run.resumed_after, run.epochs) == (2, 3)
    np.testing.assert_allclose(run.history["loss"], trained.history["loss"], rtol=1e-5)


@pytest.fixture(scope="module")
def stopped_run(images, tmp_path_factory):
    """Folder, to copy, of a run that was stopped after one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    recipe = recipe_for(images, "epochs=2", "report=False")
    with pytest.raises(KeyboardInterrupt):
        runs.train(recipe, folder, callbacks=[InterruptAt(0, INTERRUPT)])
    return folder


@pytest.fixture
def stopped(images, stopped_run, tmp_path):
    """Copies of the images, and of the folder of a run that was stopped."""
    return (
        shutil.copytree(images, tmp_path / "copy"),
        shutil.copytree(stopped_run, tmp_path / "run"),
    )


def rename_a_class(images):
    (images / "digit 1").rename(images / "one")


def rename_a_file(images):
    path = min((images / "digit 1").iterdir())
    path.rename(path.with_name("renamed.png"))


def add_a_file(images):
    path = min((images / "digit 1").iterdir())
    shutil.copy(path, images / "digit 0")


def move_a_file(images):
    path = min((images / "digit 1").iterdir())
    path.rename(images / "digit 0" / path.name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_a_class, "classes differ, without digit 1 and with one"),
        (rename_a_file, "some images were renamed, replaced or moved"),
        (add_a_file, r"the splits had \{.*\} images, and have"),
        (move_a_file, "images were renamed|the splits had"),
    ],
)
def test_a_run_does_not_continue_with_other_data(change, message, stopped):
    images, folder = stopped
    change(images)
    before = sorted(folder.rglob("*"))
    recipe = recipe_for(images, "epochs=2", "report=False")
    with pytest.raises(ValueError, match=f"Cannot resume: the data .*{message}"):
        runs.train(recipe, folder, resume=True)
    assert sorted(folder.rglob("*")) == before


def test_data_may_be_moved_before_a_run_continues(stopped):
    images, folder = stopped
    elsewhere = images.rename(images.with_name("elsewhere"))
    recipe = recipe_for(elsewhere, "epochs=2", "report=False")
    run = runs.train(recipe, folder, resume=True)
    assert (run.resumed_after, run.epochs) == (1, 2)


class TrainAgain(runs.RunCallback):
    """Starts a second run when the first one begins."""

    def __init__(self, *arguments):
        super().__init__()
        self.arguments = arguments
        self.result = None

    def on_run_begin(self, run):
        try:
            self.result = runs.train(*self.arguments).folder.name
        except ValueError as error:
            self.result = str(error)


def test_a_folder_belongs_to_one_run(images, tmp_path):
    recipe = recipe_for(images, "epochs=1", "report=False")
    # What a killed process leaves does not keep others out.
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / ".keras_nfnets-claimed").touch()
    second = TrainAgain(recipe, tmp_path / "one")
    run = runs.train(recipe, tmp_path / "one", callbacks=[second])
    assert f"Another process is training in {run.folder}." in second.result
    assert {path.name for path in run.folder.iterdir()} == set(run.paths)


def contents(folder):
    return {
        path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


class Fail(runs.RunCallback):
    def on_run_begin(self, run):
        raise RuntimeError("failed")


def test_what_is_overwritten_stays_until_the_new_results_stand(stopped):
    images, folder = stopped
    own = folder / "checkpoints" / "notes.txt"
    own.write_text("mine")
    events = folder / "tensorboard" / "train" / "events.out.tfevents.1.host"
    events.parent.mkdir(parents=True)
    events.touch()
    (folder / "partial-thesis").mkdir()
    (folder / "partial-thesis" / "text").write_text("mine too")
    before = contents(folder)
    assert "keras_nfnets-epoch-000001.npz" in before
    recipe = recipe_for(images, "epochs=1", "report=False")
    with pytest.raises(RuntimeError, match="failed"):
        runs.train(recipe, folder, overwrite=True, callbacks=[Fail()])
    assert contents(folder) == before
    run = runs.train(recipe, folder, overwrite=True)
    after = contents(folder)
    assert set(after) == {*run.paths, "notes.txt", "text"}
    assert own.read_text() == "mine"


def test_images_in_the_folder_of_the_results_are_refused(images, tmp_path):
    inside = shutil.copytree(images, tmp_path / "run" / "checkpoints")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(ValueError, match="is in the folder of the results"):
            runs.train(recipe_for(inside), tmp_path / "run", **options)
    assert len(list(inside.rglob("*.png"))) == 80


@pytest.mark.slow
def test_runs_at_the_same_time_get_folders_of_their_own(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_for(images, "epochs=1", "report=False")
    second = TrainAgain(recipe)
    run = runs.train(recipe, callbacks=[second])
    assert run.folder.name == "two_digits-NFNetTiny-1"
    assert second.result == "two_digits-NFNetTiny-2"


def test_a_run_that_cannot_start_leaves_no_folder(images, tmp_path):
    recipe = recipe_for(images, "weights=nosuch")
    with pytest.raises(ValueError, match="nosuch"):
        runs.train(recipe, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_network_of_gray_images_is_used_as_it_was_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    settings = ["epochs=1", "test_split=test", "weights=None", "report=False"]
    recipe = recipe_for("shades", *settings)
    run = runs.train(recipe, tmp_path / "run")
    evaluation = runs.evaluate(run.folder)
    assert evaluation.accuracy == pytest.approx(run.validation["accuracy"])
    assert evaluation.loss == pytest.approx(run.validation["loss"], rel=1e-4)
    classifier = runs.load_classifier(run.folder)
    [(x, _)] = data.load(
        "shades", "test", 16, 64, preparation=run.preparation
    ).as_numpy_iterator()
    image = data.read_picture(_png(tmp_path / "0.png", shades.picture(0)))
    differences = np.abs(x - classifier.preprocess(image)).max(axis=(1, 2, 3))
    assert differences.min() < 1e-5
    assert classifier.predict(tmp_path / "0.png").shape == (1, 2)


def _png(path, image):
    Image.fromarray(image[..., 0]).save(path)
    return path


def test_the_preview_shows_what_training_sees(images, tmp_path):
    sheets = []
    for options in ({}, {"recipe": recipe_for(images), "image_size": 128}):
        runs.preview(tmp_path / "sheet.png", images, **options)
        sheets.append((tmp_path / "sheet.png").read_bytes())
    assert sheets[0] == sheets[1]


def test_callbacks_are_told_of_a_run_in_a_thread(images, tmp_path):
    """Only the main thread may handle signals."""
    told = []

    class Listener(runs.RunCallback):
        def on_run_begin(self, run):
            told.append(("begin", run.epochs, run.paths))

        def on_run_end(self, run, stopped):
            told.append(("end", run.epochs, set(run.paths) > {"model.keras"}, stopped))

    recipe = recipe_for(images, "epochs=1", "report=False")
    train = functools.partial(runs.train, recipe, tmp_path, callbacks=[Listener()])
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert told == [("begin", 0, {}), ("end", 1, True, None)]


def test_predictions_name_files_that_cannot_be_used(trained, images, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    good = min((images / "digit 0").iterdir())
    first, second = runs.predict(trained.folder, [broken, good], batch_size=1)
    assert "broken.png" in first.error and first.classes == []
    assert second.error is None and len(second.classes) == 2
    with pytest.raises(ValueError, match=r"broken\.png"):
        runs.load_classifier(trained.folder).predict([good, broken])

    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    model.add(
        keras.layers.Dense(2, bias_initializer=keras.initializers.Constant(np.nan))
    )
    preparation = {**trained.preparation, "size": 8}
    classifier = runs.Classifier(model, preparation)
    [prediction] = runs.predict(classifier, [good])
    assert "not finite" in prediction.error
    with pytest.raises(ValueError, match="image 0 of 1 is not finite"):
        classifier.predict(good)


def test_errors_name_the_argument(images, trained, tmp_path):
    recipe = recipe_for(images, "epochs=1")
    for arguments, message in [
        ({"recipe": "digit"}, "no recipe 'digit'; perhaps digits"),
        ({"recipe": recipe, "strategy": "all"}, "`strategy` must be one of"),
        ({"recipe": recipe, "output_dir": trained.folder}, "holds .* of another run"),
        ({"recipe": recipe, "output_dir": images / "x"}, "folder of images"),
        ({"recipe": recipe, "overwrite": True}, "no effect without `output_dir`"),
        (
            {
                "recipe": recipe,
                "output_dir": tmp_path,
                "resume": True,
                "overwrite": True,
            },
            "Give one of them",
        ),
        ({"recipe": recipe, "output_dir": trained.folder, "resume": True}, "finished"),
    ]:
        with pytest.raises(ValueError, match=message):
            runs.train(**arguments)
    classifier = runs.Classifier(trained.model, trained.preparation)
    with pytest.raises(ValueError, match="`data` must be given"):
        runs.evaluate(classifier)
    with pytest.raises(ValueError, match="does not know the classes 0, 1"):
        runs.evaluate(trained.folder, "digits")
    with pytest.raises(ValueError, match="1 names for 2 classes"):
        runs.Classifier(trained.model, trained.preparation, ["one"])


def test_gray_images_start_from_the_weights_of_an_rgb_network(tmp_path):
    rgb, path = keras_nfnets.NFNetTiny(), tmp_path / "rgb.weights.h5"
    rgb.save_weights(path)
    settings = ["epochs=1", "head_epochs=0", "learning_rate=0", "weight_decay=0"]
    settings += ["batch_size=512", "report=False"]
    recipe = recipe_for("digits", "model=NFNetTiny", *settings)
    run = runs.train(recipe.changed([f"weights={path}"]), tmp_path / "run")
    kernel, *others = run.model.get_weights()
    rgb_kernel, *rgb_others = rgb.get_weights()
    np.testing.assert_allclose(kernel[:, :, 0], rgb_kernel.sum(axis=2), rtol=1e-5)
    np.testing.assert_array_equal(others[0], rgb_others[0])
    assert (
        runs.load_classifier(run.folder).predict(np.zeros((8, 8), "uint8")).size == 10
    )


def test_gray_images_are_standardized_by_the_average_of_a_checkpoints_channels():
    recipe = recipe_for("digits", "model=NFNetTiny", "weights=digits", "image_size=8")
    checkpoint = pretrained.find_checkpoint("digits")
    batches = building.load(recipe, data.find("digits"), "test").as_numpy_iterator()
    _, (x, _) = data.load_digits()
    mean, deviation = np.mean(checkpoint.mean), np.mean(checkpoint.deviation)
    expected = (x[0, :, :, :1] / 255 - mean) / deviation
    np.testing.assert_allclose(next(batches)[0][0], expected, atol=1e-3)


def test_a_full_disk_is_an_error_that_keeps_the_earlier_run(images, trained, tmp_path):
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with (
        pytest.raises(runs.RunError, match=rf"Cannot write into {folder}: "),
        full_disk(),
    ):
        runs.train(recipe_for(images, "epochs=1"), folder, overwrite=True)
    assert not [*folder.rglob(".partial*"), *folder.rglob("partial*")]
    after = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()
    }
    assert after == before


def test_plots_that_do_not_fit_on_the_disk_leave_the_model(
    images, tmp_path, monkeypatch, caplog
):
    def save_on_full_disk(figure, path, save=plotting.save):
        with full_disk():
            save(figure, path)

    monkeypatch.setattr(plotting, "save", save_on_full_disk)
    recipe = recipe_for(images, "epochs=1", "report=False", "patience=None")
    run = runs.train(recipe, tmp_path / "run")
    assert "Not all plots could be drawn: OSError: " in caplog.text
    assert "training_curves.png" in caplog.text
    assert run.paths.keys() == {"model.keras", "model.json", "history.csv"}


def test_images_grow_during_a_run_also_if_it_is_resumed(images, tmp_path, capsys):
    recipe = recipe_for(images, "first_image_size=6", "epochs=2", "report=False")
    # It empties its file when training begins.
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    run = runs.train(recipe, tmp_path / "whole", callbacks=[runs.Progress(), log])
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3
    out = capsys.readouterr().out
    assert "from 6 x 6 to 16 x 16 pixels, 2 epochs" in out
    assert re.findall(r"Images of (\d+) x", out) == ["6", "16"]
    assert run.preparation["size"] == 16
    with pytest.raises(KeyboardInterrupt):
        runs.train(recipe, tmp_path / "stopped", callbacks=[InterruptAt(0, INTERRUPT)])
    resumed = runs.train(recipe, tmp_path / "stopped", resume=True)

    # The same by hand.
    source = data.find(images)
    keras.utils.set_random_seed(recipe.seed)
    model = recipes.create_model(run.recipe, source)
    recipes.compile_model(recipe, model, run.steps_per_epoch)
    losses = []
    for period in training.growing_image_sizes(6, 16, epochs=2):
        batches = data.load(
            source,
            recipe.train_split,
            period.image_size,
            recipe.batch_size,
            training=True,
            augmentation=recipe.augmentation,
            preparation=run.preparation,
            seed=recipe.seed,
            from_epoch=period.initial_epoch,
        )
        losses += model.fit(
            batches,
            steps_per_epoch=run.steps_per_epoch,
            initial_epoch=period.initial_epoch,
            epochs=period.epochs,
            shuffle=False,
            verbose=0,
        ).history["loss"]
    for history in (run.history, resumed.history):
        np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)


def test_training_stops_without_improvement_also_while_images_grow(images, tmp_path):
    settings = ["first_image_size=8", "epochs=8", "patience=1", "learning_rate=0"]
    recipe = recipe_for(images, *settings, "report=False")
    # The first two epochs have one image size, and the next two another.
    assert runs.train(recipe, tmp_path).epochs == 2
