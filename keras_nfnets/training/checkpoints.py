"""Checkpoints of the training state, to resume a run that was killed."""

import contextlib
import json
import pathlib
import re
import warnings

import keras
import numpy as np

from keras_nfnets import files
from keras_nfnets.backend import keras_internals, processes
from keras_nfnets.guards import json_text
from keras_nfnets.guards.archive import Archive
from keras_nfnets.printing import printable

# Names of checkpoints. The package's name tells them from other files, which are never
# replaced or deleted.
_PREFIX = "keras_nfnets-"
_NAME = re.compile(rf"{_PREFIX}epoch-(\d{{6,}})\.npz")
# Member with the description of the checkpoint: JSON, four bytes per character.
_ABOUT, _MOST_ABOUT = "about.npy", 5 * json_text.MAX_BYTES


class Checkpoints(keras.callbacks.Callback):
    """Callback that saves the complete training state after each epoch.

    A checkpoint contains the weights, the state of random generators, the optimizer with
    averaged weights, the number of epochs and the history. A file appears under its
    name, such as `keras_nfnets-epoch-000012.npz`, only when it is complete; the last two
    files are kept. `restore` loads the last one. Incomplete files,
    and files that are not checkpoints, are skipped with a warning.

    Args:
        folder: str or `pathlib.Path`. Created if it does not exist.
        settings: dict of JSON types. Identifies the run. If it has `"epochs"`,
            checkpoints of later epochs are skipped.
        write: bool. Whether to write files. With several workers, all need the callback,
            as each may have only parts of the weights and all read, but only one writes.

    Raises:
        OSError: at the end of an epoch, if saving failed. The previous checkpoint is
            kept.

    Example:

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> for epochs in (2, 4):  # the second run continues at the third epoch
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
        self.save(epoch + 1)

    def save(self, epoch):
        """Save the state after `epoch` epochs.

        All workers call it: those that do not write may have parts of the weights.
        """
        variables = self._variables(self.model)
        if not self.write:
            # One by one: the memory may be too small for all.
            for variable in filter(processes.is_divided, variables.values()):
                processes.to_numpy(variable)
            return
        arrays = {
            name: _as_storable(processes.to_numpy(variable))
            for name, variable in variables.items()
        }
        about = {"epoch": epoch, "settings": self.settings, "history": self.history}
        self.folder.mkdir(parents=True, exist_ok=True)
        files.remove_partial(self.folder)
        name = f"{_PREFIX}epoch-{epoch:06}.npz"
        with files.written(self.folder / name) as path:
            np.savez(path, about=np.array(json.dumps(about)), **arrays)
        earlier = [p for p in self._files() if _epoch_of(p) < epoch and p.is_file()]
        for old in earlier[1:]:
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
        if self.write:
            rename_first(self.folder)
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
        if not (
            variables.keys() == arrays.keys()
            and all(_fits(arrays[name], v) for name, v in variables.items())
        ):
            raise ValueError(
                f"{path} is a checkpoint of another model or another optimizer: its "
                "variables have other names, shapes or types. Use another folder. "
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
            with contextlib.suppress(Exception), _opened(path) as archive:
                return self._about(path, archive)["settings"]
        return None

    def _files(self):
        """List the checkpoint files, last epoch first."""
        paths = self.folder.glob(f"{_PREFIX}epoch-*.npz")
        return sorted(filter(_is_named, paths), key=_epoch_of, reverse=True)

    def _last_complete(self):
        for path in self._files():
            try:
                with _opened(path) as archive:
                    about = self._about(path, archive)
                    arrays = {
                        name.removesuffix(".npy"): _array(archive, name)
                        for name in archive.names - {_ABOUT}
                    }
                    return path, about, arrays
            except Exception as error:  # noqa: BLE001 (of whatever type)
                warnings.warn(
                    f"{printable(path)} is not a complete checkpoint and is skipped: "
                    f"{printable(error)}",
                    stacklevel=3,
                )
        return None

    def _about(self, path, archive):
        """Read and check the description in a checkpoint."""
        about = json_text.parse(str(_array(archive, _ABOUT, _MOST_ABOUT)))
        epoch, history, settings = _epoch_of(path), about["history"], about["settings"]
        if not isinstance(settings, dict):
            raise ValueError("its settings are of another form")
        most = settings.get("epochs", epoch)
        if about["epoch"] != epoch or not isinstance(most, int) or epoch > most:
            raise ValueError(f"it says that it is of epoch {about['epoch']} of {most}")
        if not all(
            len(values) <= epoch and all(type(value) is float for value in values)
            for values in history.values()
        ):
            raise ValueError("its history is of another form")
        return about

    @staticmethod
    def _variables(model):
        """Return all variables that training changes, by names equal in all processes."""
        with keras_internals.strategy_scope(model):
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


def _is_named(path):
    return _NAME.fullmatch(path.name) is not None


def _epoch_of(path):
    return int(_NAME.fullmatch(path.name)[1])


def rename_first(folder):
    """Give checkpoints from before the release of version 0.1.0 their present names.

    Returns:
        bool. Whether there were any.
    """
    found = []
    for path in folder.glob("epoch-*.npz"):
        target = path.with_name(_PREFIX + path.name)
        with contextlib.suppress(OSError, ValueError), _opened(path) as archive:
            if _ABOUT in archive.names and _is_named(target) and not target.exists():
                found.append((path, target))
    for path, target in found:
        path.rename(target)
    return bool(found)


@contextlib.contextmanager
def _opened(path):
    """Context in which a checkpoint is open as an `Archive`."""
    if not path.is_file():  # a pipe would be waited for
        raise ValueError("it is not a file")
    with Archive.opened(path) as archive:
        archive.check()
        yield archive


def _array(archive, name, most=None):
    return np.lib.format.read_array(archive.stream(name, most), allow_pickle=False)


def _fits(array, variable):
    """Whether a saved array has the shape of a variable, and a type that it can take."""
    return array.shape == tuple(variable.shape) and (
        array.dtype.kind == "V"
        or np.can_cast(array.dtype, np.dtype(variable.dtype), "same_kind")
    )


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
