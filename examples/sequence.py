"""Dilated causal convolutions over sequences, built from `WSConv1D` layers.

    python examples/sequence.py

The pixels of a digit, row by row, are a sequence of 196 values. The network processes them
with causal convolutions and classifies the digit at the last position. It is compared with
a network of the same structure with batch norm.
"""

import comparison
import keras
from comparison import NORMALIZER_FREE
from keras import layers

from keras_nfnets import AGCModel, ScaledActivation, SkipGain, WSConv1D
from keras_nfnets.experiments import fitting

WIDTH, ALPHA = 32, 0.2
DILATIONS = (1, 2, 4, 8, 16, 32)


def normalizer_free():
    inputs = keras.Input((196, 1))
    x = WSConv1D(WIDTH, 3, padding="causal")(inputs)
    variance = 1.0
    for dilation in DILATIONS:
        y = layers.Rescaling(variance**-0.5)(x)
        for _ in range(2):
            y = ScaledActivation("relu")(y)
            y = WSConv1D(WIDTH, 3, dilation_rate=dilation, padding="causal")(y)
        x = layers.Add()([x, SkipGain(ALPHA, "ones")(y)])
        variance += ALPHA**2
    x = ScaledActivation("relu")(x)[:, -1]
    return AGCModel(inputs, layers.Dense(10, name="predictions")(x))


def batch_norm(momentum):
    inputs = keras.Input((196, 1))
    x = layers.Conv1D(WIDTH, 3, padding="causal")(inputs)
    for dilation in DILATIONS:
        y = x
        for _ in range(2):
            y = layers.BatchNormalization(momentum=momentum)(y)
            y = layers.Activation("relu")(y)
            y = layers.Conv1D(WIDTH, 3, dilation_rate=dilation, padding="causal")(y)
        x = layers.Add()([x, y])
    x = layers.BatchNormalization(momentum=momentum)(x)
    x = layers.Activation("relu")(x)[:, -1]
    return keras.Model(inputs, layers.Dense(10, name="predictions")(x))


def main(arguments=None):
    chosen = comparison.options(
        __doc__,
        arguments,
        epochs=3,
        examples=2000,
        batch_sizes=[2, 4, 16],
        rates=[0.4, 1.6, 6.4],
    )
    x, y = comparison.digits()
    x = x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196, 1)
    x = (x - x.mean()) / x.std()
    learn = x[: chosen.examples], y[: chosen.examples]

    def run(case, rate, seed):
        batches = comparison.Batches(learn, case["batch size"], seed)
        if case["network"] == NORMALIZER_FREE:
            model = normalizer_free()
        else:
            model = batch_norm(fitting.momentum(len(batches) * chosen.epochs))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        comparison.fit(model, batches, loss, rate, case["batch size"], chosen.epochs)
        logits = model.predict(x[3500:], verbose=0)
        right = logits.argmax(axis=-1) == y[3500:]
        return {
            "validation": round(float(right[:500].mean()), 4),
            "test": round(float(right[500:].mean()), 4),
        }

    cases = comparison.with_and_without(chosen.batch_sizes)
    rows = comparison.run_all(run, cases, chosen)
    comparison.show(rows, "batch size", {"test": "accuracy on the test set"}, chosen)


if __name__ == "__main__":
    main()
