"""Processes of limited memory and time, which do not import Keras."""

import os
import pathlib
import subprocess
import sys

import keras_nfnets

_ROOT = pathlib.Path(keras_nfnets.__file__).parent
# The packages have no __init__, as Keras takes seconds and gigabytes of addresses.
_PREPARED = f"""
import resource, sys, types
for name in ("", ".data", ".pretrained", ".runs"):
    package = types.ModuleType("keras_nfnets" + name)
    package.__path__ = [{str(_ROOT)!r} + name.replace(".", "/")]
    sys.modules["keras_nfnets" + name] = package
sys.path.insert(0, {str(pathlib.Path(__file__).parents[1])!r})
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
"""


def output_of(code, *arguments, memory, seconds, **environment):
    """Run Python code with `sys.argv[2:]` and return what it prints.

    Args:
        code: str. It can import modules of the package that need no Keras, and `fuzz`.
        arguments: str.
        memory: int. Bytes of addresses that the process can use.
        seconds: float. Time after which it is stopped, which fails the test.
        environment: str. Environment variables.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PREPARED + code, str(memory), *map(str, arguments)],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
