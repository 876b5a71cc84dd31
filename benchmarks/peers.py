"""Import of timm, with a stub of torchvision where that cannot be installed.

The stub is a module `torchvision_stub` in the folder named by TORCHVISION_STUB.
"""

import contextlib
import os
import sys

with contextlib.suppress(ImportError):
    sys.path.append(os.environ.get("TORCHVISION_STUB", "."))
    import torchvision_stub  # noqa: F401

import timm
from timm.utils.agc import adaptive_clip_grad

__all__ = ["adaptive_clip_grad", "timm"]
