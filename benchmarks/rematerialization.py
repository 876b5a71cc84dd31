"""Memory and time of training steps with and without rematerialized blocks.

    KERAS_BACKEND=torch python benchmarks/rematerialization.py

NFNet-F1 at 224 x 224, batch 16. On JAX this also prints what is saved between the forward
pass and the backward pass, which no compiler decides. There are no targets.
"""

import argparse
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from turns import Process, machine, peak_memory, serve, take_turns, task

import keras_nfnets


def saved_gigabytes(model, batch, size):
    """Return the gigabytes that JAX keeps of a forward pass, without computing it."""
    import jax

    state = [
        [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]
    images = jax.ShapeDtypeStruct((batch, size, size, 3), "float32")

    def kept(trainable, non_trainable, images):
        def call(trainable):
            return model.stateless_call(trainable, non_trainable, images, training=True)

        _, gradient, _ = jax.vjp(call, trainable, has_aux=True)
        return gradient

    arrays = jax.tree.leaves(jax.eval_shape(kept, *state, images))
    return sum(array.size * array.dtype.itemsize for array in arrays) / 1e9


def measure(network, batch, size, rematerialize):
    imported = peak_memory()
    build = getattr(keras_nfnets, network)
    model = build(input_shape=(size, size, 3), rematerialize=rematerialize)
    figures = {}
    if keras.backend.backend() == "jax":
        figures["saved"] = saved_gigabytes(model, batch, size)
    model.compile(
        keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True),
        "sparse_categorical_crossentropy",
        clip_factor=0.01,
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, size, size, 3)).astype("float32")
    y = rng.integers(0, model.output_shape[-1], batch)
    serve(lambda: model.train_on_batch(x, y), imported, **figures)


def main():
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        return measure(**task())
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", default="NFNetF1")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = vars(parser.parse_args())
    rounds = arguments.pop("rounds")
    print(f"{machine()}, Keras on {keras.backend.backend()}\n")
    print("| rematerialize | seconds per step | peak GB | of it importing | saved GB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    processes = {
        choice: Process("rematerialization.py", {**arguments, "rematerialize": choice})
        for choice in (False, True)
    }
    take_turns(list(processes.values()), rounds, calls=1)
    for choice, process in processes.items():
        peak, imported = (
            process.memory[name] * 2**20 / 1e9 for name in ("peak", "imported")
        )
        saved = process.ready.get("saved")
        print(
            f"| {choice} | {process.seconds:.2f} | {peak:.2f} | {imported:.2f} "
            f"| {'' if saved is None else f'{saved:.2f}'} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
