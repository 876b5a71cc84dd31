"""Stochastic depth."""

import keras
from keras import ops

from keras_nfnets import checks
from keras_nfnets.backend import per_example


@keras.saving.register_keras_serializable("keras_nfnets")
class StochasticDepth(keras.layers.Layer):
    """Layer that sets complete examples to zero with probability `rate` in training.

    As in the authors' code, the remaining examples are *not* divided by `1 - rate`. In
    inference this layer is the identity.

    Args:
        rate: float in [0, 1). Probability of dropping an example.
        seed: int. Seed of a reproducible sequence of drops.
        **kwargs: see `keras.layers.Layer`.

    Input and output: float tensors of the same shape, the batch axis first.

    Raises:
        ValueError: `rate` is outside [0, 1).

    Example:

    >>> x = keras.ops.ones((4, 2, 2, 3))
    >>> y = StochasticDepth(0.5, seed=0)(x, training=True)
    >>> sorted(set(keras.ops.convert_to_numpy(y).ravel().tolist()))
    [0.0, 1.0]

    Reference: Huang et al. (2016), arXiv 1603.09382.
    """

    def __init__(self, rate, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.rate = checks.number("rate", rate, below=1)
        self.seed = seed
        if self.rate > 0:
            self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs, training=False):
        if not training or self.rate == 0:
            return inputs
        return inputs * self.factors(inputs)

    def factors(self, inputs):
        """Draw zero or one for each example of `inputs`."""

        def draw(examples):
            shape = (examples,) + (1,) * (len(inputs.shape) - 1)
            return keras.random.uniform(shape, seed=self.seed_generator)

        uniform = per_example.draw(draw, ops.shape(inputs)[0])
        return ops.cast(uniform >= self.rate, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
