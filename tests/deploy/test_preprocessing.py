import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_nfnets import data
from keras_nfnets.data.preprocessing import IMAGENET
from keras_nfnets.deploy.preprocessing import preprocessing_model

# Of one level of the pixels, divided by ImageNet's standard deviations.
LEVEL = 1 / (255 * min(IMAGENET["deviation"]))


def error(images, preparation):
    """Return the largest difference from `data.prepare`."""
    actual = np.asarray(preprocessing_model(preparation)(images))
    expected = np.stack([data.prepare(image, **preparation) for image in images])
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max()


@settings(max_examples=40)
@given(
    size=st.integers(1, 40),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    channels=st.sampled_from([1, 3]),
    interpolation=st.sampled_from(["bicubic", "antialiased_bicubic", "bilinear"]),
    mode=st.sampled_from(
        ["crop_resize", "whole", "resize_crop_8", "resize_crop_3", "center", "squash"]
    ),
    crop=st.sampled_from([0.5, 0.875, 1.0]),
)
def test_images_are_prepared_as_for_training(
    size, height, width, channels, interpolation, mode, crop
):
    preparation = {"size": size, "channels": channels, "interpolation": interpolation}
    preparation |= {"crop_mode": mode, "crop": crop, **IMAGENET}
    images = np.random.default_rng(height).integers(64, 192, (2, height, width, 3))
    # Pillow rounds to levels, twice; TensorFlow looks up its kernel without antialiasing.
    limit = {"center": 2.1, "squash": 2.1}.get(mode, 0.01)
    limit = max(limit, 0.4 if interpolation == "bicubic" else 0)
    assert error(images.astype("uint8"), preparation) < limit * LEVEL


def test_images_can_be_standardized_by_their_own_mean():
    preparation = {"size": 8, "crop_mode": "whole", "interpolation": "bilinear"}
    preparation |= {"mean": None, "deviation": None}
    images = np.random.default_rng(0).integers(0, 256, (2, 30, 20, 3), "uint8")
    images[1] = 7  # of standard deviation zero
    for channels in (1, 3):
        assert error(images, {**preparation, "channels": channels}) < 1e-3


def test_interpolation_by_the_nearest_pixel_is_refused():
    preparation = {"size": 8, "crop_mode": "squash", "interpolation": "nearest"}
    with pytest.raises(ValueError, match="'nearest' cannot be exported"):
        preprocessing_model({**preparation, **IMAGENET})
