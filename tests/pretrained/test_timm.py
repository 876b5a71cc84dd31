"""timm files and mappings: loaded completely, or not at all."""

import pathlib

import keras
import numpy as np
import pytest
from comparing import assert_unchanged, snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from keras_nfnets import NFNet, NFNetTest, pretrained
from keras_nfnets.pretrained import timm


@pytest.fixture(scope="module")
def parameters():
    from golden_case import GoldenCase

    return GoldenCase("timm_test_nfnet").parameters


@pytest.fixture(scope="module")
def model():
    return NFNetTest(input_shape=(32, 32, 3))


@pytest.fixture
def file(parameters, tmp_path):
    path = tmp_path / "a folder" / "model.safetensors"
    path.parent.mkdir()
    save_file(parameters, path)
    return path


def test_file_and_mapping_and_weights_are_the_same(file, parameters, model):
    pretrained.load_timm(model, parameters)
    expected = snapshot(model)
    pretrained.load_timm(model, file)
    assert_unchanged(model, expected)
    pretrained.load_timm(model, str(file))
    assert_unchanged(NFNetTest(weights=file), expected)
    assert_unchanged(pretrained.create("test_nfnet", weights=str(file)), expected)


def test_every_parameter_is_used_once(parameters, model):
    # Each load changes half of the arrays: those whose number has a bit that is 0 or 1.
    # A weight that depends on one array alone changes with exactly one of each two
    # halves, and those it changes with are the bits of the array's number.
    pretrained.load_timm(model, parameters)
    before = snapshot(model)
    assert len(before) == len(parameters)

    def changed(bit, value):
        pretrained.load_timm(
            model,
            {
                name: array + (i >> bit & 1 == value)
                for i, (name, array) in enumerate(parameters.items())
            },
        )
        after = model.get_weights()
        return np.array([not np.array_equal(a, b) for a, b in zip(after, before)])

    numbers = np.zeros(len(before), int)
    for bit in range(len(before).bit_length()):
        ones = changed(bit, 1)
        np.testing.assert_array_equal(changed(bit, 0), ~ones)
        numbers += ones << bit
    assert sorted(numbers) == list(range(len(before)))


def test_networks_without_or_with_another_classifier_load_the_rest(file, parameters):
    whole = NFNetTest(weights=file)
    body = NFNetTest(weights=file, include_top=False)
    for a, b in zip(body.weights, whole.weights):
        np.testing.assert_array_equal(a, b)
    with pytest.warns(UserWarning, match="has 1000 classes, that of the network has 7"):
        other = NFNetTest(weights=file, classes=7)
    for a, b in zip(other.weights[:-2], whole.weights):
        np.testing.assert_array_equal(a, b)
    assert other.output_shape == (None, 7)


def test_mismatches_are_listed_and_change_nothing(parameters, model):
    before = snapshot(model)

    def refused(changed, *messages):
        with pytest.raises(ValueError, match="nothing was changed") as error:
            pretrained.load_timm(model, changed)
        for message in messages:
            assert message in str(error.value)
        assert_unchanged(model, before)

    without = dict(parameters)
    del without["stages.0.0.conv2b.gain"], without["final_conv.weight"]
    refused(
        without,
        "stage1_block1/conv1b/gain of shape (8,) is missing",
        "final_conv/kernel of shape (1, 1, 128, 192) is missing",
    )
    refused(
        {**parameters, "extra.weight": np.ones(3)}, "extra/kernel is not in the network"
    )
    refused({**parameters, "stages.9.0.conv1.bias": np.ones(8)}, "stage10_block1/conv0")
    refused(
        {**parameters, "stages.0.0.conv7.bias": np.ones(8)}, "stages.0.0.conv7.bias"
    )
    refused(
        {**parameters, "stages.0.0.attn.fc1.bias": np.ones(8)},
        "stages.0.0.attn.fc1.bias",
    )
    refused(
        {**parameters, "stem.conv1.weight": np.ones((16, 3, 5, 5))},
        "has shape (3, 3, 3, 16) in the network, (5, 5, 3, 16) in the source",
    )
    # Kernel and bias of the classifier must have the same number of classes.
    refused({**parameters, "head.fc.bias": np.ones(10)}, "predictions/bias has shape")
    refused({**parameters, "head.fc.weight": "x"}, "predictions/kernel has dtype")
    refused({**parameters, "stem.conv1.gain": None}, "stem_conv0/gain has dtype")
    refused({**parameters, "stem.conv1.gain": [[1], [2, 3]]}, "is not an array")
    refused({}, "is missing")
    body = NFNetTest(include_top=False)
    with pytest.raises(ValueError, match="predictions/extra is not in the network"):
        pretrained.load_timm(body, {**parameters, "head.fc.extra": np.ones(3)})


def test_gains_compensate_for_the_other_epsilon():
    # With the authors' lower bound, the filters must equal those of timm for any
    # variance, also for a kernel much smaller than usual.
    model = NFNet((1,), (16,), group_size=8, include_top=False)
    layer = model.get_layer("stem_conv1")
    kernel = np.random.default_rng(0).normal(size=(32, 16, 3, 3)) * np.logspace(
        -4, 0, 32
    ).reshape(32, 1, 1, 1)
    gain = np.linspace(0.5, 2, 32)
    _, ours = timm.match(
        model,
        {"stem.conv2.weight": kernel, "stem.conv2.gain": gain.reshape(32, 1, 1, 1)},
    )
    layer.kernel.assign(ours["stem_conv1/kernel"])
    layer.gain.assign(ours["stem_conv1/gain"])
    mean, variance = kernel.mean(axis=(1, 2, 3)), kernel.var(axis=(1, 2, 3))
    theirs = (kernel - mean[:, None, None, None]) / np.sqrt(variance + 1e-5)[
        :, None, None, None
    ]
    theirs = theirs * gain[:, None, None, None] / 144**0.5
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(layer.standardized_kernel()),
        theirs.transpose(2, 3, 1, 0),
        rtol=1e-3,
        atol=1e-6,
    )


@pytest.mark.parametrize("channels", [1, 5])
def test_other_input_channels_have_the_filters_of_in_chans(channels):
    # timm adapts the kernel as it is stored and then standardizes it. The network has
    # the authors' epsilon, so that the gain depends on the adapted kernel.
    model = NFNet(
        (1,), (16,), group_size=8, include_top=False, input_shape=(8, 8, channels)
    )
    layer = model.get_layer("stem_conv0")
    kernel = np.random.default_rng(0).normal(size=(16, 3, 3, 3)) * np.logspace(
        -4, 0, 16
    ).reshape(16, 1, 1, 1)
    gain = np.linspace(0.5, 2, 16).reshape(16, 1, 1, 1)
    _, ours = timm.match(model, {"stem.conv1.weight": kernel, "stem.conv1.gain": gain})
    layer.kernel.assign(ours["stem_conv0/kernel"])
    layer.gain.assign(ours["stem_conv0/gain"])
    if channels == 1:
        kernel = kernel.sum(axis=1, keepdims=True)
    else:
        kernel = np.tile(kernel, (1, 2, 1, 1))[:, :channels] * 3 / channels
    mean = kernel.mean(axis=(1, 2, 3), keepdims=True)
    variance = kernel.var(axis=(1, 2, 3), keepdims=True)
    theirs = gain * (kernel - mean) / np.sqrt((variance + 1e-5) * 9 * channels)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(layer.standardized_kernel()),
        theirs.transpose(2, 3, 1, 0),
        rtol=1e-3,
        atol=1e-6,
    )


def test_a_network_for_gray_images_starts_from_a_file_of_timm(file, model):
    pretrained.load_timm(model, file)
    (first, *others), shape = snapshot(model), (None, None, 1)
    gray = snapshot(pretrained.create("test_nfnet", weights=file, input_shape=shape))
    np.testing.assert_allclose(gray[0], first.sum(axis=2, keepdims=True), rtol=1e-5)
    for a, b in zip(gray[1:], others, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_files_of_other_precisions_load(dtype, parameters, model, tmp_path):
    pretrained.load_timm(model, parameters)
    expected = snapshot(model)
    save_file(
        {k: v.astype(dtype) for k, v in parameters.items()}, tmp_path / "m.safetensors"
    )
    pretrained.load_timm(model, tmp_path / "m.safetensors")
    for a, b in zip(model.get_weights(), expected):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 8, b"\xff" * 64, b"{}", b"\2\0\0\0\0\0\0\0{}", b"\x80\x04]."],
)
def test_other_files_are_refused(content, model, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    before = snapshot(model)
    with pytest.raises(ValueError, match="x.safetensors"):
        pretrained.load_timm(model, path)
    assert_unchanged(model, before)


def test_invalid_paths_are_errors(model, tmp_path):
    for path in (
        tmp_path,
        "none.safetensors",
        "~nobody/x",
        "a\0b",
        "a" * 5000,
        3,
        None,
    ):
        with pytest.raises(ValueError, match="Received: "):
            pretrained.load_timm(model, path)


@settings(
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_broken_files_are_refused_or_harmless(file, model, data):
    """A file that is truncated or has changed bytes loads completely or not at all."""
    content = bytearray(file.read_bytes())
    header = int.from_bytes(content[:8], "little") + 8
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 8))):
            at = data.draw(st.integers(0, header - 1))
            content[at] = data.draw(st.integers(0, 255))
    broken = pathlib.Path(file).with_name("broken.safetensors")
    broken.write_bytes(bytes(content))
    before = snapshot(model)
    try:
        pretrained.load_timm(model, broken)
    except ValueError:
        assert_unchanged(model, before)
    else:
        assert load_file(broken).keys() == load_file(file).keys()
