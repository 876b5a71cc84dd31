"""What a file says of itself is not believed: files are refused, soon and in little memory."""

import files
import h5py
import numpy as np
import pytest
import reading

from keras_nfnets import NFNetTest

READERS = {
    ".weights.h5": ["load", "load_weights"],
    ".keras": ["load_classifier", "load"],
}


def head(kernel_shape, bias_shape):
    """Return a function that writes the weights of a network with another classifier."""

    def write(path):
        NFNetTest(classes=3).save_weights(path)
        with h5py.File(path, "r+") as file:
            [variables] = [
                group["vars"]
                for group in file["layers"].values()
                if group["vars"].attrs.get("name") == "predictions"
            ]
            for name, shape in (("0", kernel_shape), ("1", bias_shape)):
                del variables[name]
                variables[name] = np.zeros(shape, "float32")

    return write


HEADS = {
    "head without features": head((0, 2_000_000), (2_000_000,)),
    "head without values": head((0, 2_000_000), (0,)),
    "head without classes": head((192, 0), (0,)),
    "head of two sizes": head((192, 5), (2_000_000,)),
}


def _cases():
    """Yield `(name, function that reads, ending, function that writes)`."""
    for write in files.HDF5:
        for suffix, readers in READERS.items():
            content = write if suffix != ".keras" else files.hdf5_in_keras(write)
            for reader in readers:
                yield write.__name__, reader, suffix, content
    for write in files.KERAS:
        yield write.__name__, "load_classifier", ".keras", write
    for write in files.SAFETENSORS:
        yield write.__name__, "recognize", ".safetensors", write
    for name, write in HEADS.items():
        for reader in ("build", "load"):
            yield name, reader, ".weights.h5", write


CASES = {f"{name}, {case[0]} {case[1]}": case for name, *case in _cases()}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    jobs, written = [], {}
    for reader, suffix, write in CASES.values():
        if (write, suffix) not in written:
            path = written[write, suffix] = folder / f"{len(written)}{suffix}"
            write(path)
        jobs.append((reader, written[write, suffix]))
    return dict(zip(CASES, reading.read_all(jobs), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_is_not_what_it_says_is_refused_at_once(case, reports):
    report = reports[case]
    assert reading.is_harmless(report), report
    assert report["error"], "read without an error"
    for wrong in ("RecursionError", "MemoryError", "recursion depth"):
        assert wrong not in report["error"]
