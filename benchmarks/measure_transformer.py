"""One measurement for transformers.py: inference of a vision transformer."""

import keras
import numpy as np
from turns import peak_memory, serve, task

import keras_nfnets

# Sizes of ViT-S/16 (arXiv 2012.12877) at 224 pixels.
WIDTH, DEPTH, HEADS, TOKENS = 384, 12, 6, 196
LAYERS = {
    "layer": keras.layers.LayerNormalization,
    "RMS": keras.layers.RMSNormalization,
}


def transformer(normalization, width=WIDTH, depth=DEPTH):
    """Build the blocks of a vision transformer, from embedded patches to logits."""
    inputs = x = keras.Input((TOKENS, width))
    for _ in range(depth):
        y = normalization()(x)
        y = keras.layers.MultiHeadAttention(HEADS, width // HEADS)(y, y)
        x = keras.layers.Add()([x, y])
        y = keras.layers.Dense(4 * width, "gelu")(normalization()(x))
        x = keras.layers.Add()([x, keras.layers.Dense(width)(y)])
    x = keras.layers.GlobalAveragePooling1D()(normalization()(x))
    return keras.Model(inputs, keras.layers.Dense(1000)(x))


def main():
    imported, settings = peak_memory(), task()
    x = np.random.default_rng(0).normal(size=(settings["batch"], TOKENS, WIDTH))
    x = x.astype("float32")
    model = transformer(LAYERS[settings["normalization"]])
    if settings["replaced_by"]:
        model = keras_nfnets.normalizer_free(
            model, x[:8], trained=True, normalization=settings["replaced_by"]
        )
    predict = keras_nfnets.inference_function(model, "keras")
    serve(lambda: np.asarray(predict(x)), imported)


if __name__ == "__main__":
    main()
