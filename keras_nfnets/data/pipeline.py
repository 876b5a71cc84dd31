"""From labelled pictures to batches: `load`."""

import itertools

import numpy as np

from keras_nfnets import checks
from keras_nfnets.data import augmentation as augmenting
from keras_nfnets.data import preprocessing
from keras_nfnets.data.pictures import as_grey, crop_as_timm, read_picture
from keras_nfnets.data.rand_augment import rand_augment
from keras_nfnets.data.sources import find

# Of an epoch, until there are as many pictures as there should be: where half of them
# are broken, a quarter of the pairs are whole.
_MOST_TURNS = 8


def load(
    name,
    split,
    image_size,
    batch_size,
    *,
    training=False,
    augmentation=None,
    preparation=None,
    seed=0,
    from_epoch=None,
    shard=(0, 1),
):
    """Loads labelled pictures as batches to train on or to evaluate with.

    To train on, pictures are shuffled, cropped at random, mirrored and more, as
    `augmentation` says. Only what is cropped of a JPEG is decoded. A picture that is
    broken, or whose label is out of range, is left out with a warning and counted in
    `Source.left_out`. (In training another one takes its place.)

    Args:
        name: `"digits"`, a folder of class folders, a set of TensorFlow Datasets, arrays
            `(x, y)`, or a `Source`; see `find`.
        split: which part: `"train"`, `"test"`, ...
        image_size: pixels a side of the result.
        batch_size: pictures a batch, of all shards together.
        training: whether to shuffle and augment.
        augmentation: words such as `"crop flip mixup_0.2 cutmix randaugment_4x5"`, see
            `Augmentation`; by default the source's, usually `"crop flip"`.
        preparation: dict of `crop_mode` (that of evaluation), `interpolation`, `mean`,
            `deviation`, `crop` and `channels`, see `prepare`, such as a checkpoint's;
            what is not in it is the source's own, usually the authors' `"crop_resize"`
            with ImageNet's mean and deviation.
        seed: the same seed gives the same pictures in the same order; it is another one
            each epoch. 0 to 2**32 - 1.
        from_epoch: None for one epoch each time that it is iterated over, the first of
            number 0; a number for all epochs from that on, without end. What an epoch is
            depends on its number and the seed alone.
        shard: `(index, count)`: every batch is divided among `count`, this is the share
            of that index; with only these pictures read. `count` must divide
            `batch_size`. (A last batch of fewer than `count` pictures is left out in
            training; in evaluation some shards have nothing of it.)

    Returns:
        A `tf.data.Dataset` of (pictures, labels): float32 `(batch, image_size,
        image_size, channels)` and float32 `(batch, classes)`, one-hot, or of two classes
        where pictures are mixed.

    Raises:
        ValueError: an argument out of range, or pictures that are not there.

    Example:

    >>> dataset = load("digits", "train", image_size=32, batch_size=64, training=True)
    >>> dataset.element_spec[0].shape, int(dataset.cardinality())
    (TensorShape([None, 32, 32, 1]), 23)

    Reference: the authors' dataset.py. As there, MixUp and CutMix make one picture of
    two, so that an epoch reads each picture twice: pairs are neighbours in two orders,
    one after the other. The first half of a batch, by their places in it, has MixUp.
    """
    import tensorflow as tf

    source = find(name)
    total = source.size_of(split)
    checks.integer("image_size", image_size)
    checks.integer("batch_size", batch_size)
    if checks.integer("seed", seed, minimum=0) >= 2**32:
        raise ValueError(f"`seed` must be less than 2**32. Received: seed={seed}")
    try:
        index, count = shard
    except TypeError:
        raise ValueError(f"A shard is (index, count). Received: {shard!r}") from None
    if checks.integer("shard", index, minimum=0) >= checks.integer("shard", count):
        raise ValueError(f"A shard is (index, count). Received: shard={shard}")
    if batch_size % count:
        raise ValueError(
            f"A batch must be divisible among the {count} shards. "
            f"Received: batch_size={batch_size}"
        )
    if augmentation is None:
        augmentation = source.augmentation
    augmentation = augmenting.Augmentation.parse(augmentation if training else "none")
    preparation = {
        "channels": source.channels,
        **source.preparation,
        **(preparation or {}),
        "size": image_size,
    }
    make = _Maker(source, split, augmentation, preparation)

    mine = _share(total, batch_size, index, count)
    steps = steps_per_epoch(total, batch_size, count)

    # (Nothing here is for AutoGraph, which would look into TFDS.)
    @tf.autograph.experimental.do_not_convert
    def batches(number):
        """Those of an epoch."""
        seeds = tf.cast(tf.stack([tf.cast(seed % 2**31, "int64"), number]), "int32")
        if seed >= 2**31:
            seeds = tf.random.fold_in(seeds, 1)
        if training:
            records = _shuffled(source, split, seeds, augmentation.mixes)
        else:
            records = source.records(split)
        numbered = records.enumerate()
        if count > 1:
            numbered = numbered.filter(
                lambda i, _: _owner(i, total, batch_size, count, training) == index
            )

        def examples_of(turn):
            return numbered.map(
                lambda i, record: make(
                    i % batch_size < batch_size // 2, record, seeds, i + turn * total
                ),
                tf.data.AUTOTUNE,
            ).filter(lambda image, _: tf.size(image) > 0)

        if training:
            # Others, cropped in another way, in the place of those that are left out.
            turns = tf.data.Dataset.range(_MOST_TURNS)
            examples = turns.flat_map(examples_of).take(mine)
        else:
            examples = examples_of(0)
        shape = (None, image_size, image_size, make.channels)
        return examples.batch(
            batch_size // count, num_parallel_calls=tf.data.AUTOTUNE
        ).map(lambda images, labels: (tf.ensure_shape(images, shape), labels))

    if not training:
        return batches(tf.constant(0, "int64")).prefetch(tf.data.AUTOTUNE)
    if from_epoch is None:
        count_epochs = itertools.count()
        number = tf.data.Dataset.range(1).map(
            lambda _: tf.ensure_shape(
                tf.numpy_function(lambda: np.int64(next(count_epochs)), [], "int64"), ()
            )
        )
        dataset = number.flat_map(batches)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
    else:
        checks.integer("from_epoch", from_epoch, minimum=0)
        dataset = tf.data.Dataset.range(from_epoch, tf.int64.max).flat_map(batches)
    return dataset.prefetch(tf.data.AUTOTUNE)


def steps_per_epoch(examples, batch_size, shards=1):
    """How many batches there are in an epoch of `load`, for training.

    Args:
        examples: how many pictures the part has.
        batch_size: pictures a batch, of all shards together.
        shards: among how many a batch is divided; a last batch with fewer pictures is
            left out.

    Returns:
        An integer.

    Example:

    >>> steps_per_epoch(1437, 64), steps_per_epoch(65, 64, shards=2)
    (23, 1)
    """
    steps, rest = divmod(examples, batch_size)
    return steps + (rest >= shards)


def _owner(i, total, batch_size, count, training=True):
    """Which shard has the i-th picture of an epoch; -1 for none."""
    import tensorflow as tf

    begin = i - i % batch_size
    # The last batch may be smaller.
    length = tf.minimum(tf.constant(batch_size, "int64"), total - begin)
    owner = (i - begin) * count // length
    return tf.where(length >= count, owner, -1) if training else owner


def _share(total, batch_size, index, count):
    """How many pictures of an epoch are a shard's."""

    def part(length):
        # The smallest i with i * count // length == index, and that of the next index.
        begin, end = (-(-k * length // count) for k in (index, index + 1))
        return end - begin if length >= count else 0

    steps, rest = divmod(total, batch_size)
    return steps * part(batch_size) + part(rest)


def _shuffled(source, split, seeds, pairs):
    """The records in the order of an epoch; in pairs, so many as there are records."""
    import tensorflow as tf

    # The seeds given alone. Zero would not do: beside it TensorFlow wants to know the
    # other one when it builds the graph.
    tf.random.set_seed(1)

    def order(i):
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


class _Maker:
    """Makes an example, picture and label, of one record or two."""

    def __init__(self, source, split, augmentation, preparation):
        self.source = source
        self.split = split
        self.augmentation = augmentation
        self.preparation = preparation
        self.size = preparation["size"]
        self.channels = preparation["channels"]
        self.classes = len(source.class_names)
        self.by_timm = preparation["crop_mode"] in ("center", "squash")
        # Of pictures that are not cropped at random.
        if not self.by_timm:
            self.window_of, self.resize = preprocessing.evaluation_crop(
                preparation["crop_mode"], preparation["interpolation"]
            )
        elif preparation.get("crop") is None:
            raise ValueError(
                f"crop_mode={preparation['crop_mode']!r} needs `crop`. "
                f"Received: preparation={preparation}"
            )

    def __call__(self, in_first_half, record, seeds, i):
        """The i-th example of an epoch; an empty picture where one is left out."""
        import tensorflow as tf

        seed = tf.random.fold_in(seeds, 2 + tf.cast(i, "int32"))
        if not self.augmentation.mixes:
            image, label = self._one(*record, tf.random.fold_in(seed, 0))
            return self._finished(image, seed), label
        first, second = (
            self._one(*(part[k] for part in record), tf.random.fold_in(seed, k))
            for k in range(2)
        )
        whole = (tf.size(first[0]) > 0) & (tf.size(second[0]) > 0)
        return tf.cond(
            whole,
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
        """What is done to a picture of its final size."""
        import tensorflow as tf

        if self.augmentation.rand_augment:
            image = tf.cond(
                tf.size(image) > 0,
                lambda: self._rand_augmented(image, seed),
                lambda: image,
            )
        return preprocessing.standardize(
            image,
            *(self._of_channels(self.preparation[k]) for k in ("mean", "deviation")),
        )

    def _of_channels(self, values):
        """ImageNet's three numbers, or the one for grey pictures."""
        if values is not None and self.channels == 1 and np.size(values) == 3:
            return [float(np.mean(values))]
        return values

    def _rand_augmented(self, image, seed):
        import tensorflow as tf

        image = tf.cast(tf.clip_by_value(image, 0, 255), "uint8")
        if self.channels == 1:
            image = tf.image.grayscale_to_rgb(image)
        image = rand_augment(
            image, *self.augmentation.rand_augment, tf.random.fold_in(seed, 4)
        )
        return tf.cast(image[..., : self.channels], "float32")

    def _one(self, name, image, label, seed):
        """A picture of its final size, float32 (empty if left out), and its label."""
        import tensorflow as tf

        label_is_right = (label >= 0) & (label < self.classes)
        image = tf.cond(
            label_is_right,
            lambda: self._picture(name, image, seed),
            lambda: self._left_out(name, label),
        )
        image.set_shape((None, None, self.channels))
        return image, tf.one_hot(label, self.classes)

    def _left_out(self, name, label):
        import tensorflow as tf

        def leave_out(name, label):
            why = f"its label is {label}, of {self.classes} classes (from 0)"
            name = name.decode(errors="surrogateescape")
            self.source.leave_out(name, why, self.split)
            return np.zeros((0, 0, self.channels), "float32")

        return tf.numpy_function(leave_out, [name, label], "float32")

    def _picture(self, name, image, seed):
        import tensorflow as tf

        crop = self.augmentation.crop
        if crop:
            area, window_seed = (crop, 1.0), tf.random.fold_in(seed, 1)
            resize = preprocessing.resize

            def window_of(shape, size):
                return preprocessing.random_window(shape, size, area, window_seed)

        elif self.by_timm:
            window_of, resize = preprocessing.whole_window, self._cropped_as_timm
        else:
            window_of, resize = self.window_of, self.resize
        part = self._decoded(name, image, window_of)

        def resized():
            turned = part
            if self.augmentation.flip:
                turned = tf.image.stateless_random_flip_left_right(
                    part, tf.random.fold_in(seed, 2)
                )
            return resize(turned, self.size)

        left_out = tf.zeros((0, 0, self.channels))
        return tf.cond(tf.size(part) > 0, resized, lambda: left_out)

    def _decoded(self, name, image, window_of):
        """The window of a picture, uint8; an empty one if it is left out."""
        import tensorflow as tf

        def window(picture):
            return tf.image.crop_to_bounding_box(
                picture, *tf.unstack(window_of(tf.shape(picture), self.size))
            )

        if image.dtype != tf.string:
            return window(self._of_its_channels(image))

        def jpeg(image):
            """The quick way of almost all, which fails for what is not plain."""
            content = tf.io.read_file(image) if self.source.reads_files else image
            begins = tf.strings.substr(content, 0, 3) == b"\xff\xd8\xff"
            ends = tf.strings.substr(content, -2, 2) == b"\xff\xd9"
            turned = tf.constant(False)
            if self.source.reads_files:
                head = tf.strings.substr(content, 0, _HEAD)
                turned = tf.strings.regex_full_match(head, _HAS_EXIF)
            # (libjpeg would say on the standard error what is no JPEG.)
            plain = tf.debugging.Assert(begins & ends & ~turned, [name])
            with tf.control_dependencies([plain]):
                shape = tf.image.extract_jpeg_shape(tf.identity(content))
            few = tf.reduce_prod(tf.cast(shape[:2], "int64")) <= _MOST_PIXELS
            with tf.control_dependencies([tf.debugging.Assert(few, [name])]):
                content = tf.identity(content)
            options = {"channels": self.channels, "dct_method": "INTEGER_ACCURATE"}
            if self.augmentation.crop:
                return tf.image.decode_and_crop_jpeg(
                    content, window_of(shape, self.size), **options
                )
            # In evaluation to the last digit as `prepare`: colours at the border of a
            # crop depend on pixels beyond it.
            return window(tf.image.decode_jpeg(content, **options))

        def otherwise():
            picture = self._read(name, image)
            return tf.cond(
                tf.size(picture) > 0, lambda: window(picture), lambda: picture
            )

        part = _tried(jpeg, image, tf.zeros((0, 0, self.channels), "uint8"))
        part = tf.cond(tf.size(part) > 0, lambda: part, otherwise)
        part.set_shape((None, None, self.channels))
        return part

    def _of_its_channels(self, image):
        """A uint8 array, grey or in colours as the result."""
        import tensorflow as tf

        if image.shape[-1] < self.channels:
            return tf.image.grayscale_to_rgb(image)
        if image.shape[-1] > self.channels:
            image = tf.numpy_function(as_grey, [image], "uint8")
            image.set_shape((None, None, 1))
        return image

    def _read(self, name, image):
        """A whole picture of any kind of file; an empty one if it is left out."""
        import tensorflow as tf

        def read(name, image):
            name = name.decode(errors="surrogateescape")
            try:
                picture = read_picture(name if self.source.reads_files else image)
            except ValueError as error:
                self.source.leave_out(name, error, self.split)
                return np.zeros((0, 0, self.channels), "uint8")
            return as_grey(picture) if self.channels == 1 else picture

        picture = tf.numpy_function(read, [name, image], "uint8")
        picture.set_shape((None, None, self.channels))
        return picture

    def _cropped_as_timm(self, picture, size):
        import tensorflow as tf

        def cropped(picture):
            settings = (
                self.preparation[k] for k in ("crop", "crop_mode", "interpolation")
            )
            return crop_as_timm(picture, size, *settings)

        return tf.numpy_function(cropped, [picture], "float32")


# A camera's picture may be turned, as it says near the beginning.
_HEAD, _HAS_EXIF = 65_536, r"(?s)\C*Exif\x00\C*"
# As many as Pillow decodes without complaint.
_MOST_PIXELS = 89_478_485


def _tried(function, value, otherwise):
    """`function(value)`, or where that fails, `otherwise`; within a graph."""
    import tensorflow as tf

    one = tf.data.Dataset.from_tensors(value).map(function).ignore_errors()
    rest = tf.data.Dataset.from_tensors(otherwise)
    return one.concatenate(rest).take(1).get_single_element()
