"""`keras-nfnets` with networks that have only their first block, run eagerly.

Depth and compilation hardly change what the command does and writes, but they determine
how long it takes. As a program: `python tests/one_block.py train --epochs=1`.
"""

import contextlib

import pytest
from eager import eager_functions

from keras_nfnets.cli.main import run
from keras_nfnets.models import network

PROGRAM = __file__


@contextlib.contextmanager
def networks_of_one_block():
    """Context in which new networks have only their first block."""
    stages = network.stages

    def first_block(x, *, widths, bottlenecks, **options):
        first = bottlenecks[0][:1]
        return stages(x, widths=widths[:1], bottlenecks=[first], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "stages", first_block)
        yield


if __name__ == "__main__":
    with networks_of_one_block(), eager_functions():
        run()
