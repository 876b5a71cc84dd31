"""Images per second of each stage of the data pipeline, and of training networks.

    python benchmarks/pipeline.py

The exit status is 1 if a pipeline yields less than twice as many images per second as
training of its network uses on this machine.
"""

import dataclasses
import os
import pathlib
import statistics
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from keras_nfnets import data, recipes

_ROUNDS, _SECONDS = 5, 4.0


def photographs(folder, count=64):
    """Write JPEGs of 500 x 375 pixels, a usual size in ImageNet, into two folders."""
    rng = np.random.default_rng(0)
    for k, image in enumerate(load_sample_images().images):
        (folder / "ab"[k]).mkdir()
        for i in range(count // 2):
            top, left = rng.integers(0, 50, 2)
            part = Image.fromarray(image[top : top + 375, left : left + 500])
            part.save(folder / "ab"[k] / f"{i}.jpg", quality=90)
    return data.find(folder)


def rate(batches):
    """Measure images per second: the median of rounds after 1.5 s of warmup."""
    iterator = iter(batches)
    rates = []
    warm_until = time.perf_counter() + 1.5
    while time.perf_counter() < warm_until:
        next(iterator)
    for _ in range(_ROUNDS):
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < _SECONDS / _ROUNDS:
            count += len(next(iterator)[0])
        rates.append(count / (time.perf_counter() - started))
    return statistics.median(rates)


def stages(source, size):
    """Return `{description: dataset}`, each with one more stage than the last."""
    records = source.records("train").repeat()

    def each(function):
        parallel = tf.data.AUTOTUNE
        batches = records.map(function, parallel).batch(32, num_parallel_calls=parallel)
        return batches.prefetch(parallel)

    def load(words):
        return data.load(
            source, "train", size, 32, training=True, augmentation=words, from_epoch=0
        )

    return {
        "read the files": each(
            lambda n, p, y: (tf.strings.length(tf.io.read_file(p)), y)
        ),
        "decode all of them": each(
            lambda n, p, y: (tf.io.decode_jpeg(tf.io.read_file(p))[:8, :8], y)
        ),
        "data.load: decode the crop, resize, standardize": load("crop"),
        "and flip": load("crop flip"),
        "and MixUp and CutMix (two images for one)": load("crop flip mixup cutmix"),
        "and RandAugment, 4 operations": load("crop flip mixup cutmix randaugment_4x5"),
    }


def consumed(recipe, source, steps=6):
    """Measure images per second of training on one batch, without a pipeline."""
    model = recipes.create_model(recipe, source)
    recipes.compile_model(recipe, model, 1000)
    batches = recipes.load(recipe, source, "train", training=True, from_epoch=0)
    [(x, y)] = batches.take(1).as_numpy_iterator()
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        model.train_on_batch(x, y)
        seconds.append(time.perf_counter() - started)
    return len(x) / statistics.median(seconds[1:])


def main():
    enough = True
    with tempfile.TemporaryDirectory() as folder:
        source = photographs(pathlib.Path(folder))
        print("Images per second, photographs of 500 x 375 pixels to 192 x 192:")
        for what, batches in stages(source, 192).items():
            print(f"  {rate(batches):8,.0f}  {what}", flush=True)
        small = {"data": folder, "train_split": "train", "test_split": "test"}
        f0 = dataclasses.replace(
            recipes.find("nfnet_f0_imagenet"),
            batch_size=8,
            precision="float32",
            **small,
        )
        r50 = dataclasses.replace(
            recipes.find("nf_resnet50_batch256"), batch_size=16, image_size=128, **small
        )
        own = dataclasses.replace(recipes.find("finetune"), image_size=64, **small)
        digits = recipes.find("digits")
        print(
            "Images per second of the pipeline, compared with training of the network:"
        )
        for what, recipe, images in (
            ("digits", digits, data.find("digits")),
            ("finetune (NFNetTiny at 64 x 64)", own, source),
            ("nf_resnet50_batch256 (at 128 x 128)", r50, source),
            ("nfnet_f0_imagenet", f0, source),
        ):
            batches = recipes.load(
                dataclasses.replace(recipe, batch_size=32),
                images,
                "train",
                training=True,
                from_epoch=0,
            )
            given, taken = rate(batches), consumed(recipe, images)
            enough &= given >= 2 * taken
            print(
                f"  {given:8,.0f} of {taken:8,.1f}: {given / taken:5.1f} times  {what}"
            )
    print(
        "Each pipeline is at least twice as fast as training."
        if enough
        else "A pipeline is less than twice as fast as training."
    )
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
