"""Measurement of one network of kecam, in an environment with kecam and tf_keras."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import tf_keras
from keras_cv_attention_models import nfnets
from turns import peak_memory, serve, task

imported, asked = peak_memory(), task()
size = asked["size"]
model = getattr(nfnets, asked["network"])(
    input_shape=(size, size, 3), pretrained=None, classifier_activation=None
)
x = np.random.randn(asked["batch"], size, size, 3).astype("float32")
if asked["kind"] == "train":
    y = np.random.randint(0, 1000, asked["batch"])
    model.compile(
        tf_keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    # (kecam has no clipping to measure.)
    serve(lambda: model.train_on_batch(x, y), imported)
else:
    function = tf.function(
        lambda x: model(x, training=False), jit_compile=asked["compiled"]
    )
    x = tf.constant(x)
    serve(lambda: function(x).numpy(), imported)
