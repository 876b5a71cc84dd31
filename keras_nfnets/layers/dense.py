"""Dense layer with scaled weight standardization."""

import keras
from keras import ops

from keras_nfnets.layers.standardization import WeightStandardized


@keras.saving.register_keras_serializable("keras_nfnets")
class WSDense(WeightStandardized, keras.layers.Dense):
    """Dense layer with scaled weight standardization.

    The kernel column `w` of each unit is standardized as in `WSConv2D`; `fan_in` is the
    number of inputs.

    Takes every argument of `keras.layers.Dense` except `use_bias=False`, and
    `gain_initializer`, `eps`, `scale`, `variance_eps`, `center` and `input_mean` of
    `WSConv2D`. The layer cannot be quantized, but the `Dense` layer by which
    `keras_nfnets.fold` replaces it can.

    Input: `(batch, ..., inputs)` with at least two inputs.
    Output: `(batch, ..., units)`.

    Raises:
        ValueError: `use_bias=False`, a negative `eps`, a single input, or an argument
            that Dense rejects.

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
        # `keras.layers.Dense` would quantize the kernel without standardizing it.
        raise NotImplementedError(
            "WSDense cannot be quantized: fold the model first, see keras_nfnets.fold. "
            f"Received: mode={mode!r}"
        )
