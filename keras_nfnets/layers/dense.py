"""Dense layer with scaled weight standardization."""

import keras
from keras import ops

from keras_nfnets.layers.standardization import WeightStandardized


@keras.saving.register_keras_serializable("keras_nfnets")
class WSDense(WeightStandardized, keras.layers.Dense):
    """Dense layer whose units have zero mean and unit variance, times a gain.

    The column `w` of the kernel of each unit is used as in `WSConv2D`, with as many
    numbers in `fan_in` as there are inputs.

    Takes every argument of `keras.layers.Dense` but `use_bias=False`, and
    `gain_initializer`, `eps`, `scale`, `variance_eps`, `center` and `input_mean` as
    `WSConv2D` does.
    It cannot be quantized; what `keras_nfnets.fold` makes of it can.

    Input: `(batch, ..., inputs)`, of at least two inputs.
    Output: `(batch, ..., units)`.

    Raises:
        ValueError: `use_bias=False`, a negative `eps`, a single input, or whatever
            Dense refuses.

    Example:

    >>> tuple(WSDense(10)(keras.random.normal((2, 64))).shape)
    (2, 10)

    Reference: Brock et al. (2021), arXiv 2102.06171, section 2, equation 1.
    """

    def apply_kernels(self, inputs, kernel):
        return ops.matmul(inputs, kernel)

    def build(self, input_shape):
        if self.quantization_mode:
            self._refuse(self.quantization_mode)
        super().build(input_shape)

    def quantize(self, mode=None, **kwargs):
        self._refuse(mode)

    def _refuse(self, mode):
        # Keras's would do without the standardization.
        raise NotImplementedError(
            "WSDense cannot be quantized: fold the model first, see keras_nfnets.fold. "
            f"Received: mode={mode!r}"
        )
