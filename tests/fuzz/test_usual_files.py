"""Files that are unusual but right, which the limits must not refuse; and their changes."""

import io
import os
import pathlib
import subprocess
import sys
import zipfile

import files
import h5py
import keras
import numpy as np
import pytest
from comparing import assert_unchanged, snapshot

from keras_nfnets import AGCModel, NFNetTest, pretrained
from keras_nfnets.guards import hdf5, hdf5_headers, model_files
from keras_nfnets.guards.archive import Archive
from keras_nfnets.runs import saved_model

TESTS = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def network():
    return NFNetTest(classes=3)


def dense(units=3):
    inputs = keras.Input((4,))
    return AGCModel(inputs, keras.layers.Dense(units, name="last")(inputs))


def copied(source, target, **options):
    """Copy an HDF5 file, its arrays with other options of storage."""

    def copy(old, new):
        new.attrs.update(old.attrs)
        for name, item in old.items():
            if isinstance(item, h5py.Group):
                copy(item, new.create_group(name))
            else:
                stored = options if item.shape else {}
                new.create_dataset(name, data=item[()], **stored)
                new[name].attrs.update(item.attrs)

    with (
        h5py.File(source) as old,
        h5py.File(target, "w", libver=options.pop("libver", None)) as new,
    ):
        copy(old, new)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {"compression": "lzf"},
                {"chunks": True},
                {"maxshape": None, "chunks": True},
                {"libver": "latest"},
            )
        ),
        {"libver": "latest", "compression": "gzip"},
    ],
    ids=str,
)
def test_weights_load_however_they_are_stored(options, network, tmp_path):
    network.save_weights(tmp_path / "plain.weights.h5")
    copied(tmp_path / "plain.weights.h5", tmp_path / "new.weights.h5", **options)
    before = snapshot(network)
    for load in (
        lambda model, path: pretrained.load(model, pretrained.Source(path, None)),
        lambda model, path: model.load_weights(path),
    ):
        for variable in network.weights:
            variable.assign(keras.ops.zeros_like(variable))
        load(network, str(tmp_path / "new.weights.h5"))
        assert_unchanged(network, before)


def test_small_files_may_compress_well(tmp_path):
    model = dense(500_000)
    model.get_layer("last").set_weights([np.ones((4, 500_000)), np.zeros(500_000)])
    model.save_weights(tmp_path / "plain.weights.h5")
    packed = tmp_path / "packed.weights.h5"
    copied(tmp_path / "plain.weights.h5", packed, compression="gzip")
    assert packed.stat().st_size < 100_000
    model.load_weights(packed)


def test_a_compressed_keras_file_loads(tmp_path):
    dense().save(tmp_path / "plain.keras")
    with (
        zipfile.ZipFile(tmp_path / "plain.keras") as old,
        zipfile.ZipFile(tmp_path / "new.keras", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    saved_model.load_model(tmp_path / "new.keras")


@keras.saving.register_keras_serializable("tests")
class Counting(keras.layers.Layer):
    """A layer with variables of all kinds."""

    def build(self, shape):
        self.count = self.add_weight(shape=(2,), dtype="int32", trainable=False)
        self.on = self.add_weight(
            shape=(1,), dtype="bool", initializer="zeros", trainable=False
        )
        self.scale = self.add_weight(shape=(), initializer="ones")
        self.noise = keras.layers.Dropout(0.1, seed=3)

    def call(self, x):
        return self.noise(x) * self.scale


@pytest.mark.parametrize("policy", ["float32", "bfloat16", "float16"])
def test_models_with_variables_of_all_kinds_load(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(Counting()(inputs)))
    model.save(tmp_path / "m.keras")
    keras.config.set_dtype_policy("float32")
    again = saved_model.load_model(tmp_path / "m.keras")
    assert [v.dtype for v in again.weights] == [v.dtype for v in model.weights]
    assert_unchanged(again, snapshot(model))


def test_code_in_a_file_stays_refused(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1)(inputs))
    model.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="not a complete .keras file: .*[Ll]ambda"):
        saved_model.load_model(tmp_path / "m.keras")


def sharded(folder):
    model = dense(10_000)
    path = folder / "m.weights.json"
    model.save_weights(path, max_shard_size=170_000 / 1024**3)
    assert len(list(folder.glob("*.weights.h5"))) > 1
    return model, path


def test_sharded_weights_load(tmp_path):
    model, path = sharded(tmp_path)
    again = dense(10_000)
    again.load_weights(path)
    assert_unchanged(again, snapshot(model))


def test_shards_are_checked_and_lie_next_to_their_record(tmp_path):
    model, path = sharded(tmp_path)
    shard = sorted(tmp_path.glob("*.weights.h5"))[1]
    files.huge_chunk(shard)
    with pytest.raises(ValueError, match="far more than the size of the file allows"):
        model.load_weights(path)
    path.write_text(path.read_text().replace(shard.name, f"../{shard.name}"))
    with pytest.raises(ValueError, match=r"a shard of the name '\.\./"):
        model.load_weights(path)


def test_legacy_weights_load(tmp_path):
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    plain.save(tmp_path / "m.h5")
    model = dense()
    model.load_weights(tmp_path / "m.h5")
    assert_unchanged(model, snapshot(plain))


def test_lengths_of_strings_are_found_in_old_and_new_headers(tmp_path):
    path = tmp_path / "m.h5"
    for version in ("earliest", "latest"):
        for count in (1, 5):  # more than fit into the first block of a header
            with h5py.File(path, "w", libver=version) as file:
                for i in range(count):
                    file.attrs[f"text{i}"] = "x" * (i + 7)
                    file.attrs[f"fixed{i}"] = np.bytes_("y" * 100)
                file.attrs.create("names", ["a", "bcd"], dtype=h5py.string_dtype())
                file.attrs["numbers"] = np.arange(3)
            with open(path, "rb") as stream, h5py.File(path) as file:
                address = h5py.h5o.get_info(file["/"].id).addr
                if count == 5 and version == "latest":
                    with pytest.raises(ValueError, match="stored outside"):
                        hdf5_headers.string_lengths(stream, address, 2000)
                    continue
                found, _ = hdf5_headers.string_lengths(stream, address, 2000)
            assert sorted(found) == sorted([1, 3, *range(7, 7 + count)])


class Shrinking(io.BytesIO):
    """File that becomes shorter as soon as it has been checked."""

    def shrink(self):
        self.truncate(len(self.getvalue()) // 2)


def test_a_file_that_becomes_shorter_is_not_read_as_zeros(tmp_path):
    path = tmp_path / "m.weights.h5"
    files.weights(path)
    stream = Shrinking(path.read_bytes())
    with (
        pytest.raises(ValueError, match="became shorter while it was read"),
        hdf5.opened(stream, 0),
    ):
        stream.shrink()
    with (
        pytest.raises(ValueError, match="was changed while it was read"),
        model_files.checked(path),
    ):
        os.truncate(path, 5000)


def test_safetensors_files_that_become_shorter_do_not_end_the_process(tmp_path):
    path = tmp_path / "m.safetensors"
    files.safetensors_file(path, data=bytes(2**22))
    # The file is truncated after the library has opened it.
    program = f"""
import os
import safetensors.numpy
from keras_nfnets import pretrained

opened = safetensors.numpy.safe_open

def shrinking(*args, **options):
    file = opened(*args, **options)
    os.truncate({str(path)!r}, 1000)
    return file

safetensors.numpy.safe_open = shrinking
try:
    pretrained.recognize({str(path)!r})
except ValueError as error:
    print(error)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, (ended.returncode, ended.stderr[-2000:])
    assert "not a complete .safetensors file" in ended.stdout


def test_a_complete_file_of_too_much_content_gets_one_advice(tmp_path):
    path = tmp_path / "m.keras"
    inputs = keras.Input((3000,))
    zeros = keras.layers.Dense(6000, kernel_initializer="zeros")(inputs)
    keras.Model(inputs, zeros).save(path)  # 72 MB, which compress to almost nothing
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(
        ValueError, match="is not read: .* save it without compression.$"
    ):
        saved_model.load_model(path)


def test_checkpoints_that_unpack_to_more_are_skipped(tmp_path):
    from keras_nfnets.training import Checkpoints

    path = tmp_path / "keras_nfnets-epoch-000001.npz"
    np.savez(path, about=np.array('{"settings": {}, "epoch": 1, "history": {}}'))
    with zipfile.ZipFile(path, "a") as archive:
        files.bomb("model0.npy", zipfile.ZIP_DEFLATED, files.zeros(2**30, -15), 1000)(
            archive
        )
    model = dense()
    model.compile("sgd", "mse")
    checkpoints = Checkpoints(tmp_path, {})
    assert checkpoints.saved_settings() is None
    with pytest.warns(UserWarning, match="is skipped: .* differs from its size"):
        assert checkpoints.restore(model) == (0, {})


def test_a_changed_byte_of_a_member_is_noticed(tmp_path):
    path = tmp_path / "m.zip"
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("a", "some text " * 50)
        with Archive.opened(path) as archive:
            assert archive.read("a") == b"some text " * 50
        content = bytearray(path.read_bytes())
        content[45] ^= 1
        path.write_bytes(content)
        with (
            Archive.opened(path) as archive,
            pytest.raises(ValueError, match="broken|differs from its size or checksum"),
        ):
            archive.read("a")
