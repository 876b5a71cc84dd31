"""The folder of a run: what is a user's own stays, whatever it is called."""

import os

import keras
import numpy as np
import pytest

from keras_nfnets import files
from keras_nfnets.runs import folder as folders
from keras_nfnets.runs.saved_model import save_model


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def write(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
@pytest.mark.parametrize(
    "names",
    [
        ["report.html"],
        ["history.csv", "model.json"],
        ["model.keras"],
        ["model.keras", "checkpoints/keras_nfnets-epoch-000001.npz"],
        ["predictions.png", "checkpoints/notes.txt"],
    ],
)
def test_files_that_no_run_has_written_are_refused(names, flag, tmp_path):
    write(tmp_path, *names)
    before = contents(tmp_path)
    flags = {"resume": False, "overwrite": False, flag: True}
    with (
        pytest.raises(ValueError, match=f"{names[0]}.*files may be yours"),
        folders.claimed(tmp_path, **flags),
    ):
        pass
    assert contents(tmp_path) == before


def test_an_averaged_model_that_no_run_has_written_is_refused(model, tmp_path):
    save_model(model, tmp_path / "model.keras", {})
    model.save(tmp_path / "averaged.keras")
    with (
        pytest.raises(ValueError, match="averaged.keras"),
        folders.claimed(tmp_path, resume=False, overwrite=True),
    ):
        pass


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
@pytest.mark.parametrize(
    "name, kind",
    [
        ("model.keras", "file"),
        ("report.html", "file"),
        ("checkpoints", "folder"),
        ("tensorboard", "folder"),
    ],
)
def test_a_name_that_is_taken_is_refused_before_training(name, kind, flag, tmp_path):
    write(tmp_path, f"{name}/mine" if kind == "file" else name)
    before = contents(tmp_path)
    flags = {"resume": False, "overwrite": False, flag: True}
    with (
        pytest.raises(ValueError, match=f"writes a {kind} called {name}"),
        folders.claimed(tmp_path, **flags),
    ):
        pass
    assert contents(tmp_path) == before


def test_only_files_of_the_run_are_put_aside_and_removed(model, tmp_path):
    own = [
        "checkpoints/epoch-000003.npz",
        "checkpoints/best.weights.h5",
        "tensorboard/experiment/events.out.tfevents.1.host",
        "partial-thesis/text",
        ".partial-thesis1/text",
    ]
    write(tmp_path, *own)
    before = contents(tmp_path)
    save_model(model, tmp_path / "model.keras", {})
    write(
        tmp_path,
        "checkpoints/keras_nfnets-epoch-000003.npz",
        "checkpoints/keras_nfnets-best.weights.h5",
        "tensorboard/train/events.out.tfevents.1.host",
    )
    with folders.claimed(tmp_path, resume=False, overwrite=True):
        write(tmp_path, "checkpoints/keras_nfnets-epoch-000001.npz")
        folders.remove_earlier(tmp_path)
        folders.remove_files(tmp_path, folders.CHECKPOINTS)
    (tmp_path / "model.keras").unlink()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", [".DS_Store", "notes.txt", "epoch-000001.npz"])
def test_a_finished_run_is_not_resumed_whatever_else_is_there(
    name, model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "digits-NFNetTiny-1"
    write(run, "history.csv", f"checkpoints/{name}")
    save_model(model, run / "model.keras", {})
    with (
        pytest.raises(ValueError, match="finished; there is nothing to resume"),
        folders.claimed(run, resume=True, overwrite=False),
    ):
        pass
    if not name.endswith(".npz"):
        with pytest.raises(ValueError, match="no unfinished run"):
            folders.choose("digits-NFNetTiny", resume=True)


def test_logs_of_a_folder_without_a_run_stay(tmp_path):
    write(tmp_path, "tensorboard/train/events.out.tfevents.1.mine.v2")
    before = contents(tmp_path)
    with folders.claimed(tmp_path, resume=False, overwrite=True):
        folders.remove_earlier(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)])
def test_checkpoints_that_a_killed_run_was_to_replace_come_back(flags, tmp_path):
    name = "keras_nfnets-epoch-000003.npz"
    write(tmp_path, f".earlier-checkpoints/{name}")
    try:
        with folders.claimed(tmp_path, resume=flags[0], overwrite=flags[1]):
            assert (tmp_path / "checkpoints" / name).exists() == flags[0]
    except ValueError as error:
        assert "holds checkpoints of another run" in str(error)
        assert flags == (False, False)
    names = [p.name for p in tmp_path.rglob("*")]
    assert sorted(names) == ["checkpoints", name]


@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)])
def test_what_a_killed_run_left_is_removed_by_the_next(flags, tmp_path):
    (tmp_path / f"{files.PARTIAL}12345678" / "assets").mkdir(parents=True)
    with folders.claimed(tmp_path, resume=flags[0], overwrite=flags[1]):
        assert [path.name for path in tmp_path.iterdir()] == [".keras_nfnets-claimed"]


def test_a_path_that_becomes_too_long_is_refused_before_training(tmp_path):
    room = os.pathconf(tmp_path, "PC_PATH_MAX") - len(str(tmp_path)) - 100
    path = tmp_path.joinpath(*["x" * 99] * (room // 100), "x" * (room % 100))
    with (
        pytest.raises(ValueError, match="Cannot write .*too long"),
        folders.claimed(path, resume=False, overwrite=False),
    ):
        pass


def test_models_are_saved_whatever_the_clock_says(model, tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 0.0)  # as without a battery
    save_model(model, tmp_path / "model.keras", {"class_names": ["a"]})
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for value, saved in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, saved)
