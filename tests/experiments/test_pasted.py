import sys

import numpy as np
import pytest

from keras_nfnets.experiments import images, pasted

SETTINGS = {"dataset": "digits", "classes": 4, "side": 48, "objects": 3}


@pytest.fixture(scope="module")
def scenes():
    return pasted.scenes(SETTINGS, "train", 60, 0)


def objects(scenes):
    """Yield the image, the mask, the rows and columns, and the label of each object."""
    for image, mask, boxes, labels in zip(*scenes, strict=True):
        for box, label in zip(boxes.astype(int), labels, strict=True):
            if label >= 0:
                left, top, right, bottom = box
                yield image, mask, (slice(top, bottom), slice(left, right)), label


def test_masks_are_the_boxes_filled_with_the_labels(scenes):
    remaining = scenes.masks.copy()
    for _, mask, place, label in objects(scenes._replace(masks=remaining)):
        assert (mask[place] == 1 + label).all()  # also: no object hides another
        mask[place] = 0
    assert not remaining.any()


def test_images_have_one_to_all_objects_of_the_first_classes(scenes):
    counts = (scenes.labels >= 0).sum(axis=1)
    assert set(counts) == {1, 2, 3}
    assert set(scenes.labels[scenes.labels >= 0]) == {0, 1, 2, 3}
    np.testing.assert_array_equal(scenes.labels < 0, (scenes.boxes < 0).all(axis=-1))


def test_boxes_are_where_the_stamps_are(scenes):
    """The edge of a stamp has one color; another is in its middle."""

    def edge(pixels):
        sides = pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]
        return np.concatenate(sides)

    around = []
    for image, _, place, _ in objects(scenes):
        inside = image[place]
        assert np.ptp(edge(inside), axis=0).max() == 0
        contrast = np.linalg.norm(inside - inside[0, 0], axis=-1).max()
        assert contrast * 0.25 > 0.45  # images are divided by 0.25
        rows, columns = place
        if min(rows.start, columns.start) > 0:
            wider = image[rows.start - 1 : rows.stop, columns.start - 1 : columns.stop]
            around.append(np.ptp(edge(wider), axis=0).max() > 0)
    assert all(around) and len(around) > 20


def test_splits_share_neither_photographs_nor_characters():
    names = [name for split in pasted.PHOTOGRAPHS.values() for name in split]
    assert len(names) == len(set(names))
    splits = images.in_splits("digits")
    seen = {s: {image.tobytes() for image in x} for s, (x, _) in splits.items()}
    assert not seen["train"] & seen["validation"]
    assert not seen["test"] & (seen["train"] | seen["validation"])
    assert set(splits) == set(pasted.PHOTOGRAPHS)
    test, _ = images.load({"dataset": "digits"}).test_images(len(splits["test"][0]))
    similar = np.corrcoef(test.ravel(), splits["test"][0].ravel())[0, 1]
    assert similar == pytest.approx(1)


@pytest.mark.parametrize("make", [pasted.scenes, pasted.single])
def test_images_depend_on_seed_and_split_only(make):
    def made(split="train", seed=0, count=4):
        return make(SETTINGS, split, count, seed)

    for array, again in zip(made(), made(count=6), strict=True):
        np.testing.assert_array_equal(array, again[:4])
    for others in (made(seed=1), made(split="test")):
        assert (made()[0] != others[0]).any(axis=(1, 2, 3)).all()


def test_single_stamps_are_labelled():
    x, y = pasted.single(SETTINGS, "train", 40, 0)
    assert x.shape == (40, 24, 24, 3) and x.dtype == "float32"
    assert set(y) == {0, 1, 2, 3}


def test_a_missing_package_and_a_data_set_on_disk_are_explained(monkeypatch):
    with pytest.raises(ValueError, match="one of 'mnist5k'.*Received.*'cifar10'"):
        images.in_splits("cifar10")
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setattr(
        pasted, "_photographs", pasted._photographs.__wrapped__
    )  # no cache
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*experiments"):
        pasted.scenes(SETTINGS, "train", 1, 0)
