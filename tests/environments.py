"""Environments with packages that the tests themselves do not need."""

import os
import pathlib
import subprocess
import sys
import sysconfig
import venv

import pytest

ROOT = pathlib.Path(__file__).parent.parent


class Environment:
    """Environment that has the packages of this one, and others in their place or in addition.

    Args:
        folder: path of a new folder.
        *arguments: arguments of `pip install`. If pip cannot, the test fails, or is
            skipped where pip cannot reach its index.
    """

    def __init__(self, folder, *arguments):
        venv.create(folder, with_pip=False)
        base = {"base": str(folder), "platbase": str(folder)}
        packages = pathlib.Path(sysconfig.get_path("purelib", "venv", base))
        # After those of the environment itself; `.pth` files in it count, too.
        here = sysconfig.get_path("purelib")
        (packages / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
        scripts = pathlib.Path(sysconfig.get_path("scripts", "venv", base))
        self._python = str(scripts / pathlib.Path(sys.executable).name)
        if not self._pip("install", *arguments):
            # A package that exists, in any version.
            if not self._pip("download", "--no-deps", f"--dest={folder}", "pip"):
                pytest.skip("pip cannot reach its index")
            pytest.fail(f"pip cannot install {' '.join(arguments)}")

    def _pip(self, *arguments):
        """Run a command of pip; return whether it succeeded."""
        command = [self._python, "-m", "pip", "--quiet", *arguments]
        return subprocess.run(command, check=False).returncode == 0

    def run(self, *arguments, folder, **variables):
        """Run Python in a folder, and return what it printed.

        Args:
            *arguments: str. Those of Python.
            folder: path of the working directory.
            **variables: str. Environment variables.
        """
        variables = {"PYTHONPATH": str(ROOT), **variables}
        done = subprocess.run(
            [self._python, *arguments],
            cwd=folder,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
        return done.stdout
