"""Small attention networks, mixers and their inputs, for tests."""

import keras
import numpy as np
from keras import layers, ops

WIDTH = 32


def noise(*shape, seed=1):
    x = np.random.default_rng(seed).standard_normal(shape)
    return x.astype("float32")


def text(count, length=48, seed=1):
    """Integers with the statistics of text: few frequent ones, and runs."""
    rng = np.random.default_rng(seed)
    return np.minimum(rng.geometric(0.15, (count, length)) - 1, 29)


@keras.saving.register_keras_serializable("tests")
class Positions(layers.Layer):
    """Learned class token before the others, and position embeddings."""

    def __init__(self, class_token=True, **kwargs):
        super().__init__(**kwargs)
        self.class_token = class_token

    def build(self, input_shape):
        _, length, width = input_shape
        if self.class_token:
            self.token = self.add_weight(name="token", shape=(1, 1, width))
            length += 1
        self.positions = self.add_weight(
            name="positions", shape=(1, length, width), initializer="random_normal"
        )

    def call(self, x):
        if self.class_token:
            token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, x.shape[-1]))
            x = ops.concatenate([token, x], axis=1)
        return x + self.positions

    def get_config(self):
        return {**super().get_config(), "class_token": self.class_token}


def patches(inputs, size=4):
    x = layers.Conv2D(WIDTH, size, size)(inputs)
    return layers.Reshape((-1, WIDTH))(x)


def attention(x, **options):
    return layers.MultiHeadAttention(4, WIDTH // 4)(x, x, **options)


def grouped_attention(x, **options):
    layer = layers.GroupQueryAttention(WIDTH // 4, 4, 2)
    return layer(x, x, **options)


def feed_forward(x):
    width = x.shape[-1]
    return layers.Dense(width)(layers.Dense(2 * width, activation="gelu")(x))


def swiglu(x):
    width = x.shape[-1]
    gate = layers.Dense(2 * width, activation="silu")(x)
    return layers.Dense(width)(layers.Multiply()([gate, layers.Dense(2 * width)(x)]))


def vit(depth=3, norm=layers.LayerNormalization, post=False):
    inputs = keras.Input((32, 32, 3))
    x = Positions()(patches(inputs))
    for _ in range(depth):
        for branch in (attention, feed_forward):
            x = norm()(x + branch(x)) if post else x + branch(norm()(x))
    x = x[:, 0] if post else norm()(x)[:, 0]
    return keras.Model(inputs, layers.Dense(5, name="predictions")(x))


def mixer(depth=3, norm=layers.LayerNormalization):
    inputs = keras.Input((32, 32, 3))
    x = patches(inputs)
    for _ in range(depth):
        y = layers.Permute((2, 1))(norm()(x))
        x = x + layers.Permute((2, 1))(feed_forward(y))
        x = x + feed_forward(norm()(x))
    x = layers.GlobalAveragePooling1D()(norm()(x))
    return keras.Model(inputs, layers.Dense(5, name="predictions")(x))


def decoder(depth=3, norm=layers.RMSNormalization):
    inputs = keras.Input((48,), dtype="int32")
    x = layers.Embedding(30, WIDTH)(inputs)
    x = Positions(class_token=False)(x)
    for _ in range(depth):
        x = x + grouped_attention(norm()(x), use_causal_mask=True)
        x = x + swiglu(norm()(x))
    return keras.Model(inputs, layers.Dense(30, name="predictions")(norm()(x)))


def hybrid(depth=2, norm=layers.LayerNormalization):
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, 2, padding="same")(inputs)
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    x = layers.Conv2D(WIDTH, 3, 2, padding="same")(x)
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    x = layers.Reshape((-1, WIDTH))(x)
    for _ in range(depth):
        x = x + attention(norm()(x))
        x = x + feed_forward(norm()(x))
    x = layers.GlobalAveragePooling1D()(norm()(x))
    return keras.Model(inputs, layers.Dense(5, name="predictions")(x))


def convnext(depth=3, norm=layers.LayerNormalization):
    inputs = keras.Input((32, 32, 3))
    x = norm()(layers.Conv2D(WIDTH, 4, 4)(inputs))
    for _ in range(depth):
        y = norm()(layers.DepthwiseConv2D(5, padding="same")(x))
        x = x + feed_forward(y)
    x = norm()(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(5, name="predictions")(x))


NETWORKS = {
    "ViT": vit,
    "post-norm ViT": lambda: vit(post=True),
    "MLP-Mixer": mixer,
    "decoder": decoder,
    "hybrid": hybrid,
    "ConvNeXt": convnext,
}


def inputs_of(model, count=16, seed=1):
    if model.input.dtype == "int32":
        return text(count, seed=seed)
    return noise(count, *model.input_shape[1:], seed=seed)
