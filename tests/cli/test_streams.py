"""`keras-nfnets` where the standard streams are full or closed."""

import subprocess
import sys

import one_block
import pytest
from quick import quick

LIST = [sys.executable, "-m", "keras_nfnets", "list", "NFNet"]


def outputs(redirection, *command):
    """Return status, output and errors of a command with a redirection of the shell."""
    process = subprocess.run(
        ["bash", "-c", f'"$@" {redirection}', "bash", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return process.returncode, process.stdout, process.stderr


@pytest.mark.parametrize(
    "redirection, why",
    [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
)
def test_output_that_cannot_be_written_is_an_error(redirection, why):
    status, _, error = outputs(redirection, *LIST)
    message = f"keras-nfnets: cannot write the standard output: {why}\n"
    assert (status, error) == (1, message)


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "<&-"])
def test_other_streams_are_not_needed(redirection):
    status, out, _ = outputs(redirection, *LIST)
    assert status == 0 and "NFNetF0" in out
    status, out, _ = outputs(redirection, *LIST[:-2], "lits")
    assert (status, out) == (2, "")


FULL, CLOSED = ">/dev/full 2>/dev/full", ">&- 2>&-"


@pytest.mark.parametrize("redirection", quick([FULL, CLOSED], FULL))
def test_streams_that_cannot_be_written_do_not_cost_the_results(redirection, tmp_path):
    folder = tmp_path / "run"
    flags = ["--image_size=8", "--epochs=1", "--batch_size=512", "--noagc"]
    status, _, _ = outputs(
        redirection,
        *(sys.executable, one_block.PROGRAM, "train", *flags),
        f"--output_dir={folder}",
    )
    assert status == 1
    assert (folder / "history.csv").read_text().count("\n") == 2
    assert (folder / "model.keras").exists() and not (folder / "checkpoints").exists()
