"""Files in the folder of checkpoints that are torn, hostile or of others."""

import json
import os
import resource
import zipfile

import keras
import numpy as np
import pytest

from keras_nfnets.training import Checkpoints

SETTINGS = {"epochs": 9, "optimizer": "sgd"}


def compiled_model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


@pytest.fixture
def saved(tmp_path):
    """Folder with the checkpoints of epochs 1 and 2, and the weights of epoch 1 and 2."""
    model, weights = compiled_model(), []
    checkpoints = Checkpoints(tmp_path, SETTINGS)
    checkpoints.set_model(model)
    for epoch in range(2):
        model.set_weights([np.full(v.shape, epoch + 1.0) for v in model.weights])
        weights.append(model.get_weights())
        checkpoints.on_epoch_end(epoch, {"loss": 1 / (epoch + 1)})
    return tmp_path, weights


def path_of(folder, epoch):
    return folder / f"keras_nfnets-epoch-{epoch:06}.npz"


def arrays_of(path):
    with np.load(path) as file:
        return dict(file)


def changed(**changes):
    """Return a function that changes what the last checkpoint says of itself."""

    def change(folder):
        arrays = arrays_of(path_of(folder, 2))
        about = json.loads(str(arrays["about"])) | changes
        np.savez(path_of(folder, 2), **{**arrays, "about": np.array(json.dumps(about))})

    return change


def replaced(content):
    return lambda folder: path_of(folder, 2).write_bytes(content)


def with_text(text):
    def change(folder):
        np.savez(path_of(folder, 2), about=np.array(text))

    return change


def truncate(folder):
    os.truncate(path_of(folder, 2), path_of(folder, 2).stat().st_size // 2)


def become_pipe(folder):
    path_of(folder, 2).unlink()
    os.mkfifo(path_of(folder, 2))


def become_folder(folder):
    path_of(folder, 2).unlink()
    path_of(folder, 2).mkdir()


def expand(folder):
    """A hundred megabytes of zeros per array, compressed."""
    arrays = arrays_of(path_of(folder, 2))
    with zipfile.ZipFile(path_of(folder, 2), "w", zipfile.ZIP_DEFLATED) as archive:
        for name in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                for _ in range(2 if name == "about" else 100):
                    file.write(bytes(2**20))


def declare(folder):
    """An array that is said to have 10^10 values."""
    content = path_of(folder, 2).read_bytes()
    path_of(folder, 2).write_bytes(
        content.replace(b"'shape': (2, 1), }    ", b"'shape': (9999999999,)}")
    )


def an_epoch_too_late(folder):
    changed(epoch=10**9)(folder)
    path_of(folder, 2).rename(path_of(folder, 10**9))


@pytest.mark.parametrize(
    "change",
    [
        truncate,
        become_pipe,
        become_folder,
        expand,
        declare,
        an_epoch_too_late,
        replaced(b""),
        replaced(b"PK\x05\x06" + bytes(18)),
        replaced(b"\x93NUMPY\x01\x00"),
        replaced(b"not a checkpoint" * 99),
        with_text("[" * 100_000),
        with_text("{}"),
        with_text('{"epoch": 2, "settings": [], "history": {}}'),
        changed(epoch=3),
        changed(epoch="2"),
        changed(epoch=None),
        changed(history=[]),
        changed(history={"loss": 1.0}),
        changed(history={"loss": ["1.0", "0.5"]}),
        changed(history={"loss": [1.0, 0.5, 0.3]}),
    ],
)
def test_a_file_that_is_no_complete_checkpoint_is_skipped(change, saved):
    folder, weights = saved
    change(folder)
    model, checkpoints = compiled_model(), Checkpoints(folder, SETTINGS)
    assert checkpoints.saved_settings() == SETTINGS
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**29, limits[1]))
    try:
        with pytest.warns(UserWarning, match="is not a complete checkpoint"):
            assert checkpoints.restore(model) == (1, {"loss": [1.0]})
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    for value, expected in zip(model.get_weights(), weights[0], strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    "array",
    [np.full((2, 1), "text"), np.ones((2, 1), "complex64"), np.ones((1, 2), "float32")],
)
def test_a_checkpoint_of_other_variables_changes_nothing(array, saved):
    folder, _ = saved
    arrays = arrays_of(path_of(folder, 2))
    [name] = [name for name, value in arrays.items() if value.shape == (2, 1)]
    np.savez(path_of(folder, 2), **{**arrays, name: array})
    model = compiled_model()
    before = model.get_weights()
    with pytest.raises(ValueError, match="names, shapes or types"):
        Checkpoints(folder, SETTINGS).restore(model)
    for value, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_files_of_others_are_neither_read_nor_deleted(saved):
    folder, _ = saved
    others = [folder / "epoch-000007.npz", folder / "my-epoch-000007.npz"]
    others += [path_of(folder, 100), path_of(folder, 200)]
    for path in others:
        path.write_text("mine")
    model = compiled_model()
    checkpoints = Checkpoints(folder, SETTINGS)
    with pytest.warns(UserWarning, match="epoch-000.00.npz is not a complete"):
        assert checkpoints.restore(model)[0] == 2
    checkpoints.set_model(model)
    for epoch in (3, 4):
        checkpoints.save(epoch)
    assert set(folder.iterdir()) == {path_of(folder, 3), path_of(folder, 4), *others}


def test_a_checkpoint_of_more_epochs_than_are_wanted_now_is_an_error(saved):
    folder, _ = saved
    with pytest.raises(ValueError, match="epochs=9 in the checkpoint, 1 now"):
        Checkpoints(folder, {**SETTINGS, "epochs": 1}).restore(compiled_model())


def test_checkpoints_with_the_first_names_are_read_and_renamed(saved):
    folder, _ = saved
    for path in folder.iterdir():
        path.rename(folder / path.name.removeprefix("keras_nfnets-"))
    np.savez(folder / "epoch-000009.npz", mine=np.zeros(3))
    checkpoints = Checkpoints(folder, SETTINGS)
    assert checkpoints.restore(compiled_model())[0] == 2
    paths = {path_of(folder, 1), path_of(folder, 2), folder / "epoch-000009.npz"}
    assert set(folder.iterdir()) == paths
