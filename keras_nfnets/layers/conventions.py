"""What the two published families of networks compute otherwise than each other."""

import typing

from keras_nfnets import checks


class Convention(typing.NamedTuple):
    """How one codebase does what the other does in another way.

    Networks of the two have the same shape and are not interchangeable: weights
    trained with one mean nothing under the other.

    Attributes:
        padding: of strided convolutions and the max pooling, see `WSConv2D`.
        eps, variance_eps: of `WSConv2D`.
        gain_in_convolution: whether convolutions carry the gain of the activations,
            which then have none.
        skip_gain: whether a block has a learned scalar gain. Without one it is the gain
            of the last convolution that starts at zero.
        width_multiple: channels are multiples of this.

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
        """Factors of activations and of convolutions for an activation's gain."""
        return (1.0, gain) if self.gain_in_convolution else (gain, 1.0)

    def convolution_options(self, gain):
        """Arguments of every `WSConv2D`, for the gain of the network's activation."""
        _, scale = self.gains(gain)
        return {
            "padding": self.padding,
            "eps": self.eps,
            "variance_eps": self.variance_eps,
            "scale": scale,
        }

    def width(self, channels):
        """Whole channels for a width computed as a fraction of another."""
        if self.width_multiple == 1:
            return int(channels)
        multiple = self.width_multiple
        nearest = max(multiple, int(channels + multiple / 2) // multiple * multiple)
        # Never more than a tenth is lost.
        return nearest if nearest >= 0.9 * channels else nearest + multiple


CONVENTIONS = {
    # nfnets/base.py of deepmind-research.
    "authors": Convention("same", 1e-4, 0.0, False, True, 1),
    # NormFreeNet of timm 1.0; its dm_nfnet_f0 to f6 are the authors'.
    "timm": Convention("symmetric", 0.0, 1e-5, True, False, 8),
}


def convention(name):
    """Finds a convention.

    Args:
        name: `"authors"` or `"timm"`.

    Returns:
        A `Convention`.

    Raises:
        ValueError: another name.

    Example:

    >>> convention("authors").eps
    0.0001

    Reference: base.py of the authors' code; `NormFreeNet` of timm 1.0.
    """
    return CONVENTIONS[checks.one_of("convention", name, tuple(CONVENTIONS))]
