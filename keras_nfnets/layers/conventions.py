"""Differences between the authors' and timm's networks: padding, epsilons, gains."""

import typing

from keras_nfnets import checks


class Convention(typing.NamedTuple):
    """Details in which the authors' and timm's implementations differ.

    Networks of both have the same architecture but are not interchangeable: weights
    trained with one convention do not work with the other.

    Attributes:
        padding: str. Padding of strided convolutions and max pooling, see `WSConv2D`.
        eps, variance_eps: float. See `WSConv2D`.
        gain_in_convolution: bool. Whether convolutions, and not activations, apply the
            gain of the activations.
        skip_gain: bool. Whether a block has a learned scalar gain. Otherwise the gain
            of its last convolution starts at zero.
        width_multiple: int. Numbers of channels are multiples of it.

    Example:

    >>> CONVENTIONS["timm"].padding, CONVENTIONS["timm"].width(100)
    ('symmetric', 104)

    Reference: base.py of the authors' code; `NormFreeNet` of timm 1.0.
    """

    padding: str
    eps: float
    variance_eps: float
    gain_in_convolution: bool
    skip_gain: bool
    width_multiple: int

    def gains(self, gain):
        """Return the factors of activations and convolutions for an activation's gain."""
        return (1.0, gain) if self.gain_in_convolution else (gain, 1.0)

    def convolution_options(self, gain):
        """Return the arguments of every `WSConv2D`, given the activation's gain."""
        _, scale = self.gains(gain)
        return {
            "padding": self.padding,
            "eps": self.eps,
            "variance_eps": self.variance_eps,
            "scale": scale,
        }

    def width(self, channels):
        """Round a fractional number of channels to an integer."""
        if self.width_multiple == 1:
            return int(channels)
        multiple = self.width_multiple
        nearest = max(multiple, int(channels + multiple / 2) // multiple * multiple)
        # Rounding never removes more than a tenth.
        return nearest if nearest >= 0.9 * channels else nearest + multiple


CONVENTIONS = {
    # nfnets/base.py of deepmind-research.
    "authors": Convention("same", 1e-4, 0.0, False, True, 1),
    # NormFreeNet of timm 1.0; its dm_nfnet_f0 to f6 follow the authors.
    "timm": Convention("symmetric", 0.0, 1e-5, True, False, 8),
}


def convention(name):
    """Return a convention by name.

    Args:
        name: str. `"authors"` or `"timm"`.

    Returns:
        A `Convention`.

    Raises:
        ValueError: the name is unknown.

    Example:

    >>> convention("authors").eps
    0.0001

    Reference: base.py of the authors' code; `NormFreeNet` of timm 1.0.
    """
    return CONVENTIONS[checks.one_of("convention", name, tuple(CONVENTIONS))]
