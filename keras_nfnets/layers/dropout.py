"""Dropout that does not depend on the number of replicas."""

import keras
from keras import ops

from keras_nfnets.backend import per_example


@keras.saving.register_keras_serializable("keras_nfnets")
class Dropout(keras.layers.Dropout):
    """`keras.layers.Dropout` whose masks do not depend on the number of replicas.

    Keras's layer uses the same mask on each replica of a `tf.distribute` strategy.

    Args:
        *args, **kwargs: see `keras.layers.Dropout`, without `noise_shape`.

    Input and output: float tensors of the same shape, the batch axis first.

    Raises:
        ValueError: the rate is outside [0, 1].

    Example:

    >>> y = Dropout(0.5, seed=0)(keras.ops.ones((4, 16)), training=True)
    >>> sorted(set(keras.ops.convert_to_numpy(y).ravel().tolist()))
    [0.0, 2.0]

    Reference: Srivastava et al. (2014), Dropout: A Simple Way to Prevent Neural
    Networks from Overfitting.
    """

    def call(self, inputs, training=False):
        if not training or self.rate == 0:
            return inputs

        def factors(examples):
            ones = ops.ones((examples, *inputs.shape[1:]), inputs.dtype)
            return keras.random.dropout(ones, self.rate, seed=self.seed_generator)

        return inputs * per_example.draw(factors, ops.shape(inputs)[0])
