"""The start of the command: without Keras where it can do without, and without noise."""

import os
import subprocess
import sys

import pytest

from keras_nfnets.cli import quiet

COMMANDS = (
    *("train", "evaluate", "predict", "data", "export"),
    *("convert", "list", "summary", "benchmark", "experiment"),
)
WITHOUT_KERAS = [
    *([], ["--help"], ["--version"], ["trian"]),
    *([command, "--help"] for command in COMMANDS),
    *([command, "--no-such-flag"] for command in COMMANDS),
    *(["list"], ["list", "--weights"], ["list", "--recipes"], ["list", "F0"]),
    *(["list", "nothing"], ["summary"], ["summary", "ResNet50"], ["benchmark", "x"]),
    *(["train", "folder"], ["train", "--epochs=0"], ["train", "--model=ResNet50"]),
    *(["train", "--recipe=x"], ["train", "--set=x=1"], ["train", "--strategy=x"]),
    *(["train", "--set=model=x"], ["train", "--overwrite"], ["train", "--agc=x"]),
    *(["predict", "digits"], ["predict", "digits", "nothing.png"]),
    *(["export", "digits"], ["export", "digits", "x.onnx", "--format=x"]),
    *(["convert", "x"], ["data", "--seed=1"], ["data", "--recipe=x"]),
    *(["experiment"], ["experiment", "bnleaks"], ["experiment", "--seeds=2"]),
]


def test_help_lists_and_errors_come_without_importing_keras():
    code = f"""
import sys
sys.orig_argv = [sys.executable, "/somewhere/bin/keras-nfnets"]
sys.argv = sys.orig_argv[1:]
from keras_nfnets.cli.main import main
for arguments in {WITHOUT_KERAS}:
    assert main(arguments) in (0, 2), arguments
    for name in ("tensorflow", "keras", "jax", "torch"):
        assert name not in sys.modules, (arguments, name)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("usage: keras-nfnets") == 2 + len(COMMANDS)


def test_the_command_shows_no_log_lines_of_tensorflow():
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    result = subprocess.run(
        [sys.executable, "-m", "keras_nfnets", "summary", "NFNetTiny"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "Endpoints" in result.stdout


@pytest.mark.slow
def test_processes_of_the_command_show_no_log_lines_either(tmp_path):
    program = tmp_path / "keras-nfnets"
    program.write_text("""
import multiprocessing, os, pickle
from concurrent.futures import ProcessPoolExecutor
from keras_nfnets.cli import quiet
if __name__ == "__main__":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # as the command has set it
    spawn = multiprocessing.get_context("spawn")
    arguments = (pickle.dumps((print, ("started",))),)
    with ProcessPoolExecutor(1, spawn, quiet.start_process, arguments) as executor:
        assert executor.submit(os.getpid).result() != os.getpid()
""")
    result = subprocess.run(
        [sys.executable, program],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "started\n", "")


def test_only_python_is_heard_during_the_import(capfd):
    with quiet._only_python_on_stderr():
        os.write(2, b"log line\n")
        print("warning", file=sys.stderr)
    print("later", file=sys.stderr)
    assert capfd.readouterr().err == "warning\nlater\n"
    with pytest.raises(ImportError), quiet._only_python_on_stderr():
        os.write(2, b"why\n")
        raise ImportError
    assert capfd.readouterr().err == "why\n"
