"""What is known of every published checkpoint; the facts stand in checkpoints.json."""

import functools
import json
import pathlib
import typing

from keras_nfnets.pretrained.download import hub_file, url_file


class Checkpoint(typing.NamedTuple):
    """A published checkpoint: where it is and how pictures are prepared for it.

    Attributes:
        name: by which it loads, timm's name and tag.
        network: of `pretrained.create`.
        file: name of the file, in the Hugging Face repository `repo` or, where that is
            None, beside this package's code.
        licence: of the weights.
        classes: how many it tells apart.
        train_size, size: pixels a side of the pictures it was trained on, and of those
            it is best used with.
        crop: share of a resized picture's side that is used.
        crop_mode: `"center"` resizes the shorter side and crops the middle, `"squash"`
            resizes both sides alike and crops the middle.
        interpolation: of the resizing.
        mean, deviation: of the channels, for values in [0, 1].
        top1: published accuracy in percent on ImageNet's validation pictures (for
            `"digits"` on its own held-out ones), or None.
        class_names: what its classes are called, or None for ImageNet's.
        authors_url, authors_md5: the same weights as the authors published them.
        release, release_sha256: the same weights in timm's release, and the first eight
            digits of that file's checksum.

    Raises:
        OSError, ValueError: in `fetch`, a file that cannot be had, or is another one.

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
        """Of pictures: the keyword arguments of `data.prepare`."""
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
        """Name of the authors' file, `"F0_haiku.npz"`, or None."""
        return self.authors_url and self.authors_url.rpartition("/")[2]

    @property
    def names(self):
        """All names by which it loads; those of the authors' file bring that file."""
        if not self.authors_url:
            return (self.name,)
        return (self.name, self.authors_file, self.authors_file.removesuffix(".npz"))

    def fetch(self, name=None):
        """The path of its file, downloaded where it is not here yet.

        Args:
            name: one of `names`, which says from where.

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
    text = pathlib.Path(__file__).with_name("checkpoints.json").read_text("utf-8")
    return tuple(
        Checkpoint(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
        )
        for row in json.loads(text)
    )


def find_checkpoint(name):
    """Finds a published checkpoint.

    Args:
        name: one of its `names`: timm's name and tag, or the authors' file.

    Returns:
        A `Checkpoint`, or None if there is none of that name.

    Example:

    >>> find_checkpoint("F0_haiku.npz").name
    'dm_nfnet_f0.dm_in1k'
    """
    return next((c for c in _checkpoints() if name in c.names), None)


def list_checkpoints():
    """All published checkpoints that load by name.

    Returns:
        A list of `Checkpoint`, the networks in the order of their families and sizes.

    Example:

    >>> [c.name for c in list_checkpoints() if c.network == "dm_nfnet_f0"]
    ['dm_nfnet_f0.dm_in1k']
    """
    return list(_checkpoints())
