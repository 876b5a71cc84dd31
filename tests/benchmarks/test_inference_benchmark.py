"""benchmarks/inference.py: which rows are measured, and what counts as reached."""

import pathlib
import sys
import types

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))

import inference

OURS, THEIRS = "ours, inference_function", "timm, compiled and frozen"


def laps(*seconds):
    return types.SimpleNamespace(laps=seconds)


def test_a_target_is_judged_by_the_median_and_only_with_both_rows():
    [(text, reached)] = inference.verdicts(
        1, {OURS: laps(1, 1, 1), THEIRS: laps(0.1, 1.1, 9)}
    )
    assert reached and "1.10 times as fast" in text
    [(_, reached)] = inference.verdicts(
        8, {OURS: laps(1, 1, 1), THEIRS: laps(2, 0.9, 0.8)}
    )
    assert not reached
    assert inference.verdicts(1, {OURS: laps(1)}) == []
    assert inference.verdicts(3, {OURS: laps(1), THEIRS: laps(2)}) == []


def test_rows_without_their_peer_or_file_are_left_out_with_the_reason():
    rows, missing = inference.usable(
        {"ours": "python"}, {"float32": "a.onnx"}, {"int8": "no int8"}
    )
    assert rows["ours, ONNX Runtime"].settings["file"] == "a.onnx"
    assert missing["ours, int8, ONNX Runtime"] == "no int8"
    assert "--timm" in missing[THEIRS]
    assert set(rows) | set(missing) == set(inference.ROWS)
    for ours, theirs, _ in inference.TARGETS:
        assert {ours, theirs} <= set(inference.ROWS)
