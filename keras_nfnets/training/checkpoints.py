"""Checkpoints of the training state, to resume a run that was killed."""

import contextlib
import json
import pathlib
import re
import warnings

import keras
import numpy as np
from keras import ops

from keras_nfnets import files
from keras_nfnets.guards import json_text
from keras_nfnets.guards.archive import Archive


class Checkpoints(keras.callbacks.Callback):
    """Callback that saves the complete training state after each epoch.

    A checkpoint contains the weights, the state of random generators, the optimizer with
    averaged weights, the number of epochs and the history. A file appears under its
    name, such as `epoch-000012.npz`, only when it is complete; the last two files are
    kept. `restore` loads the last one.

    Args:
        folder: str or `pathlib.Path`. Created if it does not exist.
        settings: dict of JSON types. Identifies the run.
        write: bool. Whether to write: only one of several workers does, but all read.

    Raises:
        OSError: at the end of an epoch, if saving failed. The previous checkpoint is
            kept.

    Example:

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> for epochs in (2, 4):  # the second time it goes on at the third epoch
    ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    ...     model.compile("adam", "mse")
    ...     checkpoints = Checkpoints(folder, settings={"optimizer": "adam"})
    ...     done, history = checkpoints.restore(model)
    ...     _ = model.fit(np.ones((4, 2)), np.ones(4), initial_epoch=done, epochs=epochs,
    ...                   callbacks=[checkpoints], verbose=0)
    >>> done, len(checkpoints.history["loss"])
    (2, 4)
    """

    def __init__(self, folder, settings, write=True):
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.settings = settings
        self.write = write
        self.history = {}

    def on_epoch_end(self, epoch, logs=None):
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        if self.write:
            self.save(epoch + 1)

    def save(self, epoch):
        """Save the state after `epoch` epochs."""
        about = {"epoch": epoch, "settings": self.settings, "history": self.history}
        arrays = {
            name: _as_storable(ops.convert_to_numpy(variable))
            for name, variable in self._variables(self.model).items()
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        files.remove_partial(self.folder)
        with files.written(self.folder / f"epoch-{epoch:06}.npz") as path:
            np.savez(path, about=np.array(json.dumps(about)), **arrays)
        for old in self._files()[2:]:
            old.unlink(missing_ok=True)

    def restore(self, model):
        """Restore the last complete checkpoint into a compiled model.

        Returns:
            The number of completed epochs and their history, `{name: [value, ...]}`; 0
            and `{}` if there is no checkpoint.

        Raises:
            ValueError: the checkpoint is from another run: its settings or the
                variables of its model differ.
        """
        # Created even without a checkpoint, as all workers must do so together.
        variables = self._variables(model)
        found = self._last_complete()
        if found is None:
            return 0, {}
        path, about, arrays = found
        changed = {
            name
            for name in {*about["settings"], *self.settings}
            if about["settings"].get(name) != self.settings.get(name)
        }
        if changed:
            differences = ", ".join(
                f"{name}={about['settings'].get(name)!r} in the checkpoint, "
                f"{self.settings.get(name)!r} now"
                for name in sorted(changed)
            )
            raise ValueError(
                f"{path} is a checkpoint of a run with other settings. Use the same "
                f"settings, or another folder. Received: {differences}"
            )
        shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
        if shapes != {name: array.shape for name, array in arrays.items()}:
            raise ValueError(
                f"{path} is a checkpoint of another model or another optimizer: its "
                "variables have other names or shapes. Use another folder. "
                f"Received: {len(arrays)} arrays for {len(variables)} variables"
            )
        values = {
            name: _restored(path, variables[name], array)
            for name, array in arrays.items()
        }
        for name, variable in variables.items():
            variable.assign(values[name])
        self.history = about["history"]
        return about["epoch"], self.history

    def saved_settings(self):
        """Return the settings of the last complete checkpoint, or None."""
        for path in self._files():
            with contextlib.suppress(Exception), _opened(path) as file:
                return json_text.parse(str(file["about"]))["settings"]
        return None

    def _files(self):
        """List the checkpoint files, last epoch first."""
        files = (
            path
            for path in self.folder.glob("epoch-*.npz")
            if re.fullmatch(r"epoch-\d{6,}", path.stem)
        )
        return sorted(files, key=lambda path: -int(path.stem.partition("-")[2]))

    def _last_complete(self):
        for path in self._files():
            try:
                with _opened(path) as file:
                    arrays = {name: file[name] for name in file.files}
                return path, json_text.parse(str(arrays.pop("about"))), arrays
            except Exception as error:  # noqa: BLE001 (of whatever type)
                warnings.warn(
                    f"{path} is not complete and is skipped: {error}", stacklevel=3
                )
        return None

    @staticmethod
    def _variables(model):
        """Return all variables that training changes, by names equal in all processes."""
        if hasattr(model, "build_training_state"):
            model.build_training_state()
        elif not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        # The count of consecutive skipped steps continues across epochs.
        skipped = getattr(model, "skipped", None)
        groups = {
            "model": model.variables,
            "optimizer": model.optimizer.variables,
            "skipped": skipped.variables if skipped is not None else [],
        }
        return {
            f"{group}{i}": variable
            for group, variables in groups.items()
            for i, variable in enumerate(variables)
        }


@contextlib.contextmanager
def _opened(path):
    """Context in which a checkpoint is open, after its members have been checked."""
    with Archive.opened(path) as archive:
        archive.check()
    with np.load(path, allow_pickle=False) as file:
        yield file


def _as_storable(array):
    """Return an array as raw bytes if its type is unknown to NumPy (bfloat16, float8)."""
    is_extension_type = array.dtype.isbuiltin == 2
    return array.view(f"V{array.itemsize}") if is_extension_type else array


def _restored(path, variable, array):
    """Return a saved array with the type of its variable, if it was saved as raw bytes."""
    if array.dtype.kind != "V":
        return array
    dtype = np.dtype(variable.dtype)
    if dtype.itemsize != array.itemsize:
        raise ValueError(
            f"{path} has values of another type than the model. Use the same dtype policy, "
            f"or another folder. Received: {array.itemsize} bytes per value for the "
            f"variable {variable.path} of dtype {variable.dtype}"
        )
    return array.view(dtype)
