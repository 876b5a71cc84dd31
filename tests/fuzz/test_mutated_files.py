"""Files with random changes are read or refused, soon and in little memory.

For a longer run: `FUZZ_SECONDS=3600 FUZZ_SEED=1 pytest -m slow -n 0 tests/fuzz`.
"""

import random
import shutil

import long_run
import mutations
import pytest
import reading


def read_mutated(seed, count, folder):
    """Read files with changes; print and return those that did harm.

    The file of a number is the same for the same seed.
    """
    kinds = mutations.kinds()
    jobs = []
    for number in range(seed, seed + count):
        kind = kinds[number % len(kinds)]
        # Checkpoints are found by their names.
        path = folder / str(number) / f"keras_nfnets-epoch-000001{kind.ending}"
        path.parent.mkdir()
        kind.write(path, mutations.mutated(random.Random(number), kind.content))
        jobs.append((kind.function, path))
    harmful = []
    for number, (job, report) in enumerate(zip(jobs, reading.read_all(jobs)), seed):
        if not reading.is_harmless(report):
            print(f"number {number}, {job}: {report}")
            harmful.append(number)
    return harmful


def test_changed_files_do_no_harm(tmp_path):
    assert not read_mutated(seed=0, count=200, folder=tmp_path)


@pytest.mark.slow
def test_many_changed_files_do_no_harm(tmp_path):
    harmful = []
    for seed in long_run.seeds():
        folder = tmp_path / str(seed)
        folder.mkdir()
        harmful += read_mutated(2000 * seed, 2000, folder)
        shutil.rmtree(folder)
    assert not harmful
