"""`data.load`: order, augmentation, shards, and image files of all formats."""

import io
import pathlib
import resource
import struct
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from quick import quick
from sklearn.datasets import load_sample_images

from keras_nfnets import data
from keras_nfnets.data import augmentation, pipeline, preprocessing

PLAIN = {
    "crop_mode": "whole",
    "interpolation": "bicubic",
    "mean": (0.0,) * 3,
    "deviation": (1 / 255,) * 3,
}


def arrays(dataset):
    return [np.concatenate(part) for part in zip(*dataset.as_numpy_iterator())]


def labels_of(batches):
    return [y.argmax(axis=1).tolist() for _, y in batches.as_numpy_iterator()]


# Order.

# Blank images, each of a class of its own; those of "train" are all of them.
NUMBERED = (np.zeros((144, 8, 8, 3), "uint8"), np.arange(144))


def test_order_follows_the_seed_and_changes_every_epoch():
    def epochs(seed):
        train = data.load(
            NUMBERED, "train", 8, 200, training=True, augmentation="flip", seed=seed
        )
        return [labels_of(train)[0] for _ in range(2)]

    first, second = epochs(3)
    assert epochs(3) == [first, second]
    assert first != second
    assert epochs(4)[0] != first


def test_an_epoch_does_not_depend_on_where_training_begins():
    def epochs(first, seed=3):
        order = {"training": True, "seed": seed, "from_epoch": first}
        batches = data.load(NUMBERED, "train", 8, 100, augmentation="flip", **order)
        labels = labels_of(batches.take(4))
        assert [len(batch) for batch in labels] == [100, 44] * 2
        return labels[0] + labels[1], labels[2] + labels[3]

    (zero, one), (again, two) = epochs(0), epochs(1)
    assert one == again
    assert zero != one and one != two
    assert sorted(zero) == sorted(one)
    assert epochs(0, seed=4)[0] not in (zero, one, two)
    # The largest seed, and one with the same lower bits.
    assert epochs(0, seed=2**32 - 1)[0] != epochs(0, seed=2**31 - 1)[0]


MIXED = "crop flip mixup cutmix"


@pytest.mark.parametrize("words", quick([MIXED, f"{MIXED} randaugment_1x5"], MIXED))
def test_the_same_seed_gives_the_same_images(words):
    def images(seed, global_seed):
        tf.random.set_seed(global_seed)
        x = np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3)).astype("uint8")
        batches = data.load(
            (x, np.arange(12)),
            "train",
            24,
            6,
            training=True,
            augmentation=words,
            seed=seed,
        )
        return arrays(batches), arrays(batches)

    (x, y), (x2, _) = images(1, 0)
    (again, y_again), (again2, _) = images(1, 5)
    np.testing.assert_array_equal(x, again)
    np.testing.assert_array_equal(y, y_again)
    np.testing.assert_array_equal(x2, again2)
    assert np.abs(x - x2).max() > 1
    assert np.abs(images(2, 0)[0][0] - x).max() > 1


def test_the_global_seed_of_the_user_stays():
    def numbers(between):
        tf.random.set_seed(7)
        between()
        return tf.random.uniform((3,)).numpy().tolist()

    def load():
        next(iter(data.load("digits", "train", 32, 4, training=True)))

    assert numbers(load) == numbers(lambda: None)


def test_arguments_out_of_range_are_errors_that_name_them():
    for change, sentence in [
        ({"split": "validation"}, "`split` must be one of 'train', 'test'"),
        ({"image_size": 0}, "`image_size` must be"),
        ({"batch_size": 1.5}, "`batch_size` must be"),
        ({"seed": 2**32}, "`seed` must be less"),
        ({"shard": (2, 2)}, r"shard=\(2, 2\)"),
        ({"shard": 3}, "`shard` must be"),
        ({"shard": (0, 1, 2)}, "`shard` must be"),
        ({"shard": (0, 3)}, "divisible by the number of shards, 3"),
        ({"from_epoch": -1}, "`from_epoch` must be"),
        ({"labels": "int"}, "`labels` must be one of 'one-hot', 'index'. Received: "),
        (
            {"labels": "index", "augmentation": "flip cutmix"},
            "without mixup and cutmix. Received: labels='index', .*cutmix=True",
        ),
        ({"labels": "index", "augmentation": "mixup_0.2"}, "have no single class"),
        ({"augmentation": "crop zoom"}, "randaugment_4x5 .*Received: 'zoom'"),
        ({"augmentation": "mixup_0"}, "Received: 'mixup_0'"),
        ({"augmentation": "crop_1.5"}, "Received: 'crop_1.5'"),
        ({"augmentation": "flip flip"}, "each once"),
        ({"augmentation": "randaugment_4x99"}, "Received: 'randaugment_4x99'"),
        ({"preparation": {**PLAIN, "crop_mode": "all"}}, "`crop_mode` must be one"),
        ({"preparation": {**PLAIN, "crop_mode": "center"}}, "needs `crop`"),
        (
            {"preparation": {"cropmode": "whole"}},
            "keys of .preparation. must be among .*Received: 'cropmode'",
        ),
    ]:
        arguments = {"split": "train", "image_size": 8, "batch_size": 8, **change}
        with pytest.raises(ValueError, match=sentence):
            data.load("digits", training=True, **arguments)


# Labels and cardinality.


@pytest.mark.parametrize("training", [True, False])
def test_labels_are_indices_if_asked_for(training):
    one_hot, index = (
        data.load("digits", "test", 8, 64, training=training, labels=labels)
        for labels in ("one-hot", "index")
    )
    (x, y), (x_index, y_index) = arrays(one_hot), arrays(index)
    np.testing.assert_array_equal(x, x_index)
    np.testing.assert_array_equal(y.argmax(axis=1), y_index)
    assert y_index.dtype == "int64" and y_index.shape == (360,)
    assert index.element_spec[1].shape.as_list() == [None]
    # Augmentation that would mix images does not apply in evaluation.
    data.load("digits", "test", 8, 64, labels="index", augmentation="cutmix")


@pytest.mark.parametrize("batch_size, shards", [(50, 1), (70, 5), (144, 3), (6, 6)])
def test_the_number_of_batches_is_known_in_evaluation(batch_size, shards):
    for shard in range(shards):
        dataset = data.load(NUMBERED, "train", 8, batch_size, shard=(shard, shards))
        assert dataset.cardinality() == len(labels_of(dataset))


def test_a_folder_trains_with_sparse_labels_and_without_warnings(tmp_path):
    for name, value in (("dark", 0), ("light", 255)):
        (tmp_path / name).mkdir()
        for i in range(12):
            image = Image.new("RGB", (9, 9 + i), (value, value, 3 * i))
            image.save(tmp_path / name / f"{i}.png")
    train, test = (
        data.load(tmp_path, split, 8, 4, training=split == "train", labels="index")
        for split in ("train", "test")
    )
    model = keras.Sequential(
        [keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "__array__ implementation")
        history = model.fit(
            train, validation_data=test, epochs=2, shuffle=False, verbose=0
        )
        model.evaluate(test, verbose=0)
    assert len(history.history["val_loss"]) == 2


def test_evaluation_ends_without_an_error_where_images_are_left_out(tmp_path):
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / name / f"{i}.jpg").write_bytes(jpeg())
    (tmp_path / "test" / "a" / "1.jpg").write_bytes(b"no image")
    (tmp_path / "test" / "b" / "3.jpg").write_bytes(b"no image")
    dataset = data.load(tmp_path, "test", 8, 1)
    assert dataset.cardinality() == 8
    assert [len(labels_of(dataset)) for _ in range(2)] == [6, 6]


# Shards.


@settings(max_examples=60)
@given(
    total=st.integers(1, 200), batch_size=st.integers(1, 50), count=st.integers(1, 9)
)
def test_shards_divide_every_batch_evenly(total, batch_size, count):
    batch_size = max(batch_size, count)
    owners = pipeline._owner(
        tf.range(total, dtype="int64"), total, batch_size, count
    ).numpy()
    for begin in range(0, total, batch_size):
        batch = owners[begin : begin + batch_size]
        if len(batch) < count:
            assert (batch == -1).all()
            continue
        assert (np.diff(batch) >= 0).all()  # each shard has a contiguous piece
        sizes = np.bincount(batch, minlength=count)
        assert sizes.max() - sizes.min() <= 1
    for training in (True, False):
        owners = pipeline._owner(
            tf.range(total, dtype="int64"), total, batch_size, count, training
        ).numpy()
        for index in range(count):
            share = pipeline._images_per_shard(
                total, batch_size, index, count, training
            )
            assert share == (owners == index).sum()


def test_each_shard_reads_only_its_own_images(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(25):
            pixels = rng.integers(0, 256, (9, 9, 3)).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    read = []
    read_record = data.Source.read

    def recorded(source, name, image):
        read.append(name)
        return read_record(source, name, image)

    monkeypatch.setattr(data.Source, "read", recorded)

    def batches(shard):
        read.clear()
        source = data.find(tmp_path)
        dataset = data.load(
            source, "train", 8, 12, training=True, augmentation="flip", shard=shard
        )
        return list(dataset.as_numpy_iterator()), set(read)

    complete, _ = batches((0, 1))
    parts = [batches((index, 2)) for index in range(2)]
    for i, (x, y) in enumerate(complete):
        together = [np.concatenate([part[i][k] for part, _ in parts]) for k in (0, 1)]
        np.testing.assert_array_equal(together[0], x)
        np.testing.assert_array_equal(together[1], y)
    files = [files for _, files in parts]
    assert not files[0] & files[1]
    assert sum(map(len, files)) == 40


# Crops.


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    """Folder of classes with JPEGs of 427 x 640 pixels that scikit-learn bundles."""
    folder = tmp_path_factory.mktemp("photographs")
    images = load_sample_images().images
    for name, image in zip(("china", "flower"), images):
        (folder / name).mkdir()
        for i in range(3):
            Image.fromarray(image).save(folder / name / f"{i}.jpg", quality=90)
    return folder


def decoded(photograph):
    return np.asarray(Image.open(photograph / "china" / "0.jpg"), "float32")


def first_of(photograph, size, crop_mode):
    preparation = {**PLAIN, "crop_mode": crop_mode}
    batches = data.load(photograph, "train", size, 1, preparation=preparation)
    return next(batches.as_numpy_iterator())[0][0]


@pytest.mark.parametrize("size", [64, 192])
def test_crop_resize_is_the_authors(photograph, size):
    x = decoded(photograph)
    side = int(427 / (size + 32) * size)
    top, left = (427 - side + 1) // 2, (640 - side + 1) // 2
    middle = x[top : top + side, left : left + side]
    expected = tf.image.resize(middle, (size, size), "bicubic")
    np.testing.assert_allclose(
        first_of(photograph, size, "crop_resize"), expected, atol=1e-3
    )


@pytest.mark.parametrize("size", [64, 192])
def test_resize_crop_32_is_the_authors(photograph, size):
    squashed = tf.image.resize(decoded(photograph), (size + 32,) * 2, "bicubic")
    expected = squashed[16 : 16 + size, 16 : 16 + size]
    np.testing.assert_allclose(
        first_of(photograph, size, "resize_crop_32"), expected, atol=1e-3
    )


def test_random_windows_have_the_area_and_aspect_ratio_requested():
    shape, shares = (427, 640, 3), []
    for seed in range(400):
        window = preprocessing.random_window(shape, 192, (0.08, 1.0), (seed, 7))
        top, left, height, width = map(int, window)
        assert 0 <= top <= top + height <= 427 and 0 <= left <= left + width <= 640
        assert 3 / 4 - 0.02 < width / height < 4 / 3 + 0.02
        shares.append(height * width / (427 * 640))
    assert min(shares) < 0.12 and max(shares) > 0.6 and 0.3 < np.mean(shares) < 0.6
    # No such window fits into an image of two rows, so the middle is used.
    window = preprocessing.random_window((2, 1000, 3), 32, (0.9, 1.0), (0, 0))
    assert window.numpy().tolist() == [1, 500, 1, 1]


def test_only_the_crop_of_a_jpeg_is_decoded(photograph):
    """The result equals that of full decoding, but for colors at the crop's border."""
    source = data.find(photograph)
    batches = data.load(source, "train", 96, 1, training=True, augmentation="crop")
    x, _ = arrays(batches)
    slow = data.find(photograph)
    # The same image as PNG, which must be decoded completely.
    for name in ("china", "flower"):
        for path in (photograph / name).glob("*.jpg"):
            Image.open(path).save(path.with_suffix(".png"))
    slow._files = {
        split: [(path.replace(".jpg", ".png"), label) for path, label in files]
        for split, files in source._files.items()
    }
    full = data.load(slow, "train", 96, 1, training=True, augmentation="crop")
    expected = arrays(full)[0]
    np.testing.assert_allclose(x, expected, atol=0.05)
    assert (np.abs(x - expected) > 1e-4).mean() < 0.01
    for path in photograph.rglob("*.png"):
        path.unlink()

    def operations(graph):
        nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
        return {node.op for node in nodes}

    ignore = tf.data.experimental.ExternalStatePolicy.IGNORE
    graph = tf.compat.v1.GraphDef.FromString(
        batches._as_serialized_graph(external_state_policy=ignore).numpy()
    )
    assert "DecodeAndCropJpeg" in operations(graph)
    assert "DecodeJpeg" not in operations(graph)


# Mixing.


def constant_images(count, size=16):
    """Return images and labels; all pixels of image k, and its label, are k."""
    values = np.arange(count, dtype="uint8")
    return np.tile(values[:, None, None, None], (1, size, size, 3)), np.arange(count)


def test_labels_are_mixed_as_images_are():
    x, y = constant_images(40)
    batches = data.load(
        (x, y),
        "train",
        16,
        20,
        training=True,
        augmentation="mixup_0.2 cutmix",
        preparation=PLAIN,
    )
    firsts = []
    for images, labels in batches.as_numpy_iterator():
        np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
        assert ((labels > 0).sum(axis=1) <= 2).all()
        # The mean of a mixed image is the weighted mean of its classes.
        by_hand = labels @ np.arange(40)
        np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), by_hand, atol=1e-4)
        # MixUp (first half) gives one value everywhere, CutMix (second half) two values.
        assert np.ptp(images[:10], axis=(1, 2, 3)).max() < 1e-4
        for image, label in zip(images[10:], labels[10:]):
            a, b = np.resize(np.flatnonzero(label), 2)
            share = (np.abs(image - a) < 1e-4).mean()
            np.testing.assert_allclose(label[a], share, atol=1e-6)
            assert (np.minimum(np.abs(image - a), np.abs(image - b)) < 1e-4).all()
        firsts.append(labels)
    assert sum(map(len, firsts)) == 40


@pytest.mark.parametrize("words", ["mixup_0.5", "cutmix"])
def test_mixup_or_cutmix_alone_applies_to_all_of_a_batch(words):
    x, y = constant_images(20)
    batches = data.load(
        (x, y), "train", 16, 20, training=True, augmentation=words, preparation=PLAIN
    )
    [(images, labels)] = batches.as_numpy_iterator()
    even = np.ptp(images, axis=(1, 2, 3)) < 1e-4
    mixed = (labels > 0).sum(axis=1) == 2
    assert mixed.sum() > 10
    assert even[mixed].all() if words.startswith("mixup") else not even[mixed].any()
    np.testing.assert_allclose(
        images.mean(axis=(1, 2, 3)), labels @ np.arange(20), atol=1e-4
    )


def test_mixup_ratios_have_the_beta_distribution():
    from scipy import stats

    for alpha in (0.2, 1.0):
        ratios = [
            float(augmentation.mixup_ratio(alpha, (seed, 3))) for seed in range(400)
        ]
        assert stats.kstest(ratios, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_cutmix_masks_equal_the_authors():
    """Equal to `cutmix_padding` in their dataset.py for the same random numbers."""
    for seed in range(40):
        height, width = tf.random.stateless_uniform((2,), (seed, 9), 0, 24, "int32")
        share = tf.random.stateless_uniform((), tf.random.fold_in((seed, 9), 1))
        length = int(np.sqrt(1 - float(share)) * 24)
        expected = np.zeros((24, 24))
        top, left = max(int(height) - length // 2, 0), max(int(width) - length // 2, 0)
        expected[top : int(height) + length // 2, left : int(width) + length // 2] = 1
        mask = augmentation.cutmix_mask(24, (seed, 9))
        np.testing.assert_array_equal(mask[..., 0], expected)


# Image files of all formats.


def jpeg(mode="RGB", size=(40, 30), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3))
    file = io.BytesIO()
    Image.fromarray(pixels.astype("uint8")).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def write_kinds(folder):
    """Write valid images of many formats."""
    folder.mkdir(parents=True)
    image = Image.open(io.BytesIO(jpeg()))
    (folder / "grey.jpg").write_bytes(jpeg("L"))
    (folder / "cmyk.jpg").write_bytes(jpeg("CMYK"))
    (folder / "progressive.jpg").write_bytes(jpeg(progressive=True))
    (folder / "one.jpg").write_bytes(jpeg(size=(1, 1)))
    (folder / "line.jpg").write_bytes(jpeg(size=(900, 1)))
    (folder / "more behind.jpg").write_bytes(jpeg() + b"\0" * 50)
    (folder / "a JPEG.png").write_bytes(jpeg())
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was on its side
    (folder / "turned.jpg").write_bytes(jpeg(exif=exif))
    sixteen = np.arange(1200, dtype="uint16").reshape(30, 40) * 50
    Image.fromarray(sixteen).save(folder / "16 bits.png")
    image.convert("P").save(folder / "palette.gif")
    image.convert("LA").save(folder / "transparent.png")
    frames = [image, image.rotate(90)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "animated.webp", save_all=True, append_images=frames[1:])
    image.save(folder / "bitmap.bmp")
    return sorted(path.name for path in folder.iterdir())


def write_broken(folder):
    folder.mkdir(parents=True)
    complete = jpeg(size=(200, 200))
    (folder / "cut.jpg").write_bytes(complete[: len(complete) // 2])
    (folder / "only a head.jpg").write_bytes(complete[:20])
    (folder / "text.png").write_text("no image")
    (folder / "empty.jpg").touch()
    damaged = bytearray(complete)
    damaged[100:600] = b"\xff" * 500
    (folder / "damaged.jpg").write_bytes(damaged)
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("training", [True, False])
def test_all_formats_are_read_and_broken_files_recorded(training, tmp_path, caplog):
    good = write_kinds(tmp_path / "train" / "good")
    broken = write_broken(tmp_path / "train" / "bad")
    (tmp_path / "train" / "bad" / "good.jpg").write_bytes(jpeg())
    (tmp_path / "test" / "bad").mkdir(parents=True)
    (tmp_path / "test" / "bad" / "good.jpg").write_bytes(jpeg())
    source = data.find(tmp_path)
    options = {"training": True, "augmentation": "flip"} if training else {}
    x, y = arrays(data.load(source, "train", 24, 4, preparation=PLAIN, **options))
    assert np.isfinite(x).all()
    names = sorted(name.rpartition("/")[2] for name in source.left_out)
    assert names == broken
    for name, reason in source.left_out.items():
        assert f"{name} is not a complete image" in reason
        assert f"left out: {name}" in caplog.text
    valid = len(good) + 1
    # In training, other images replace them.
    assert len(x) == (valid + len(broken) if training else valid)
    if not training:
        assert y.argmax(axis=1).sum() == len(good)
        # Each image equals a single file read on its own, however it was decoded.
        for image, (path, _) in zip(
            x, [f for f in source.files("train") if f[0] not in source.left_out]
        ):
            alone = data.prepare(data.read_picture(path), size=24, **PLAIN)
            np.testing.assert_array_equal(image, alone)


@pytest.mark.parametrize("words", ["crop", "crop mixup cutmix"])
def test_an_epoch_has_its_full_length_if_many_images_are_broken(words, tmp_path):
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "test" / name).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "train" / name / f"{i}.jpg").write_bytes(
                jpeg() if i > 3 else b"no image"
            )
        (tmp_path / "test" / name / "1.jpg").write_bytes(jpeg())
    batches = data.load(
        tmp_path, "train", 16, 8, training=True, augmentation=words, from_epoch=0
    )
    images = [x for x, _ in batches.take(6).as_numpy_iterator()]
    assert [len(x) for x in images] == [8, 8, 4] * 2
    # Images that replace broken ones get another crop.
    assert len({x.tobytes() for x in np.concatenate(images[:3])}) == 20


def test_evaluation_in_shards_has_every_image():
    # 144 images in batches of 70 leave four, fewer than shards.
    source = {"train": NUMBERED, "test": NUMBERED}
    labels = []
    for shard in range(5):
        for batch in labels_of(data.load(source, "test", 8, 70, shard=(shard, 5))):
            labels += batch
    assert sorted(labels) == list(range(144))


def segment(marker, content):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def unusual_jpegs(seed):
    """Return the contents of valid JPEGs with unusual headers, and of damaged ones."""
    random = np.random.default_rng(seed)
    plain, cmyk = jpeg(), jpeg("CMYK")
    exif = Image.Exif()
    exif[0x0112] = 6
    exif = segment(0xE1, exif.tobytes())
    xmp = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6"/>'
    long = segment(0xE5, b"x" * 65_000) * 3
    start = plain.index(b"\xff\xda")  # of the scan
    adobe = cmyk.index(b"\xff\xee")
    without_adobe = cmyk[:adobe] + cmyk[adobe + 16 :]
    files = [
        plain[:2] + long + exif + plain[2:],
        plain[:start] + exif + plain[start:],
        plain[:2] + segment(0xE1, xmp) + plain[2:],
        plain[:2] + segment(0xFE, b"Exif\0\0 in a comment") + plain[2:],
        plain[:2] + plain[20:],  # no JFIF
        without_adobe,
    ]
    for transform in (0, 1, 2):
        mark = segment(0xEE, b"Adobe\0d\0\0\0\0" + bytes([transform]))
        for content in (plain, jpeg("L"), without_adobe):
            files.append(content[:2] + mark + content[2:])
    for mode in ("RGB", "L", "CMYK"):
        for subsampling in (0, 1, 2):
            for size in ((41, 31), (7, 5)):
                for progressive in (True, False):
                    options = {"subsampling": subsampling, "progressive": progressive}
                    files.append(jpeg(mode, size, quality=40, **options))
    for i in range(60):
        damaged = bytearray((plain, jpeg("L"), jpeg(restart_marker_blocks=2))[i % 3])
        for _ in range(random.integers(1, 4)):
            at, length = random.integers(2, len(damaged) - 2), random.integers(5)
            damaged[at : at + length] = random.bytes(random.integers(5))
        files.append(bytes(damaged[:-2]) + b"\xff\xd9")
    return files


@pytest.mark.parametrize("channels", [3, 1])
@settings(max_examples=1)
@given(seed=st.integers(0, 2**32))
def test_a_file_has_the_same_pixels_in_a_batch_and_alone(
    channels, seed, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("unusual")
    for name in ("a", "b"):
        for split in ("train", "test"):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / "0.jpg").write_bytes(jpeg())
    for i, content in enumerate(unusual_jpegs(seed)):
        (folder / "test" / "a" / f"{i:03}.jpg").write_bytes(content)
    source = data.find(folder)
    preparation = {**PLAIN, "channels": channels, "interpolation": "bilinear"}
    x, _ = arrays(data.load(source, "test", 24, 16, preparation=preparation))
    used = [path for path, _ in source.files("test") if path not in source.left_out]
    assert 50 < len(x) == len(used)
    for image, path in zip(x, used):
        alone = data.prepare(data.read_picture(path), size=24, **preparation)
        np.testing.assert_array_equal(image, alone, err_msg=path)
    for path in source.left_out:
        with pytest.raises(ValueError, match="is not a complete image"):
            data.read_picture(path)


def test_own_images_are_antialiased(tmp_path):
    """Thin lines stay, so that all of the image counts."""
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(5):
            image = Image.new("RGB", (800, 800), "white")
            box = [200 + i, 200 + i, 600 + i, 600 + i]
            ImageDraw.Draw(image).rectangle(box, outline="black", width=3)
            image.save(tmp_path / name / f"{i}.png")
    identity = {"mean": (0,) * 3, "deviation": (1 / 255,) * 3, "crop_mode": "whole"}
    with Image.open(tmp_path / "a" / "0.png") as image:
        expected = (255 - np.asarray(image, float)).sum() / (800 / 64) ** 2
    ink = {}
    for interpolation in (None, "bicubic"):
        preparation = dict(identity)
        if interpolation:
            preparation["interpolation"] = interpolation
        for training in (True, False):
            batches = data.load(
                tmp_path,
                "train",
                64,
                32,
                training=training,
                augmentation="crop_0.99",
                preparation=preparation,
            )
            x, _ = arrays(batches)
            ink[interpolation, training] = (255 - x).sum(axis=(1, 2, 3))
    for training in (True, False):
        # (Some crops are smaller, so that the line is thicker.)
        assert (ink[None, training] > 0.95 * expected).all()
        assert (ink["bicubic", training] < 0.7 * expected).any()
    np.testing.assert_allclose(ink[None, False], expected, rtol=0.05)
    source = data.find(tmp_path)
    assert source.preparation["interpolation"] == "antialiased_bicubic"
    path, _ = source.files("train")[0]
    [x, *_] = arrays(data.load(source, "train", 64, 1, preparation=identity))[0]
    settings = {**source.preparation, **identity, "size": 64}
    np.testing.assert_array_equal(x, data.prepare(data.read_picture(path), **settings))


def test_images_are_converted_between_grayscale_and_color():
    preparation = {**PLAIN, "channels": 3}
    batches = data.load("digits", "test", 8, 10, preparation=preparation)
    x = next(batches.as_numpy_iterator())[0]
    assert x.shape == (10, 8, 8, 3)
    np.testing.assert_array_equal(x[..., 0], x[..., 2])
    colours = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype("uint8")
    grey = {**PLAIN, "channels": 1, "mean": [0.0], "deviation": [1 / 255]}
    batches = data.load((colours, range(4)), "train", 8, 4, preparation=grey)
    x = next(batches.as_numpy_iterator())[0]
    expected = [np.asarray(Image.fromarray(c).convert("L")) for c in colours]
    np.testing.assert_allclose(x[..., 0], expected, atol=1e-3)


def test_a_folder_of_broken_images_only_is_an_error(tmp_path):
    for name in "ab":
        write_broken(tmp_path / name)
    batches = data.load(tmp_path, "train", 8, 4, training=True, from_epoch=0)
    with pytest.raises(tf.errors.OpError, match="More than half of the images of"):
        next(iter(batches))


_damage = st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=40))


@settings(max_examples=5)
@given(damages=st.lists(_damage, min_size=3, max_size=3))
def test_damaged_jpegs_never_end_a_run(damages, damaged_jpegs):
    complete, batches_of = damaged_jpegs
    contents = []
    for position, value in damages:
        damaged = bytearray(complete)
        damaged[position : position + len(value)] = value
        contents.append(bytes(damaged))
    for x, _ in batches_of(contents):
        assert np.isfinite(x.numpy()).all()


@pytest.fixture(scope="module")
def damaged_jpegs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    for name in "ab":
        (folder / name).mkdir()
        for i in range(6):
            (folder / name / f"{i}.jpg").write_bytes(jpeg())
    source = data.find(folder)
    # One pipeline for all cases, as building it takes longest.
    batches = data.load(source, "train", 8, 20, training=True, augmentation="crop")
    paths = [path for path, _ in source.files("train")]

    def batches_of(contents):
        source.left_out.clear()
        source._left_out_of.clear()
        for path, content in zip(paths, contents):
            pathlib.Path(path).write_bytes(content)
        return batches

    return jpeg(size=(50, 40)), batches_of


def test_memory_does_not_grow_over_thousands_of_batches():
    batches = iter(
        data.load(
            "digits",
            "train",
            8,
            1,
            training=True,
            from_epoch=0,
            augmentation="crop mixup",
        )
    )
    seen = []
    for i in range(4_001):
        next(batches)
        if i % 1_000 == 0:
            seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    assert seen[-1] - seen[1] < 6  # megabytes, from the 1,000th to the 4,000th
