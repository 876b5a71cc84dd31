"""Metadata of all published checkpoints, read from checkpoints.json."""

import functools
import pathlib
import typing

from keras_nfnets import tables
from keras_nfnets.pretrained.download import hub_file, url_file


class Checkpoint(typing.NamedTuple):
    """Published checkpoint: its location and the preprocessing of its images.

    Attributes:
        name: str. Name by which it loads: timm's name and tag.
        network: str. Name of its network, as in `pretrained.create`.
        file: str. Name of the file, in the Hugging Face repository `repo`, or in the
            folder of this module if `repo` is None.
        licence: str. License of the weights.
        classes: int. Number of classes.
        train_size, size: int. Side length of the training images, and of the images
            for which it is best used, in pixels.
        crop: float. Fraction of a resized image's side that is used.
        crop_mode: str. `"center"` resizes the shorter side and crops the center;
            `"squash"` resizes both sides to the same length and crops the center.
        interpolation: str. Interpolation of the resizing.
        mean, deviation: tuple. Mean and standard deviation of the channels, for values
            in [0, 1].
        top1: float or None. Published accuracy on the ImageNet validation set, in
            percent (for `"digits"` on its own test set).
        class_names: tuple of str, or None for the classes of ImageNet.
        authors_url, authors_md5: str or None. URL and MD5 of the same weights as
            published by the authors.
        release, release_sha256: str or None. URL of the same weights in timm's release,
            and the first eight digits of that file's SHA-256.

    Raises:
        OSError, ValueError: in `fetch`, the file is not available, or is not the
            expected one.

    Example:

    >>> checkpoint = find_checkpoint("nfnet_l0.ra2_in1k")
    >>> checkpoint.size, checkpoint.crop, checkpoint.top1
    (288, 1.0, 82.752)
    """

    name: str
    network: str
    file: str
    licence: str
    classes: int
    train_size: int
    size: int
    crop: float
    crop_mode: str
    interpolation: str
    mean: tuple
    deviation: tuple
    top1: float | None
    repo: str | None = None
    class_names: tuple | None = None
    authors_url: str | None = None
    authors_md5: str | None = None
    release: str | None = None
    release_sha256: str | None = None

    @property
    def preparation(self):
        """Preprocessing of images, as keyword arguments of `data.prepare`."""
        return {
            "size": self.size,
            "crop": self.crop,
            "crop_mode": self.crop_mode,
            "interpolation": self.interpolation,
            "mean": self.mean,
            "deviation": self.deviation,
        }

    @property
    def authors_file(self):
        """Name of the authors' file, such as `"F0_haiku.npz"`, or None."""
        return self.authors_url and self.authors_url.rpartition("/")[2]

    @property
    def names(self):
        """All names by which it loads; those of the authors' file load that file."""
        if not self.authors_url:
            return (self.name,)
        return (self.name, self.authors_file, self.authors_file.removesuffix(".npz"))

    def fetch(self, name=None):
        """Return the path of its file, after downloading the file if necessary.

        Args:
            name: str. One of `names`, which selects the source; by default timm's name.

        Returns:
            A `pathlib.Path`.

        Raises:
            OSError, ValueError: as `hub_file` and `url_file`.
        """
        if name in self.names[1:]:
            return url_file(self.authors_url, md5=self.authors_md5)
        if self.repo is None:
            return pathlib.Path(__file__).with_name(self.file)
        return hub_file(self.repo, self.file)


@functools.cache
def _checkpoints():
    return tuple(
        Checkpoint(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
        )
        for row in tables.checkpoints()
    )


def find_checkpoint(name):
    """Find a published checkpoint.

    Args:
        name: str. One of its `names`: timm's name and tag, or the authors' file.

    Returns:
        A `Checkpoint`, or None if there is none of that name.

    Example:

    >>> find_checkpoint("F0_haiku.npz").name
    'dm_nfnet_f0.dm_in1k'
    """
    return next((c for c in _checkpoints() if name in c.names), None)


def list_checkpoints():
    """List all published checkpoints that load by name.

    Returns:
        A list of `Checkpoint`, in the order of the networks' families and sizes.

    Example:

    >>> [c.name for c in list_checkpoints() if c.network == "dm_nfnet_f0"]
    ['dm_nfnet_f0.dm_in1k']
    """
    return list(_checkpoints())
