"""RandAugment operations compared with Pillow or with their formulas."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from keras_nfnets.data.rand_augment import OPERATIONS, rand_augment

SEED = (3, 4)


@pytest.fixture(scope="module")
def photograph():
    image = load_sample_images().images[0]
    return np.asarray(Image.fromarray(image).resize((96, 64)))


def ours(name, image, magnitude, seed=SEED):
    return OPERATIONS[name](tf.constant(image), magnitude / 10, seed).numpy()


@pytest.mark.parametrize(
    "name, magnitude, of_pillow",
    [
        ("AutoContrast", 5, ImageOps.autocontrast),
        ("Equalize", 5, ImageOps.equalize),
        ("Invert", 5, ImageOps.invert),
        ("Posterize", 5, lambda image: ImageOps.posterize(image, 2)),
        ("Posterize", 15, lambda image: ImageOps.posterize(image, 6)),
        ("Solarize", 5, lambda image: ImageOps.solarize(image, 128)),
        ("Solarize", 10, lambda image: image),
        ("Color", 5, lambda image: ImageEnhance.Color(image).enhance(1.0)),
        ("Color", 15, lambda image: ImageEnhance.Color(image).enhance(2.8)),
        ("Brightness", 15, lambda image: ImageEnhance.Brightness(image).enhance(2.8)),
        ("Brightness", 2, lambda image: ImageEnhance.Brightness(image).enhance(0.46)),
        ("Sharpness", 10, lambda image: ImageEnhance.Sharpness(image).enhance(1.9)),
    ],
)
def test_color_operations_equal_those_of_pillow(name, magnitude, of_pillow, photograph):
    expected = np.asarray(of_pillow(Image.fromarray(photograph)), "int32")
    # Implementations round or truncate, and their grey weights differ in the third digit.
    difference = np.abs(ours(name, photograph, magnitude) - expected)
    assert difference.max() <= 4 and difference.mean() < 1


@pytest.mark.parametrize("seed", [(0, 0), (1, 0), (2, 0)])
@pytest.mark.parametrize(
    "name, coefficients",
    [
        ("ShearX", lambda sign: (1, sign * 0.15, 0, 0, 1, 0)),
        ("ShearY", lambda sign: (1, 0, 0, sign * 0.15, 1, 0)),
        ("TranslateX", lambda sign: (1, 0, sign * 50, 0, 1, 0)),
        ("TranslateY", lambda sign: (1, 0, 0, 0, 1, sign * 50)),
    ],
)
def test_geometric_operations_equal_those_of_pillow(
    name, coefficients, seed, photograph
):
    results = [
        np.asarray(
            Image.fromarray(photograph).transform(
                (96, 64),
                Image.Transform.AFFINE,
                coefficients(sign),
                Image.Resampling.NEAREST,
                fillcolor=(128, 128, 128),
            )
        )
        for sign in (1, -1)
    ]
    same = [(ours(name, photograph, 5, seed) == result).mean() for result in results]
    # (Positions halfway between two pixels may be rounded differently.)
    assert max(same) > 0.9 > min(same)


def test_rotation_equals_that_of_pillow(photograph):
    turned = ours("Rotate", photograph, 10)
    results = [
        np.asarray(Image.fromarray(photograph).rotate(angle, fillcolor=(128, 128, 128)))
        for angle in (30, -30)
    ]
    assert max((turned == result).mean() for result in results) > 0.95


def test_magnitudes_have_both_signs():
    image = np.zeros((9, 9, 3), "uint8")
    image[4, 2] = 255
    brightest = {
        int(ours("TranslateX", image, 0.2, (seed, 0))[4, :, 0].argmax())
        for seed in range(12)
    }
    assert len(brightest) == 2


def test_contrast_uses_the_authors_mean(photograph):
    # 24 = 64 * 96 pixels / 256 shades.
    expected = np.clip(24 + 2.8 * (photograph.astype("float32") - 24), 0, 255)
    np.testing.assert_allclose(ours("Contrast", photograph, 15), expected, atol=1)


def test_cutout_and_solarize_add(photograph):
    cut = ours("Cutout", photograph, 5)
    rows, columns = np.nonzero((cut != photograph).any(-1) | (cut == 128).all(-1))
    assert np.ptp(rows) < 40 and np.ptp(columns) < 40
    assert (cut[rows.min() + 1 : rows.max(), columns.min() + 1] == 128).all()
    dark = np.minimum(photograph.astype(int) + 55, 255)
    np.testing.assert_array_equal(
        ours("SolarizeAdd", photograph, 5), np.where(photograph < 128, dark, photograph)
    )


def test_each_layer_applies_one_operation_and_all_occur(photograph):
    none = rand_augment(photograph, 0, 9, SEED)
    np.testing.assert_array_equal(none, photograph)
    one = tf.function(lambda seed: rand_augment(photograph, 1, 9, seed))
    seen = {one(tf.constant([seed, 5])).numpy().tobytes() for seed in range(150)}
    # 16 operations, 5 of them with two signs, one at a random position.
    assert len(seen) > 20
    again = rand_augment(photograph, 4, 10, SEED)
    np.testing.assert_array_equal(rand_augment(photograph, 4, 10, SEED), again)
