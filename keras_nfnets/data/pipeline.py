"""Input pipeline: batches of labeled images for training and evaluation."""

import contextlib
import functools
import itertools
import os
import threading

import numpy as np

from keras_nfnets import checks
from keras_nfnets.data import augmentation as augmenting
from keras_nfnets.data import images, preprocessing
from keras_nfnets.data.preparation import combined
from keras_nfnets.data.rand_augment import rand_augment
from keras_nfnets.data.sources import find

# Largest number of passes over the data in one epoch, to replace images that are left
# out. If half of the images are broken, only a quarter of the pairs can be mixed.
_MAX_PASSES = 8


def load(
    name,
    split,
    image_size,
    batch_size,
    *,
    training=False,
    augmentation=None,
    preparation=None,
    labels="one-hot",
    seed=0,
    from_epoch=None,
    shard=(0, 1),
):
    """Load batches of labeled images for training or evaluation.

    For training, images are shuffled and augmented (cropped at random, flipped, ...) as
    `augmentation` says. Only the cropped region of a JPEG is decoded. An image that is
    broken, or whose label is out of range, is left out with a warning and recorded in
    `Source.left_out`. (In training, another image replaces it.)

    Args:
        name: str, path, arrays or `Source`. `"digits"`, a folder with one subfolder per
            class, a data set of TensorFlow Datasets, arrays `(x, y)`, or a `Source`;
            see `find`.
        split: str. Split of the data set: `"train"`, `"test"`, ...
        image_size: int. Side length of the result, in pixels.
        batch_size: int. Images per batch, of all shards together.
        training: bool. Whether to shuffle and augment.
        augmentation: str. Words such as `"crop flip mixup_0.2 cutmix
            randaugment_4x5"`, see `Augmentation`. Default: that of the source, usually
            `"crop flip"`.
        preparation: dict of `crop_mode` (for evaluation), `interpolation`, `mean`,
            `deviation`, `crop` and `channels`, see `prepare`; for example that of a
            checkpoint. Missing keys are those of the source, usually the authors'
            `"crop_resize"` with ImageNet's mean and standard deviation.
        labels: str. `"one-hot"`, as `keras.losses.CategoricalCrossentropy` takes them, or
            `"index"`, integers as `SparseCategoricalCrossentropy` takes them; these
            cannot be mixed.
        seed: int. The same seed gives the same images in the same order, which differs
            from epoch to epoch. 0 to 2**32 - 1.
        from_epoch: int or None. None: each iteration over the data set is one epoch,
            beginning with epoch 0. An int: the data set is infinite and begins with
            that epoch. The content of an epoch depends only on its number and the seed.
        shard: tuple `(index, count)`. Each batch is divided among `count` shards; the
            data set is the shard with that index, and decodes only its own images.
            `count` must divide `batch_size`. (A last batch of fewer than `count` images
            is dropped in training; in evaluation, some shards get none of its images.)

    Returns:
        A `tf.data.Dataset` of (images, labels): float32 `(batch, image_size,
        image_size, channels)` and float32 `(batch, classes)`, one-hot or a mixture of two
        classes where images are mixed; with `labels="index"` int64 `(batch,)`. Its
        cardinality is the number of batches; in evaluation there are fewer if images are
        left out. It is shuffled already, so give `fit` `shuffle=False`, or Keras warns.

    Raises:
        ValueError: an argument is out of range, or the images do not exist.

    Example:

    >>> dataset = load("digits", "train", image_size=32, batch_size=64, training=True)
    >>> dataset.element_spec[0].shape, int(dataset.cardinality())
    (TensorShape([None, 32, 32, 1]), 23)

    Reference: the authors' dataset.py. As there, MixUp and CutMix make one image from
    two, so that an epoch reads each image twice. If both are used, MixUp applies to the
    first half of each batch and CutMix to the second. Pairs are neighbors in two
    concatenated random orders.
    """
    checks.installed("data.load", "tensorflow")
    import tensorflow as tf

    source = find(name)
    source.size_of(split)  # raises if there is no such split
    checks.integer("image_size", image_size)
    checks.integer("batch_size", batch_size)
    if checks.integer("seed", seed, minimum=0) >= 2**32:
        raise ValueError(f"`seed` must be less than 2**32. Received: seed={seed}")
    _check_shard(shard, batch_size)
    if augmentation is None:
        augmentation = source.augmentation
    augmentation = augmenting.Augmentation.parse(augmentation if training else "none")
    checks.one_of("labels", labels, ("one-hot", "index"))
    if labels == "index" and augmentation.mixes:
        raise ValueError(
            "Images that MixUp or CutMix mix have no single class: use labels='one-hot', "
            "or an `augmentation` without mixup and cutmix. Received: labels='index', "
            f"{augmentation}"
        )
    preparation = combined(source, image_size, preparation)
    preprocessor = _Preprocessor(source, split, augmentation, preparation, labels)
    # (Nothing in an epoch needs AutoGraph, which would try to convert TFDS.)
    epoch = tf.autograph.experimental.do_not_convert(
        functools.partial(_epoch, preprocessor, training, batch_size, shard, seed)
    )
    if not training:
        images = _images_per_shard(
            source.size_of(split), batch_size, *shard, training=False
        )
        batches = -(-images * shard[1] // batch_size)
        dataset = _of_at_most(batches, epoch(tf.constant(0, "int64")))
    elif from_epoch is None:
        steps = steps_per_epoch(source.size_of(split), batch_size, shard[1])
        dataset = _numbers_of_iterations().flat_map(epoch)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
    else:
        checks.integer("from_epoch", from_epoch, minimum=0)
        dataset = tf.data.Dataset.range(from_epoch, tf.int64.max).flat_map(epoch)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _check_shard(shard, batch_size):
    try:
        index, count = shard
    except (TypeError, ValueError):
        raise ValueError(
            f"`shard` must be (index, count). Received: shard={shard!r}"
        ) from None
    if checks.integer("shard", index, minimum=0) >= checks.integer("shard", count):
        raise ValueError(
            "`shard` must be (index, count) with index < count. "
            f"Received: shard={shard!r}"
        )
    if batch_size % count:
        raise ValueError(
            f"`batch_size` must be divisible by the number of shards, {count}. "
            f"Received: batch_size={batch_size}"
        )


def _of_at_most(count, dataset):
    """Give a data set the cardinality `count`, although it may turn out to be smaller.

    (With `assert_cardinality`, it would end in an error if images were left out. Without
    a cardinality, Keras warns at the end of every evaluation.)
    """
    import tensorflow as tf

    # The cardinality of a choice is infinite if one data set is, even if never chosen.
    never = tf.data.Dataset.from_tensors(
        tuple(tf.zeros((0, *s.shape[1:]), s.dtype) for s in dataset.element_spec)
    ).repeat()
    first = tf.data.Dataset.from_tensors(tf.constant(0, "int64")).repeat()
    return tf.data.Dataset.choose_from_datasets(
        [dataset, never], first, stop_on_empty_dataset=True
    ).take(count)


def _numbers_of_iterations():
    """Return a data set of one int64: 0 when iterated first, then 1, 2, ..."""
    import tensorflow as tf

    numbers = itertools.count()
    return tf.data.Dataset.range(1).map(
        lambda _: tf.ensure_shape(
            tf.numpy_function(lambda: np.int64(next(numbers)), [], "int64"), ()
        )
    )


def _epoch(preprocessor, training, batch_size, shard, seed, number):
    """Create the batches of an epoch.

    Args:
        preprocessor: `_Preprocessor` of the images of a split.
        training, batch_size, shard, seed: see `load`.
        number: int64 tensor. Number of the epoch.

    Returns:
        A `tf.data.Dataset` of (images, labels).
    """
    import tensorflow as tf

    source, split = preprocessor.source, preprocessor.split
    total = source.size_of(split)
    index, count = shard
    seeds = _seeds_of_epoch(seed, number)
    if training:
        records = _shuffled(source, split, seeds, preprocessor.augmentation.mixes)
    else:
        records = source.records(split)
    numbered = records.enumerate()
    if count > 1:
        numbered = numbered.filter(
            lambda i, _: _owner(i, total, batch_size, count, training) == index
        )

    def examples_of(number_of_pass):
        return numbered.map(
            lambda i, record: preprocessor(
                i % batch_size < batch_size // 2,
                record,
                seeds,
                i + number_of_pass * total,
            ),
            tf.data.AUTOTUNE,
        ).filter(lambda image, _: tf.size(image) > 0)

    if training:
        # Images of further passes, with new random crops, replace those left out.
        passes = tf.data.Dataset.range(_MAX_PASSES)
        shard_size = _images_per_shard(total, batch_size, index, count)
        examples = passes.flat_map(examples_of).take(shard_size)
    else:
        examples = examples_of(0)
    shape = (None, preprocessor.size, preprocessor.size, preprocessor.channels)
    return examples.batch(batch_size // count, num_parallel_calls=tf.data.AUTOTUNE).map(
        lambda images, labels: (tf.ensure_shape(images, shape), labels)
    )


def _seeds_of_epoch(seed, number):
    """Return the pair of int32 seeds of an epoch, given a seed of 32 bits."""
    import tensorflow as tf

    seeds = tf.cast(tf.stack([tf.cast(seed % 2**31, "int64"), number]), "int32")
    return tf.random.fold_in(seeds, 1) if seed >= 2**31 else seeds


def steps_per_epoch(examples, batch_size, shards=1):
    """Compute the number of batches in a training epoch of `load`.

    Args:
        examples: int. Number of images in the split.
        batch_size: int. Images per batch, of all shards together.
        shards: int. Number of shards. A last batch of fewer images is dropped.

    Returns:
        An integer.

    Example:

    >>> steps_per_epoch(1437, 64), steps_per_epoch(65, 64, shards=2)
    (23, 1)
    """
    steps, rest = divmod(examples, batch_size)
    return steps + (rest >= shards)


def _owner(i, total, batch_size, count, training=True):
    """Return the shard that gets the i-th image of an epoch, or -1 for none."""
    import tensorflow as tf

    begin = i - i % batch_size
    # The last batch may be smaller.
    length = tf.minimum(tf.constant(batch_size, "int64"), total - begin)
    owner = (i - begin) * count // length
    return tf.where(length >= count, owner, -1) if training else owner


def _images_per_shard(total, batch_size, index, count, training=True):
    """Compute the number of images that a shard gets in an epoch."""

    def images_in(length):
        # Smallest i with i * count // length == index, and that for the next index.
        begin, end = (-(-k * length // count) for k in (index, index + 1))
        return 0 if training and length < count else end - begin

    steps, rest = divmod(total, batch_size)
    return steps * images_in(batch_size) + images_in(rest)


def _shuffled(source, split, seeds, pairs):
    """Shuffle the records for an epoch.

    Returns:
        A `tf.data.Dataset` of records, or with `pairs` of pairs of records. Either has
        as many elements as there are records.
    """
    import tensorflow as tf

    def order(i):
        # With a fixed seed of this function's graph, the order depends only on `seeds`. It
        # must not be 0, as TensorFlow would then need the value of the other seed when it
        # builds the graph.
        tf.random.set_seed(1)
        seed = tf.random.stateless_uniform(
            (), tf.random.fold_in(seeds, i), 0, tf.int64.max, dtype="int64"
        )
        return source.records(
            split,
            lambda items, size: items.shuffle(
                size, seed, reshuffle_each_iteration=False
            ),
        )

    if not pairs:
        return order(0)
    return order(0).concatenate(order(1)).batch(2, drop_remainder=True)


class _Preprocessor:
    """Converter of a record, or a pair of records, to an image and its label."""

    def __init__(self, source, split, augmentation, preparation, labels):
        self.source = source
        self.split = split
        self.augmentation = augmentation
        self.preparation = preparation
        self.labels = labels
        self.size = preparation["size"]
        self.channels = preparation["channels"]
        self.classes = len(source.class_names)
        self.crops_as_timm = preparation["crop_mode"] in preprocessing.TIMM_CROP_MODES
        self.interpolation = preparation["interpolation"]
        if not self.crops_as_timm:
            # Preprocessing of images that are not cropped at random.
            self.window_of, self.resize = preprocessing.evaluation_crop(
                preparation["crop_mode"], self.interpolation
            )
        elif self.interpolation == "bicubic":
            self.interpolation = "antialiased_bicubic"  # as timm does

    def __call__(self, in_first_half, record, seeds, i):
        """Make the i-th example of an epoch, with an empty image if left out."""
        import tensorflow as tf

        seed = tf.random.fold_in(seeds, 2 + tf.cast(i, "int32"))
        if not self.augmentation.mixes:
            image, label = self._image_and_label(*record, tf.random.fold_in(seed, 0))
            return self._finished(image, seed), label
        first, second = (
            self._image_and_label(
                *(values[k] for values in record), tf.random.fold_in(seed, k)
            )
            for k in range(2)
        )
        complete = (tf.size(first[0]) > 0) & (tf.size(second[0]) > 0)
        return tf.cond(
            complete,
            lambda: self._mixed(first, second, in_first_half, seed),
            lambda: (tf.zeros((0, 0, self.channels)), first[1]),
        )

    def _mixed(self, first, second, in_first_half, seed):
        import tensorflow as tf

        def mixup():
            ratio = augmenting.mixup_ratio(
                self.augmentation.mixup, tf.random.fold_in(seed, 3)
            )
            return tf.fill((self.size, self.size, 1), ratio)

        def cutmix():
            return augmenting.cutmix_mask(self.size, tf.random.fold_in(seed, 3))

        if not self.augmentation.cutmix:
            mask = mixup()
        elif not self.augmentation.mixup:
            mask = cutmix()
        else:
            mask = tf.cond(in_first_half, mixup, cutmix)
        image = augmenting.mix(first[0], second[0], mask)
        label = augmenting.mix(first[1], second[1], tf.reduce_mean(mask))
        return self._finished(image, seed), label

    def _finished(self, image, seed):
        """Apply RandAugment, if used, to an image, and standardize it."""
        import tensorflow as tf

        if self.augmentation.rand_augment:
            image = tf.cond(
                tf.size(image) > 0,
                lambda: self._rand_augmented(image, seed),
                lambda: image,
            )
        mean, deviation = (
            preprocessing.per_channel(self.preparation[name], self.channels)
            for name in ("mean", "deviation")
        )
        return preprocessing.standardize(image, mean, deviation)

    def _rand_augmented(self, image, seed):
        import tensorflow as tf

        image = tf.cast(tf.clip_by_value(image, 0, 255), "uint8")
        if self.channels == 1:
            image = tf.image.grayscale_to_rgb(image)
        image = rand_augment(
            image, *self.augmentation.rand_augment, tf.random.fold_in(seed, 4)
        )
        return tf.cast(image[..., : self.channels], "float32")

    def _image_and_label(self, name, image, label, seed):
        """Return a float32 image of its final size, or an empty one, and its label."""
        import tensorflow as tf

        label_is_valid = (label >= 0) & (label < self.classes)
        image = tf.cond(
            label_is_valid,
            lambda: self._cropped_and_resized(name, image, seed),
            lambda: self._left_out(name, label),
        )
        image.set_shape((None, None, self.channels))
        if self.labels == "one-hot":
            label = tf.one_hot(label, self.classes)
        return image, label

    def _left_out(self, name, label):
        import tensorflow as tf

        def leave_out(name, label):
            reason = (
                f"its label is {label}, but there are {self.classes} classes, from 0"
            )
            name = name.decode(errors="surrogateescape")
            self.source.leave_out(name, reason, self.split)
            return np.zeros((0, 0, self.channels), "float32")

        return tf.numpy_function(leave_out, [name, label], "float32")

    def _cropped_and_resized(self, name, image, seed):
        """Crop and resize an image, or decode it first; it is empty if left out."""
        import tensorflow as tf

        if image.dtype != tf.string:
            image = self._with_output_channels(image)
            return self._resized(self._cropped(image, seed), seed)
        empty = tf.zeros((0, 0, self.channels), "uint8")
        cropped = _try(lambda image: self._jpeg(name, image, seed), image, empty)
        cropped.set_shape((None, None, self.channels))

        def otherwise():
            decoded, large = self._read(name, image, seed)
            return tf.cond(
                tf.size(decoded) > 0,
                lambda: self._resized(self._cropped(decoded, seed), seed),
                lambda: large,
            )

        return tf.cond(
            tf.size(cropped) > 0, lambda: self._resized(cropped, seed), otherwise
        )

    def _window(self, shape, seed):
        """Choose the window of an image of this shape."""
        import tensorflow as tf

        if self.augmentation.crop:
            area = self.augmentation.crop, 1.0
            return preprocessing.random_window(
                shape, self.size, area, tf.random.fold_in(seed, 1)
            )
        if self.crops_as_timm:
            return preprocessing.full_window(shape, self.size)
        return self.window_of(shape, self.size)

    def _cropped(self, image, seed):
        import tensorflow as tf

        window = self._window(tf.shape(image), seed)
        return tf.image.crop_to_bounding_box(image, *tf.unstack(window))

    def _resized(self, cropped, seed):
        """Flip a window of an image at random, if chosen, and resize it to float32."""
        import tensorflow as tf

        if self.augmentation.flip:
            cropped = tf.image.stateless_random_flip_left_right(
                cropped, tf.random.fold_in(seed, 2)
            )
        if self.augmentation.crop:
            return preprocessing.resize(cropped, self.size, self.interpolation)
        if self.crops_as_timm:
            return self._cropped_as_timm(cropped)
        return self.resize(cropped, self.size)

    def _jpeg(self, name, image, seed):
        """Decode the window of a JPEG that `read_picture` treats alike; else fail.

        Almost all images are such, of moderate size.
        """
        import tensorflow as tf

        content = image
        if self.source.reads_files:
            content = tf.io.read_file(
                tf.numpy_function(_path_of_moderate, [image], "string")
            )
        begins = tf.strings.substr(content, 0, 3) == b"\xff\xd8\xff"
        ends = tf.strings.substr(content, -2, 2) == b"\xff\xd9"
        # (Of a JPEG with several scans, `read_picture` checks their number.)
        scans = tf.size(tf.strings.split(content, b"\xff\xda")) - 1
        plain = begins & ends & (scans == 1)
        if self.source.reads_files:
            plain &= ~tf.strings.regex_full_match(content, _MAY_BE_ROTATED)
        # (libjpeg would print an error to stderr for a file that is no JPEG.)
        with tf.control_dependencies([tf.debugging.Assert(plain, [name])]):
            shape = tf.image.extract_jpeg_shape(tf.identity(content))
        # Four components are CMYK, which TensorFlow converts in another way.
        pixels = tf.reduce_prod(tf.cast(shape[:2], "int64"))
        plain = (pixels <= images.LARGE) & ((shape[2] == 1) | (shape[2] == 3))
        with tf.control_dependencies([tf.debugging.Assert(plain, [name])]):
            content = tf.identity(content)
        # (Grayscale is computed from RGB below: what libjpeg returns is rounded
        # differently.)
        options = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
        if self.augmentation.crop:
            decoded = tf.image.decode_and_crop_jpeg(
                content, self._window(shape, seed), **options
            )
            return self._with_output_channels(decoded)
        # Decoding the complete image makes evaluation bit-identical to `prepare`: colors
        # at the border of a crop depend on pixels beyond it.
        decoded = tf.image.decode_jpeg(content, **options)
        return self._cropped(self._with_output_channels(decoded), seed)

    def _with_output_channels(self, image):
        """Convert a uint8 image to the number of channels of the result."""
        import tensorflow as tf

        if image.shape[-1] < self.channels:
            return tf.image.grayscale_to_rgb(image)
        if image.shape[-1] > self.channels:
            image = tf.numpy_function(images.to_grayscale, [image], "uint8")
            image.set_shape((None, None, 1))
        return image

    def _read(self, name, image, seed):
        """Read an image from a file of any format.

        Returns:
            The complete image, uint8; and a large image cropped and resized to float32,
            of which only one at a time is in memory. Both are empty if it is left out.
        """
        import tensorflow as tf

        empty = np.zeros((0, 0, self.channels))

        def read(name, image, seed):
            name = name.decode(errors="surrogateescape")
            is_large = images.is_large(name if self.source.reads_files else image)
            decoded = resized = empty
            try:
                with _LARGE_IMAGE if is_large else contextlib.nullcontext():
                    decoded = self.source.read(name, image)
                    if self.channels == 1:
                        decoded = images.to_grayscale(decoded)
                    if is_large:
                        resized, decoded = self._read_large(decoded, seed), empty
            except (ValueError, MemoryError, tf.errors.ResourceExhaustedError) as error:
                reason = str(error) or "it needs more memory than is available"
                self.source.leave_out(name, reason, self.split)
                decoded = resized = empty
            return decoded.astype("uint8", copy=False), resized.astype("float32")

        decoded, large = tf.numpy_function(
            read, [name, image, seed], ["uint8", "float32"]
        )
        for result in (decoded, large):
            result.set_shape((None, None, self.channels))
        return decoded, large

    def _read_large(self, decoded, seed):
        """Crop and resize a decoded image, outside of the graph."""
        import tensorflow as tf

        with tf.device("CPU"):
            top, left, height, width = np.array(self._window(decoded.shape, seed))
            window = decoded[top : top + height, left : left + width]
            return np.asarray(self._resized(tf.constant(window), seed))

    def _cropped_as_timm(self, decoded):
        import tensorflow as tf

        def cropped(decoded):
            settings = (
                self.preparation[k] for k in ("crop", "crop_mode", "interpolation")
            )
            return images.crop_as_timm(decoded, self.size, *settings)

        return tf.numpy_function(cropped, [decoded], "float32")


# Held while a large image is decoded and resized.
_LARGE_IMAGE = threading.Lock()


def _path_of_moderate(path):
    """Return the path of a file of moderate size; otherwise one that does not exist."""
    try:
        is_moderate = os.stat(path).st_size <= images.max_bytes()
    except OSError:
        return path
    return path if is_moderate else b""


# A camera may record the orientation of an image, as Exif or XMP.
_MAY_BE_ROTATED = r"(?s)\C*(Exif\x00|tiff:Orientation)\C*"


def _try(function, value, otherwise):
    """Return `function(value)`, or `otherwise` if that fails, within a graph."""
    import tensorflow as tf

    one = tf.data.Dataset.from_tensors(value).map(function).ignore_errors()
    rest = tf.data.Dataset.from_tensors(otherwise)
    return one.concatenate(rest).take(1).get_single_element()
