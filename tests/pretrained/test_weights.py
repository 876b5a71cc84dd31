"""Weight files: loaded completely, or not at all."""

import pathlib
import zipfile

import h5py
import keras
import numpy as np
import pytest
from comparing import assert_close, assert_unchanged, snapshot
from golden_case import GoldenCase, nfnet_tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quick import quick

from keras_nfnets import NFNet, NFNetTest, pretrained


def network(depths=(1, 1), widths=(16, 16), **options):
    return NFNet(depths, widths, **{"group_size": 8, "classes": 3, **options})


def load(model, path):
    pretrained.load(model, pretrained.Source(str(path), None))


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(7)
    model = network()
    model.compile("adam", "mse", run_eagerly=True)
    model.train_on_batch(np.ones((2, 8, 8, 3)), np.ones((2, 3)))
    for variable in model.trainable_variables:
        variable.assign(keras.random.normal(variable.shape))
    return model


@pytest.fixture(scope="module")
def target():
    return network()


@pytest.fixture(params=quick(["m.weights.h5", "m.keras"], "m.keras"))
def kind(request):
    """Name of a file: of weights only, or of a complete model."""
    return request.param


@pytest.fixture
def saved(kind, trained, tmp_path):
    """Network and a file of its weights."""
    path = tmp_path / "a folder" / kind
    path.parent.mkdir()
    (trained.save if path.suffix == ".keras" else trained.save_weights)(path)
    return trained, path


def test_saved_weights_come_back(saved):
    model, path = saved
    for source in (path, str(path)):
        again = network(weights=source)
        assert_unchanged(again, snapshot(model))


def test_rates_and_names_may_differ(saved):
    # The network may have other regularization than the one that wrote the file.
    model, path = saved
    again = network(
        weights=path, drop_rate=0.5, stochastic_depth_rate=0.5, name="other"
    )
    for a, b in zip(again.trainable_variables, model.trainable_variables):
        np.testing.assert_array_equal(a, b)


def test_network_without_top_loads_the_rest(saved):
    model, path = saved
    body = network(weights=path, include_top=False)
    for a, b in zip(body.trainable_variables, model.trainable_variables):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (
            *("m.keras", {"final_width": 24}),
            r"predictions/kernel has shape \(24, 3\) .* \(32, 3\) in the source",
        ),
        ("m.keras", {"depths": (1, 2)}, "stage2_block2/conv0/kernel .* is missing"),
        (
            *("m.weights.h5", {"depths": (1,), "widths": (16,)}),
            "stage2_block1/conv0/0 is not in the network",
        ),
        (
            "m.weights.h5",
            {"attention": None},
            "squeeze_excite/fc0/0 is not in the network",
        ),
        ("m.weights.h5", {"widths": (32, 32)}, "and [0-9]+ more$"),
    ],
)
def test_weights_of_another_network_are_refused(saved, options, message):
    _, path = saved
    with pytest.raises(ValueError, match=f"those of another network(.|\n)*{message}"):
        network(weights=path, **options)


def test_a_mismatch_of_one_parameter_changes_nothing(saved):
    _, path = saved
    model = network(final_width=24)
    before = snapshot(model)
    with pytest.raises(ValueError, match="nothing was changed"):
        load(model, path)
    assert_unchanged(model, before)


def test_a_classifier_of_another_size_is_skipped(saved):
    model, path = saved
    with pytest.warns(UserWarning, match="has 3 classes, that of the network has 4"):
        other = network(weights=path, classes=4)
    for a, b in zip(other.trainable_variables[:-2], model.trainable_variables[:-2]):
        np.testing.assert_array_equal(a, b)
    assert np.std(other.get_layer("predictions").kernel) == pytest.approx(0.01, rel=0.3)


@settings(
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_broken_files_are_refused_or_harmless(saved, target, data):
    """A file that is truncated or has changed bytes loads completely or not at all."""
    _, path = saved
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 8))):
            at = data.draw(st.integers(0, min(len(content), 4096) - 1))
            content[at] = data.draw(st.integers(0, 255))
    broken = path.with_name("broken" + "".join(path.suffixes))
    broken.write_bytes(bytes(content))
    before = snapshot(target)
    try:
        load(target, broken)
    except ValueError:
        assert_unchanged(target, before)


@pytest.mark.parametrize("cut", [0, 10, 500, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved, target, cut):
    _, path = saved
    content = path.read_bytes()
    path.write_bytes(
        content[: cut if cut >= 1 or cut == 0 else int(cut * len(content))]
    )
    with pytest.raises(ValueError, match="not a complete .weights.h5 or .keras file"):
        load(target, path)


def test_other_files_are_refused(tmp_path):
    text = tmp_path / "x.weights.h5"
    text.write_text("not weights")
    archive = tmp_path / "x.keras"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("model.weights.h5", "nor this")
    other = tmp_path / "y.keras"
    with zipfile.ZipFile(other, "w") as zipped:
        zipped.writestr("readme", "nor this")
    empty = tmp_path / "z.weights.h5"
    with h5py.File(empty, "w") as file:
        file["unrelated"] = np.ones(3)
    odd = tmp_path / "w.weights.h5"
    with h5py.File(odd, "w") as file:
        file["layers"] = np.ones(3)
    for path in (text, archive, other, empty, odd):
        with pytest.raises(
            ValueError, match="not a complete .weights.h5 or .keras file"
        ):
            network(weights=path)
    with pytest.raises(ValueError, match="where there is no file"):
        network(weights=tmp_path / "nothing.keras")
    with pytest.raises(ValueError, match="where there is no file"):
        network(weights=tmp_path)
    assert pathlib.Path(text).exists()


def _link_to_another_file(file, other):
    file["layers/ws_conv2d/vars/0"] = h5py.ExternalLink(other, "/secret")


def _link_to_nowhere(file, other):
    file["layers/ws_conv2d/vars/0"] = h5py.SoftLink("/layers/ws_conv2d_1/vars/0")


def _bytes_of_another_file(file, other):
    file["layers/ws_conv2d/vars"].create_dataset(
        "0", (3, 3, 3, 16), "float32", external=[(other, 0, h5py.h5f.UNLIMITED)]
    )


def _view_of_another_file(file, other):
    layout = h5py.VirtualLayout((3, 3, 3, 16), "float32")
    layout[:] = h5py.VirtualSource(other, "secret", (3, 3, 3, 16))
    file["layers/ws_conv2d/vars"].create_virtual_dataset("0", layout)


def _round_in_a_circle(file, other):
    file["layers/ws_conv2d/again"] = file["layers"]


def _doubling(file, other):
    group = file["layers"].create_group("a")
    for _ in range(60):
        inner = group.create_group("left")
        group["right"] = inner
        group = inner


def _terabytes_of_nothing(file, other):
    file["layers/ws_conv2d/vars"].create_dataset(
        "0", (1 << 40,), "float32", chunks=(1 << 20,)
    )


def _twice(file, other):
    file.copy(file["layers/ws_conv2d"], file["layers"], "zzz")


def _called_random_state(file, other):
    file["layers/ws_conv2d/seed_generator/vars/0"] = np.ones(1000, "float32")


@pytest.mark.parametrize(
    "attack",
    [
        _twice,
        _called_random_state,
        _link_to_another_file,
        _link_to_nowhere,
        _bytes_of_another_file,
        _view_of_another_file,
        _round_in_a_circle,
        _doubling,
        _terabytes_of_nothing,
    ],
)
def test_hostile_hdf5_files_are_refused(attack, trained, tmp_path):
    path, other = tmp_path / "m.weights.h5", tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones((3, 3, 3, 16), "float32")
    trained.save_weights(path)
    with h5py.File(path, "r+") as file:
        if attack in (
            _link_to_another_file,
            _link_to_nowhere,
            _bytes_of_another_file,
            _view_of_another_file,
            _terabytes_of_nothing,
        ):
            del file["layers/ws_conv2d/vars/0"]
        attack(file, str(other))
    before = snapshot(trained)
    with pytest.raises(
        ValueError,
        match="not a complete .weights.h5 or .keras file|is not in the network",
    ):
        load(trained, path)
    assert_unchanged(trained, before)


def test_broken_heaps_of_strings_are_refused(trained, tmp_path):
    # With most of these files, libhdf5 itself would loop forever.
    path = tmp_path / "m.weights.h5"
    trained.save_weights(path)
    whole = path.read_bytes()
    heap = whole.index(b"GCOL")
    # Offsets of sizes: of the heap and of its first objects.
    for at in (8, 24, 48, 72, 96, 120):
        broken = bytearray(whole)
        broken[heap + at : heap + at + 8] = b"\xec" * 8
        path.write_bytes(broken)
        before = snapshot(trained)
        with pytest.raises(ValueError, match="not a complete|those of another network"):
            load(trained, path)
        assert_unchanged(trained, before)


def test_zip_bombs_are_refused(trained, tmp_path):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(100_000_000))
    with pytest.raises(ValueError, match="far more than"):
        load(trained, path)


@pytest.fixture(scope="module")
def deepmind():
    """Network of the golden data, and its parameters as the authors name them."""
    return nfnet_tiny(), GoldenCase("haiku_nfnet_tiny").parameters


def test_deepmind_parameters_load_completely_or_not_at_all(deepmind):
    model, parameters = deepmind
    before = snapshot(model)

    def refused(changed, message):
        with pytest.raises(ValueError, match=message):
            pretrained.load_deepmind(model, changed)
        assert_unchanged(model, before)

    without = {k: v for k, v in parameters.items() if not k.endswith("final_conv")}
    refused(without, "final_conv/kernel of shape .* is missing")
    refused(
        {**parameters, "NFNet/~/extra": {"w": np.ones(3)}},
        "extra/.* is not in the network",
    )
    refused(
        {**parameters, "NFNet/~/nf_block_6/~/conv0": {"w": np.ones(3)}},
        "is not in the network",
    )
    refused(
        {**parameters, "NFNet/~/linear": {"w": np.ones((96, 11)), "b": np.ones(10)}},
        r"predictions/kernel has shape \(96, 10\) in the network, \(96, 11\) in the source",
    )
    refused({**parameters, "NFNet/~/linear/w": np.ones((96, 10))}, "given twice")
    refused({"odd": np.ones(3), 4: np.ones(2)}, "is not in the network")
    refused({}, "is missing")
    refused([("w", 1)], "Received: 'list'")
    refused("F0_haiku.npz", "'F0_haiku.npz', where there is no file")


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.full(10, "x"), "not of real numbers"),
        (np.full(10, None), "not of real numbers"),
        (np.full(10, 1j), "not of real numbers"),
        (np.full(10, 1e300), "too large for float32"),
        (np.full(10, np.nan), "not finite"),
        (np.full(10, -np.inf), "not finite"),
        ([[1], [2, 3]], "is not an array"),
    ],
)
def test_values_that_are_not_weights_are_refused(bad, message, deepmind):
    model, parameters = deepmind
    linear = {**parameters["NFNet/~/linear"], "b": bad}
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"predictions/bias .*{message}"):
        pretrained.load_deepmind(model, {**parameters, "NFNet/~/linear": linear})
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    "policy", quick(["bfloat16", "float16", "mixed_bfloat16"], "bfloat16")
)
@pytest.mark.parametrize("name", ["m.weights.h5", "m.keras"])
def test_files_of_other_policies_load(policy, name, tmp_path):
    keras.config.set_dtype_policy(policy)
    model = network()
    (model.save if name == "m.keras" else model.save_weights)(tmp_path / name)
    keras.config.set_dtype_policy("float32")
    again = network(weights=tmp_path / name)
    for a, b in zip(again.trainable_variables, model.trainable_variables):
        assert_close(a, keras.ops.cast(b, "float32"), rtol=0)


def test_deepmind_parameters_load_flat_and_without_top():
    parameters = GoldenCase("haiku_nfnet_tiny").parameters
    flat = {
        f"{module}/{leaf}": array
        for module, leaves in parameters.items()
        for leaf, array in leaves.items()
    }
    nested_model, flat_model = nfnet_tiny(), nfnet_tiny()
    pretrained.load_deepmind(nested_model, parameters)
    pretrained.load_deepmind(flat_model, flat)
    assert_unchanged(flat_model, snapshot(nested_model))
    body = nfnet_tiny(include_top=False)
    pretrained.load_deepmind(body, parameters)
    for a, b in zip(body.trainable_variables, nested_model.trainable_variables):
        np.testing.assert_array_equal(a, b)


def adapted_by_timm(kernel, channels):
    """`adapt_input_conv` of timm, for kernels (height, width, 3, filters)."""
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = np.concatenate([kernel] * -(-channels // 3), axis=2)
    return repeated[:, :, :channels] * (3 / channels)


def assert_adapted(model, rgb):
    """Only the first kernel differs, and by timm's rule."""
    channels = model.input_shape[-1]
    (first, *others), (rgb_first, *rgb_others) = snapshot(model), snapshot(rgb)
    assert_close(first, adapted_by_timm(rgb_first, channels), rtol=1e-6, atol=1e-6)
    for a, b in zip(others, rgb_others, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("channels", quick([1, 2, 4, 7], 1, 7))
def test_weights_of_an_rgb_network_start_one_with_other_channels(saved, channels):
    rgb, path = saved
    model = network(weights=path, input_shape=(None, None, channels))
    assert_adapted(model, rgb)


@pytest.mark.parametrize("channels", quick([1, 4], 1))
def test_published_rgb_weights_start_a_network_with_other_channels(channels):
    shape = (None, None, channels)
    rgb, parameters = nfnet_tiny(), GoldenCase("haiku_nfnet_tiny").parameters
    model = nfnet_tiny(input_shape=shape)
    for network in (rgb, model):
        pretrained.load_deepmind(network, parameters)
    assert_adapted(model, rgb)
    model = pretrained.create("NFNetTiny", weights="digits", input_shape=shape)
    assert_adapted(model, pretrained.create("NFNetTiny", weights="digits"))


def test_only_the_input_channels_may_differ(saved, tmp_path):
    _, path = saved
    gray = network(input_shape=(None, None, 1))
    gray.save_weights(tmp_path / "gray.weights.h5")
    again = network(input_shape=(8, 8, 1), weights=tmp_path / "gray.weights.h5")
    assert_unchanged(again, snapshot(gray))
    # Kernels of gray images are not adapted, as in timm.
    with pytest.raises(ValueError, match=r"\(3, 3, 3, 16\) in the network, \(3, 3, 1"):
        network(weights=tmp_path / "gray.weights.h5")
    with pytest.raises(ValueError, match="those of another network"):
        network(weights=path, input_shape=(None, None, 1), final_width=24)


@pytest.mark.parametrize("shape", [(None, None, 1), (None, None, 4)])
def test_weights_of_networks_with_other_channels_are_recognized(shape, tmp_path):
    path = tmp_path / "m.weights.h5"
    NFNetTest(classes=3, input_shape=shape).save_weights(path)
    found = pretrained.recognize(path)
    assert found.name == "NFNetTest"
    assert found.options == {"classes": 3, "input_shape": shape}
    found.network.build(weights=path, **found.options)
