"""Files and folders are written completely or not at all."""

import os
import subprocess
import sys

import pytest
import tensorflow as tf
from full_disk import full_disk

from keras_nfnets import files


def make(path, content):
    """Write a file, or a folder with files."""
    if isinstance(content, dict):
        path.mkdir()
        for name, text in content.items():
            (path / name).write_text(text)
    else:
        path.write_text(content)


def content(path):
    if path.is_dir():
        return {file.name: file.read_text() for file in path.iterdir()}
    return path.read_text() if path.exists() else None


THINGS = [None, "old", {"a": "old", "b": "old"}]


@pytest.mark.parametrize(
    "old, new",
    [(None, "new"), ("old", "new"), *((old, {"a": "new"}) for old in THINGS)],
)
def test_complete_output_replaces_what_existed(old, new, tmp_path):
    path = tmp_path / "with a space.txt"
    if old is not None:
        make(path, old)
    with files.written(path) as partial:
        assert (partial.name, content(path)) == (path.name, old)
        make(partial, new)
    assert content(path) == new
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_never_replaces_a_folder(tmp_path):
    path = tmp_path / "thesis"
    make(path, {"a": "mine"})
    with (
        pytest.raises(IsADirectoryError, match=f"'{path}'"),
        files.written(path) as partial,
    ):
        make(partial, "new")
    assert content(path) == {"a": "mine"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("old", THINGS)
def test_a_failure_leaves_what_existed(old, error, tmp_path):
    path = tmp_path / "file.txt"
    if old is not None:
        make(path, old)
    with pytest.raises(error), files.written(path) as partial:
        make(partial, "half")
        raise error
    assert content(path) == old
    assert list(tmp_path.iterdir()) == ([path] if old else [])


def test_a_failed_move_leaves_what_existed(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    make(path, {"a": "old"})
    moves = []

    def replace(source, target, move=os.replace):
        moves.append((source, target))
        if len(moves) == 2:
            raise OSError("the second one fails")
        move(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="second"), files.written(path) as partial:
        make(partial, {"a": "new"})
    assert content(path) == {"a": "old"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_process_leaves_what_existed(tmp_path):
    path = tmp_path / "file.txt"
    make(path, "old")
    program = f"""
import os, signal
from keras_nfnets import files
with files.written({str(path)!r}) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    assert content(path) == "old"
    assert len(list(tmp_path.iterdir())) == 2
    make(tmp_path / ".partial-thesis1", {"a": "mine"})
    files.remove_partial(tmp_path)
    assert set(tmp_path.iterdir()) == {path, tmp_path / ".partial-thesis1"}


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), files.written(tmp_path / "no" / "file.txt"):
        pass


@pytest.mark.parametrize("old", THINGS)
def test_a_full_disk_is_an_error_with_the_path_and_leaves_what_existed(old, tmp_path):
    path = tmp_path / "file.txt"
    if old is not None:
        make(path, old)
    with (
        pytest.raises(OSError, match=f"Not written: .*'{path}'"),
        full_disk(),
        files.written(path) as partial,
    ):
        make(partial, "x" * 50_000)
    assert content(path) == old
    assert list(tmp_path.iterdir()) == ([path] if old else [])


def test_tensorflows_error_of_a_full_disk_is_an_os_error(tmp_path):
    for message, kind in (
        (f"{tmp_path}/variables.data; No space left on device", OSError),
        ("OOM when allocating", tf.errors.ResourceExhaustedError),
    ):
        with pytest.raises(kind), files.written(tmp_path / "model"):
            raise tf.errors.ResourceExhaustedError(None, None, message)


def test_other_errors_keep_their_path(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="missing.png"),
        files.written(tmp_path / "file.txt"),
    ):
        open(tmp_path / "missing.png").close()


def test_a_folder_is_claimed_by_one_process_also_if_claims_end_meanwhile(tmp_path):
    program = f"""
import pathlib, sys
sys.path.insert(0, {os.path.dirname(files.__file__)!r})
import files  # without the package, which takes seconds
for _ in range(2000):
    try:
        with files.claimed(pathlib.Path({str(tmp_path)!r})):
            inside = pathlib.Path({str(tmp_path / "inside")!r})
            inside.mkdir()  # fails if another process is inside
            inside.rmdir()
    except BlockingIOError:
        pass
"""
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate()[1] for process in processes] == [b""] * 3
    assert list(tmp_path.iterdir()) == []
