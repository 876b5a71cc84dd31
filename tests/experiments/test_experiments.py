import dataclasses
import importlib
import itertools
import json
import pathlib
import pkgutil
import subprocess
import sys
import time
import zipfile

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from quick import quick

from keras_nfnets import experiments, plotting, tables
from keras_nfnets.experiments import fitting, glyphs, images
from keras_nfnets.experiments.results import Difference, Results
from keras_nfnets.training import AGCModel

# Settings of runs that take seconds.
TINY = {
    "dataset": "digits",
    "depths": [1],
    "epochs": 1,
    "seeds": 2,
    "learning_rates": [0.05, 0.1],
    "batch_sizes": [256, 1438],
    "pictures": 4,
}


def tiny(name, **others):
    experiment = experiments.find(name)
    settings = experiments.settings_of(experiment, "small", "digits")
    known = {key: value for key, value in TINY.items() if key in settings}
    return experiment, {**settings, **known, **others}


def nothing(*_, **__):
    pass


@pytest.mark.parametrize(
    ("name", "scale"),
    [(n, scale) for n, e in experiments.EXPERIMENTS.items() for scale in e.scales],
)
def test_plans_end_and_repeat_no_cell(name, scale, elsewhere):
    """With any results of the sweep, each planned cell runs once, with several seeds."""
    elsewhere(100)
    experiment = experiments.find(name)
    settings = experiments.settings_of(experiment, scale)
    rows, accuracies = [], itertools.cycle([0.3, 0.9, 0.5])
    score = settings.get("score", "accuracy")
    for _ in range(3):
        cells = experiment.plan(settings, rows)
        assert len({json.dumps(cell, sort_keys=True) for cell in cells}) == len(cells)
        new = cells[len(rows) :]
        if not new:
            break
        rows += [{**cell, score: next(accuracies), "loss": 1.0} for cell in new]
    assert not new
    seeds = {row.get("seed", row.get("round")) for row in rows}
    assert settings["seeds"] > 1
    assert len(seeds) == max(settings["seeds"], settings.get("seeds_at_largest", 0))
    assert settings == json.loads(json.dumps(settings))


values = st.one_of(
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
    st.text(st.characters(codec="ascii", categories=["L"]), min_size=1),
)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["a", "b", "seed"]), values, min_size=1),
        max_size=5,
    )
)
def test_results_round_trip(tmp_path_factory, rows):
    # (Strings that Python parses as numbers come back as numbers.)
    rows = [
        {k: v for k, v in row.items() if str(v).lower() not in _NUMBERS} for row in rows
    ]
    rows = [row for row in rows if row]
    path = tmp_path_factory.mktemp("results") / "results.csv"
    results = Results(path)
    results.add(rows)
    again = Results(path).rows
    assert again == rows
    assert [{k: type(v) for k, v in r.items()} for r in again] == [
        {k: type(v) for k, v in r.items()} for r in rows
    ]


_NUMBERS = {"nan", "inf", "infinity", "-inf", "true", "false"}


def test_a_file_without_results_is_refused(tmp_path):
    path = tmp_path / "results.csv"
    for content in (b"a,b\n1,2,3\n", b"a,b\n1\n", b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"results\.csv does not contain results"):
            Results(path)


def test_only_missing_cells_are_measured_and_failures_keep_the_others(tmp_path):
    experiment, settings = tiny("mean_shift", seeds=1, depths=[1])
    whole = Results(tmp_path / "whole.csv")
    expected = experiments.run(experiment, settings, whole, 1, nothing)
    measured = []

    def fails_at_the_third(settings, cell):
        measured.append(cell)
        if len(measured) == 3:
            raise MemoryError
        return experiment.measure(settings, cell)

    partly = Results(tmp_path / "partly.csv")
    broken = dataclasses.replace(experiment, measure=fails_at_the_third)
    experiments.EXPERIMENTS["mean_shift"] = broken
    try:
        with pytest.raises(MemoryError):
            experiments.run(broken, settings, partly, 1, nothing)
        assert len(measured) == 3
        partly = Results(tmp_path / "partly.csv")
        rows = experiments.run(broken, settings, partly, 1, nothing)
    finally:
        experiments.EXPERIMENTS["mean_shift"] = experiment
    assert len(measured) == 5  # four cells, one of which was tried twice
    assert without_seconds(rows) == without_seconds(expected)


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "cell_seconds"} for row in rows]


def test_the_order_of_images_depends_on_seed_and_epoch_only():
    dataset = images.load({"dataset": "digits"})

    def epochs(seed):
        batches, _, steps = dataset.batches(64, seed)
        seen = []
        for _ in range(2):
            seen.append(np.concatenate([batches[i][0] for i in range(steps)]))
            batches.on_epoch_end()
        return seen

    first, second = epochs(0)
    np.testing.assert_array_equal(first, epochs(0)[0])
    np.testing.assert_array_equal(second, epochs(0)[1])
    assert (first != second).any()
    assert (first != epochs(1)[0]).any()


def test_training_images_are_shifted_and_test_images_are_not():
    still, moved = (
        images.load({"dataset": "digits", "shift": shift}).batches(64, 0)
        for shift in (0, 2)
    )
    x, y = still[0][0]
    shifted, labels = moved[0][0]
    np.testing.assert_array_equal(labels, y)
    wide = np.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)], mode="edge")
    height, width = x.shape[1:3]
    found = set()
    for i, picture in enumerate(shifted):
        corners = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if (wide[i, top : top + height, left : left + width] == picture).all()
        ]
        assert corners
        found.add(corners[0])
    assert len(found) > 15
    np.testing.assert_array_equal(still[1][0][0], moved[1][0][0])


def test_tuning_images_are_neither_trained_on_nor_test_images():
    dataset = images.load({"dataset": "digits", "examples": 100})
    train, test, _ = dataset.batches(1000, 0)
    tuning_train, tuning_test, _ = dataset.batches(1000, 0, tuning=True)

    def contents(batches):
        return {x.tobytes() for i in range(len(batches)) for x in batches[i][0]}

    assert contents(tuning_train) | contents(tuning_test) == contents(train)
    assert len(contents(train)) == 100 and len(contents(tuning_test)) == 25
    assert not contents(tuning_train) & contents(tuning_test)
    assert not contents(train) & contents(test)


def test_the_sweep_finds_the_smallest_rate_of_the_best():
    settings = {"sweep_seeds": 1, "learning_rates": [0.1, 0.2, 0.4, 0.8]}
    settings["sweep_within"] = 0.01
    rows = [
        {**cell, "accuracy": accuracy}
        for cell, accuracy in zip(
            fitting.sweep(settings, ["A", "B"]),
            [0.9, 0.95, 0.955, 0.1, 0.9, 0.92, 0.95, 0.2],
            strict=True,
        )
    ]
    assert fitting.tuned(settings, rows[:-1], ["A", "B"]) is None
    assert fitting.tuned(settings, rows, ["A", "B"]) == {"A": 0.2, "B": 0.4}


def test_a_sweep_can_have_fewer_epochs(monkeypatch):
    experiment = experiments.find("any_network_training")
    settings = experiments.settings_of(experiment, "small", "digits")
    settings |= {"epochs": 5, "sweep_epochs": 3, "batch_sizes": [64]}
    epochs = []
    monkeypatch.setattr(fitting, "fit", lambda s, *_, **__: epochs.append(s["epochs"]))
    for part in (fitting.SWEEP, fitting.MAIN):
        cell = {"network": "VGG", "version": "original", "batch_size": 64}
        cell |= {"part": part, "learning_rate": 0.1, "seed": 0}
        experiment.measure(settings, cell)
    assert epochs == [3, 5]


def test_the_largest_batch_size_can_have_more_seeds():
    settings = {"batch_sizes": [8, 32, 16], "seeds": 1, "seeds_at_largest": 3}
    pairs = fitting.seeds_and_batch_sizes(settings)
    assert pairs == [(0, 8), (0, 32), (0, 16), (1, 32), (2, 32)]
    experiment = experiments.find("batch_size")
    settings = experiments.settings_of(experiment, "medium", "digits", seeds=2)
    assert {seed for seed, _ in fitting.seeds_and_batch_sizes(settings)} == {0, 1}


def test_the_warm_up_can_be_given_in_steps():
    settings = {"epochs": 4, "weight_decay": None, "warmup_steps": 10}
    rate = fitting.optimizer(settings, 0.1, 256, 25)._learning_rate
    assert float(rate(5)) == pytest.approx(0.05)
    assert float(rate(10)) == pytest.approx(0.1)
    assert float(rate(100)) == pytest.approx(0, abs=1e-6)


def test_clip_factor_and_label_smoothing_are_those_of_the_settings(monkeypatch):
    _, settings = tiny("batch_size")
    settings |= {"clip_factor": {"at 128": 0.3, "at 256": 0.7}, "label_smoothing": 0.2}
    compiled = []

    def stop(model, optimizer, loss, **options):
        compiled.append((options["clip_factor"], loss.label_smoothing))
        raise InterruptedError

    monkeypatch.setattr(AGCModel, "compile", stop)
    for size in (128, 256):
        with pytest.raises(InterruptedError):
            fitting.train(
                settings, fitting.CLIPPED, batch_size=size, learning_rate=0.1, seed=0
            )
    assert compiled == [(0.3, 0.2), (0.7, 0.2)]


def test_batch_sizes_with_few_steps_decide_nothing():
    rows = [{"batch_size": b, "steps": s} for b, s in ((8, 900), (64, 500), (512, 40))]
    [finding] = fitting.undecided(rows, {"scale": "small"})
    assert "512 (40 steps)" in finding.text and "64" not in finding.text
    assert "--scale=medium" in finding.text
    assert finding.holds == experiments.CANNOT_TELL
    [finding] = fitting.undecided(rows, {"scale": "medium"})
    assert "--scale=medium" not in finding.text
    assert fitting.undecided(rows[:2], {"scale": "small"}) == []


def test_what_cannot_be_told_is_known_before_the_run():
    experiment, settings = tiny("batch_size", epochs=16, batch_sizes=[32, 256])
    [before] = experiment.undecided(settings)
    rows = [
        {"batch_size": b, "steps": images.load(settings).batches(b, 0)[2] * 16}
        for b in (32, 256)
    ]
    assert [before] == fitting.undecided(rows, settings)
    assert "256 (80 steps)" in before.text and "32 (" not in before.text
    settings = experiments.settings_of(experiment, "full")
    assert experiments.find("bn_leaks").undecided(settings) == []


CANNOT_TELL = experiments.CANNOT_TELL


def rows_of(accuracies, **others):
    """Return rows of five seeds for `{(value, ...): accuracy}` of named columns."""
    noise = [-0.002, -0.001, 0, 0.001, 0.002]
    return [
        {"part": "main", "seed": seed, "steps": 600, **others, **cell}
        | {"accuracy": accuracy + (0.1 * accuracy + noise[seed]) % 0.003}
        for seed in range(5)
        for cell, accuracy in accuracies
    ]


@pytest.mark.parametrize(
    ("accuracies", "holds"),
    [
        # Accuracies of BN-ResNet, NF-ResNet and the latter with AGC at three batch sizes.
        ([(0.9, 0.9, 0.9), (0.9, 0.9, 0.9), (0.9, 0.1, 0.9)], [True, None, True, True]),
        (
            [(0.9, 0.9, 0.9), (0.9, 0.9, 0.9), (0.9, 0.1, 0.8)],
            [True, None, True, False],
        ),
        # Fails with AGC at smaller batches.
        (
            [(0.9, 0.9, 0.5), (0.9, 0.9, 0.5), (0.9, 0.1, 0.9)],
            [False, None, True, False],
        ),
        # Nothing fails without AGC.
        ([(0.9, 0.9, 0.9)] * 3, [CANNOT_TELL, None, None, True]),
        ([(0.9, 0.9, 0.7)] * 3, [CANNOT_TELL, None, None, False]),
        # Only batch normalization fails.
        ([(0.9, 0.9, 0.9)] * 2 + [(0.1, 0.9, 0.9)], [CANNOT_TELL, None, None, True]),
        # All fail.
        ([(0.9, 0.9, 0.9)] * 2 + [(0.1, 0.1, 0.1)], [CANNOT_TELL]),
    ],
)
def test_conclusions_on_batch_sizes(accuracies, holds):
    cells = [
        ({"network": network, "batch_size": size}, accuracy)
        for size, at in zip((64, 256, 1024), accuracies, strict=True)
        for network, accuracy in zip(fitting.NETWORKS, at, strict=True)
    ]
    findings = experiments.find("batch_size").conclude(
        rows_of(cells), {"scale": "medium"}
    )
    assert [finding.holds for finding in findings] == holds


@pytest.mark.parametrize(
    ("small", "large", "holds"),
    [
        ([0.9, 0.9, 0.9], [0.8, 0.8, 0.2], [None, True, True]),
        ([0.9, 0.9, 0.9], [0.8, 0.8, 0.8], [None, True, False]),
        # The smallest factor, one in between, the largest is too small or too large.
        ([0.8, 0.9, 0.9], [0.8, 0.8, 0.2], [None, False, True]),
        ([0.9, 0.5, 0.9], [0.8, 0.8, 0.2], [None, False, True]),
        ([0.9, 0.9, 0.5], [0.8, 0.8, 0.2], [None, False, True]),
        ([0.9, 0.9, 0.9], [0.1, 0.1, 0.1], [CANNOT_TELL]),
    ],
)
def test_conclusions_on_clip_factors(small, large, holds):
    cells = [
        ({"batch_size": size, "clip_factor": factor}, accuracy)
        for size, at in ((64, small), (1024, large))
        for factor, accuracy in zip((0.01, 0.04, 0.16), at, strict=True)
    ]
    findings = experiments.find("clip_factor").conclude(
        rows_of(cells), {"scale": "medium"}
    )
    assert [finding.holds for finding in findings] == holds


@pytest.mark.parametrize(
    ("small", "large", "holds"),
    [
        # Accuracy with everything clipped, all but the classifier, neither it nor the stem,
        # two stages, nothing.
        (
            (0.8, 0.9, 0.9, 0.9, 0.1),
            (0.8, 0.9, 0.9, 0.5, 0.1),
            [None, True, True, True, None, True, True, True],
        ),
        (
            (0.9, 0.8, 0.9, 0.5, 0.1),
            (0.8, 0.9, 0.7, 0.9, 0.1),
            [None, False, False, False, None, True, False, False],
        ),
        (
            (0.8, 0.9, 0.9, 0.9, 0.1),
            (0.1, 0.1, 0.1, 0.1, 0.1),
            [None, True, True, True, CANNOT_TELL],
        ),
    ],
)
def test_conclusions_on_layers(small, large, holds):
    names = ("everything", "all but the classifier", "all but classifier and stem")
    names += ("stage1 and stage2", "nothing")
    cells = [
        ({"batch_size": size, "clipped": name}, accuracy)
        for size, at in ((64, small), (1024, large))
        for name, accuracy in zip((*names, "stage3"), (*at, 0.1), strict=True)
    ]
    findings = experiments.find("which_layers").conclude(
        rows_of(cells), {"scale": "medium"}
    )
    assert [finding.holds for finding in findings] == holds


@pytest.mark.parametrize(
    ("accuracies", "losses", "holds"),
    [
        # Batch normalization, normalizer-free, the latter with dropout and stochastic depth.
        ((0.9, 0.8, 0.9), (0.2, 0.5, 0.3), [None, True, True, True, True]),
        ((0.9, 0.8, 0.85), (0.2, 0.5, 0.6), [None, True, True, False, False]),
        ((0.8, 0.9, 0.8), (0.2, 0.5, 0.3), [None, False, False, True, True]),
    ],
)
def test_conclusions_on_regularization(accuracies, losses, holds):
    names = (*fitting.NETWORKS[:2], "NF-ResNet, dropout and stochastic depth")
    cells = [
        ({"setting": name, "loss": loss}, accuracy)
        for name, accuracy, loss in zip(names, accuracies, losses, strict=True)
    ]
    findings = experiments.find("regularization").conclude(rows_of(cells), {})
    assert [finding.holds for finding in findings] == holds


@pytest.mark.parametrize(
    ("holds", "verdict"),
    [
        ([True, True, None], "supported"),
        ([True, False, None], "partly supported"),
        ([True, "cannot tell"], "partly supported"),
        ([False, "cannot tell", None], "not supported"),
        (["cannot tell", None], "this scale cannot tell"),
        ([None], "this scale cannot tell"),
    ],
)
def test_the_verdict_follows_from_the_findings(holds, verdict):
    findings = [experiments.Finding("", value) for value in holds]
    assert experiments.verdict(findings) == verdict


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(-1, 1))
def test_differences_are_of_the_same_seeds(values, shift):
    rows = [{"seed": i, "accuracy": value} for i, value in enumerate(values)]
    others = [{**row, "accuracy": row["accuracy"] - shift} for row in rows]
    difference = Difference.of(rows, others[::-1])
    assert difference == pytest.approx((shift,) * 3, abs=1e-9)
    assert difference.exceeds(shift - 0.1) is True
    assert difference.exceeds(shift + 0.1) is False
    assert difference.is_small(abs(shift) + 0.1) is True
    if abs(shift) > 0.1:
        assert difference.is_small(abs(shift) - 0.1) is False


def test_intervals_contain_the_difference_in_95_of_100_cases():
    generator = np.random.default_rng(0)
    for seeds in (2, 3, 5):
        noise = generator.normal(size=(2000, seeds))
        zeros = [{"seed": seed, "accuracy": 0} for seed in range(seeds)]
        found = [
            Difference.of(
                [{"seed": i, "accuracy": x} for i, x in enumerate(sample)], zeros
            )
            for sample in noise
        ]
        share = np.mean([d.least < 0 < d.most for d in found])
        assert share == pytest.approx(0.95, abs=0.015)


def test_one_seed_decides_nothing():
    difference = Difference.of(
        [{"seed": 0, "accuracy": 0.9}], [{"seed": 0, "accuracy": 0.1}]
    )
    assert difference.value == pytest.approx(0.8)
    assert difference.exceeds(0) == difference.is_small(0.1) == CANNOT_TELL


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=13))
def test_the_interval_of_a_median_is_within_the_values(values):
    difference = Difference.typical(values)
    assert min(values) <= difference.least <= difference.value <= difference.most
    assert difference.most <= max(values)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_labels_are_at_the_ends_of_their_lines(scale):
    axes = Figure().subplots()
    values = {"low": [5, 1], "high": [2, 1000], "middle": [2, 200]}
    for label, heights in values.items():
        axes.plot([0, 1], heights, label=label)
    axes.set_yscale(scale)
    plotting.label_lines(axes)
    found = {text.get_text(): text.get_position()[1] for text in axes.texts}
    least, most = axes.transData.inverted().transform(
        axes.transAxes.transform([(0, 0), (0, 1)])
    )[:, 1]
    scaled = {"linear": float, "log": np.log}[scale]
    for label, (_, end) in values.items():
        expected = (scaled(end) - scaled(least)) / (scaled(most) - scaled(least))
        assert found[label] == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_labels_of_lines_do_not_overlap(heights):
    heights = np.sort(heights)
    placed = plotting._apart(heights)
    assert (np.diff(placed) >= plotting._LABEL_HEIGHT - 1e-9).all()
    if (np.diff(heights) >= plotting._LABEL_HEIGHT).all():
        np.testing.assert_allclose(placed, heights, atol=1e-9)


def test_no_batch_is_larger_than_the_training_set():
    experiment = experiments.find("batch_size")
    sizes = experiments.settings_of(experiment, "small", "digits")["batch_sizes"]
    assert sizes == [16, 64, 256, 1000, 1438]
    dataset = images.load({"dataset": "digits"})
    assert sum(len(x) for x, _ in dataset.batches(1438, 0)[0]) == 1438


def test_settings_for_one_data_set_take_precedence():
    settings = {"epochs": 6, "settings_by_dataset": {"digits": {"epochs": 2}}}
    for dataset, epochs in (("digits", 2), ("mnist5k", 6)):
        found = images.with_dataset(settings, dataset)
        assert found == {"dataset": dataset, "epochs": epochs}
    assert settings["epochs"] == 6


def test_a_data_set_is_read_from_the_file_that_was_written_of_it(tmp_path):
    path = tmp_path / "digits.npz"
    images.write_dataset("digits", path)
    ours, theirs = (images.load({"dataset": d}) for d in (str(path), "digits"))
    assert ours.classes == theirs.classes == 10
    for one, other in zip(
        ours.batches(50, 0)[0][3], theirs.batches(50, 0)[0][3], strict=True
    ):
        np.testing.assert_array_equal(one, other)
    settings = images.with_dataset({"batch_sizes": [64, 5000]}, str(path))
    assert settings["batch_sizes"] == [64, 1438]
    written = images.with_dataset({}, str(path))
    assert written["groups"] == len(ours.batches(50, 0)[0]._x) + 359
    x, y, groups = np.load(path).values()
    for others in ((16 - x, y, groups), (x, 9 - y, groups), (x, y, groups[::-1])):
        np.savez(path, **dict(zip(("images", "labels", "groups"), others, strict=True)))
        changed = images.with_dataset({}, str(path))
        assert changed["pictures_checksum"] != written["pictures_checksum"]


VALID = {
    "images": np.arange(6 * 64, dtype="uint8").reshape(6, 8, 8),
    "labels": np.arange(6),
    "groups": np.arange(6),
}


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"groups": None}, "without groups"),
        ({"images": np.zeros((6, 8, 8, 3))}, "shapes"),
        ({"labels": np.arange(5)}, "shapes"),
        ({"labels": np.array([{}] * 6, dtype=object)}, "Object arrays"),
        ({"labels": np.arange(6) - 1}, "labels"),
        ({"labels": np.arange(6) / 2}, "labels"),
        ({"labels": np.array(list("abcdef"))}, "labels"),
        ({"images": np.full((6, 8, 8), np.nan)}, "finite"),
        ({"images": np.zeros((6, 8, 8))}, "all alike"),
        ({"images": np.zeros((6, 8, 8), complex)}, "finite"),
        ({"groups": np.zeros(6, int)}, "at least 5"),
        (
            {
                "images": np.zeros((0, 8, 8)),
                "labels": np.arange(0),
                "groups": np.arange(0),
            },
            "empty|zero-size",
        ),
    ],
)
def test_a_file_with_other_arrays_is_refused(others, message, tmp_path):
    path = tmp_path / "file.npz"
    np.savez(path, **VALID)
    assert images.load({"dataset": str(path)}).classes == 6
    images._splits.cache_clear()
    arrays = {k: v for k, v in (VALID | others).items() if v is not None}
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=rf"images \(n, height, width\).*({message})"):
        images.load({"dataset": str(path)})


def test_a_broken_file_is_refused(tmp_path):
    path = tmp_path / "file.npz"
    images.write_dataset("digits", path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="An .npz data set must have"):
        images.load({"dataset": str(path)})
    header = (
        b"\x93NUMPY\x01\x00\x76\x00"
        + (
            b"{'descr': '|u1', 'fortran_order': False, 'shape': (9999999, 9999, 9999)}"
        ).ljust(117)
        + b"\n"
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("images", "labels", "groups"):
            archive.writestr(f"{name}.npy", header)
    with pytest.raises(ValueError, match="An .npz data set must have"):
        images.load({"dataset": str(path)})
    with pytest.raises(ValueError, match="no such file|No such file"):
        images.load({"dataset": str(tmp_path / "gone.npz")})


def test_another_data_set_is_read_by_its_own_splits():
    settings = experiments.settings_of(
        experiments.find("regularization"), "full", "cifar10"
    )
    assert settings["test_split"] == "test" and settings["train_split"] == "train"
    settings = experiments.settings_of(
        experiments.find("regularization"), "small", "cifar10"
    )
    assert settings["train_split"] == "train[:800]" and "examples" not in settings
    assert settings["tuning_test_split"] == "train[600:800]"


# Figures are always drawn, but files of pixels, which take longest, only by slow tests.
@pytest.fixture(params=quick([False, True], False), ids=["drawn", "rendered"])
def _rendered(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(plotting, "save", nothing)


@pytest.mark.parametrize("name", sorted(set(experiments.EXPERIMENTS) - {"efficiency"}))
@pytest.mark.parametrize("value", [0.1, 0.9])
@pytest.mark.usefixtures("_rendered")
def test_no_claim_is_supported_if_all_networks_are_equal(name, value, tmp_path):
    """The page can also be written if all runs failed."""
    experiment = experiments.find(name)
    settings = experiments.settings_of(experiment, "small", "digits")
    measured = {
        "accuracy": value,
        "loss": 1.0,
        "train_loss": 1.0,
        "diverged": value < 0.5,
        "mean_iou": value,
        "average_precision": value,
        "encoder_accuracy": value,
        "gradient_difference": value,
        "step_seconds": 1.0,
        "steps": 1000,
        "peak_mib": 100,
        "own_mib": 10,
        "cell_seconds": 1.0,
    }
    # Examples for experiments whose cells yield several rows.
    within_a_cell = {
        "any_network": [
            {"layers": 3, "least": 0.5, "most": 2.0, "mean_square": 2.0},
            *(
                {"version": version, "place": place, "variance": 1.0, "expected": 1.0}
                for version in ("original", "normalization deleted", "normalizer_free")
                for place in range(2)
            ),
        ],
        "bn_leaks": [
            {"mode": mode, "of": i, "with_respect_to": j, "gradient": 1.0}
            for mode in ("inference", "training")
            for i in range(2)
            for j in range(2)
        ],
        "bn_train_test_gap": [
            {"mode": mode, "batch_size": size, "difference": 0.1}
            for mode in ("inference", "training")
            for size in settings.get("batch_sizes", ())
        ],
        "mean_shift": [
            {"block": b, "avg_sq_mean": 1.0, "avg_var": 10.0}
            | ({"res_avg_var": 10.0} if b else {})
            for b in range(1 + sum(settings.get("depths", ())))
        ],
        "residual_scale": [
            {
                "when": when,
                "block": f"stage{s}_block{b}",
                "predicted": 1 + b / 50,
                "measured": 1.0,
            }
            for when in ("start, gains one", "start", "trained")
            for s in (1, 2, 3)
            for b in (1, 2, 3, 4)
        ],
    }.get(name, [{}])
    rows = []
    for _ in range(2):
        rows = [
            {**cell, **measured, **values}
            for cell in experiment.plan(settings, rows)
            for values in within_a_cell
        ]
    if value < 0.5:
        findings = experiments.write(experiment, settings, rows, tmp_path, "a command")
    else:  # pages are drawn by the test of the published ones
        findings = experiment.conclude(rows, settings)
    assert experiments.verdict(findings) != "supported", findings


def train_two_epochs(network, **options):
    _, settings = tiny("batch_size", epochs=2)
    arguments = {"batch_size": 128, "learning_rate": 0.4, "seed": 1, **options}
    return fitting.train(settings, network, **arguments)[1]


@pytest.fixture(scope="module")
def unclipped():
    return train_two_epochs(fitting.NORMALIZER_FREE)


def test_runs_are_reproducible_and_a_diverged_run_is_a_result(unclipped):
    again = train_two_epochs(fitting.NORMALIZER_FREE)
    assert unclipped == pytest.approx(again, rel=1e-3)
    assert not unclipped["diverged"]
    row = train_two_epochs(fitting.NORMALIZER_FREE, learning_rate=1e9)
    assert row["diverged"] and row["accuracy"] == 0.1


def test_only_the_network_with_agc_is_clipped(unclipped):
    def loss(clip_factor):
        row = train_two_epochs(fitting.CLIPPED, clip_factor=clip_factor)
        return row["train_loss"]

    assert loss(1e9) == pytest.approx(unclipped["train_loss"], rel=1e-3)
    assert loss(1e-3) > 1.05 * unclipped["train_loss"]


def test_unclipped_and_clipped_networks_start_alike():
    starts = []
    for network in (fitting.NORMALIZER_FREE, fitting.CLIPPED):
        keras.utils.set_random_seed(3)
        _, settings = tiny("batch_size")
        starts.append(fitting.build(settings, network, (24, 24, 1), 10).get_weights())
    for a, b in zip(*starts, strict=True):
        np.testing.assert_array_equal(a, b)


def test_batch_norm_leaks_and_the_normalizer_free_network_does_not(tmp_path):
    experiment, settings = tiny("bn_leaks", seeds=1, pictures=2)
    rows = experiments.run(
        experiment, settings, Results(tmp_path / "results.csv"), 1, nothing
    )
    findings = experiment.conclude(rows, settings)
    assert [finding.holds for finding in findings] == [True, True, None]
    # A gradient of NaN does not count as zero.
    for row in rows:
        if row["network"] == fitting.NORMALIZER_FREE and row["mode"] == "training":
            row["gradient"] = float("nan")
    assert not experiment.conclude(rows, settings)[1].holds


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="what other processes do is no backend's",
)
def test_a_killed_run_continues_with_the_missing_cells(tmp_path):
    """SIGKILL ends the run and its two worker processes."""
    experiment, settings = tiny("mean_shift", depths=[1], seeds=2)
    path, alone = tmp_path / "results.csv", tmp_path / "alone.csv"
    program = tmp_path / "program.py"
    program.write_text(f"""
import pathlib
from keras_nfnets import experiments

if __name__ == "__main__":
    experiment = experiments.find("mean_shift")
    results = experiments.Results(pathlib.Path({str(path)!r}))
    experiments.run(experiment, {settings!r}, results, 2, lambda *_: None)
""")
    process = subprocess.Popen([sys.executable, program], start_new_session=True)
    try:
        wait_until(path.exists)
    finally:
        process.kill()
        process.wait()
    # Its worker processes end with it.
    wait_until(lambda: not _in_session(process.pid))
    cells = experiment.plan(settings, [])
    there = Results(path)
    done = sum(there.has(cell) for cell in cells)
    assert 0 < done < len(cells)
    measured = []
    rows = experiments.run(
        experiment, settings, there, 1, lambda *news: measured.append(news)
    )
    assert len(measured) == len(cells) - done
    expected = experiments.run(experiment, settings, Results(alone), 1, nothing)
    for row, other in zip(
        without_seconds(rows), without_seconds(expected), strict=True
    ):
        network, seed = row.pop("network"), row.pop("seed")
        assert (network, seed) == (other.pop("network"), other.pop("seed"))
        assert row == pytest.approx(other, rel=1e-3)


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _in_session(session):
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


@pytest.fixture
def elsewhere(monkeypatch):
    """Function that fakes a number of installed fonts, with dummy images of letters."""

    def as_if(fonts, **described):
        monkeypatch.setattr(images, "_splits", images._splits.__wrapped__)  # no cache
        monkeypatch.setattr(
            images, "_described", lambda dataset: {"fonts": fonts, **described}
        )
        for dataset, of_font, classes, side in (
            ("glyphs", glyphs.LETTERS, 26, 28),
            ("characters", glyphs.CHARACTERS, 62, 16),
        ):
            number = np.arange(fonts * len(of_font))
            letter = (np.arange(side**2) % 256).astype("uint8").reshape(1, side, side)
            letters = np.broadcast_to(letter, (len(number), side, side))
            found = letters, number % classes, number // len(of_font)
            monkeypatch.setitem(images._IN_MEMORY, dataset, lambda found=found: found)

    return as_if


PAGES = pathlib.Path(__file__).parents[2] / "experiments"
PUBLISHED = sorted(path.parent.name for path in PAGES.glob("*/settings.json"))


def test_each_experiment_is_listed():
    modules = pkgutil.iter_modules(experiments.__path__, "keras_nfnets.experiments.")
    for module in [importlib.import_module(found.name) for found in modules]:
        experiment = getattr(module, "EXPERIMENT", None)
        assert experiment is None or experiment.name in experiments.EXPERIMENTS


def test_the_list_and_the_index_are_those_of_the_published_results(tmp_path):
    """`python -m keras_nfnets.experiments experiments` writes the list and the index."""
    expected = {
        name: {"claim": experiment.claim, **experiments.published(PAGES / name)}
        for name, experiment in experiments.EXPERIMENTS.items()
    }
    assert list(tables.claims().items()) == list(expected.items())
    index = tmp_path / experiments.PAGE
    rows = [(experiments.find(name), found) for name, found in expected.items()]
    experiments.write_index(rows, index)
    assert index.read_text() == (PAGES / experiments.PAGE).read_text()


def test_each_experiment_is_published():
    assert set(experiments.EXPERIMENTS) <= set(PUBLISHED)


@pytest.mark.parametrize("published", PUBLISHED)
@pytest.mark.usefixtures("_rendered")
def test_published_pages_agree_with_their_results(published, tmp_path, elsewhere):
    """Fails if a page, its results or the code were changed without the others."""
    folder = PAGES / published
    settings = json.loads((folder / "settings.json").read_text())
    name = settings["experiment"]
    scale, dataset = settings["scale"], settings.get("dataset")
    assert published in (name, f"{name}-{dataset}")
    if "fonts" in settings:
        elsewhere(settings["fonts"], pictures_checksum=settings["pictures_checksum"])
    experiment = experiments.find(name)
    usual = experiments.settings_of(experiment, scale, dataset)
    # The results come from another machine.
    usual |= {key: settings[key] for key in ("backend", "machine") if key in usual}
    assert settings == usual
    results = Results(folder / experiments.RESULTS)
    rows = results.rows
    cells = experiment.plan(settings, rows)
    assert all(results.has(cell) for cell in cells)
    command = f"keras-nfnets experiment {name}"
    if scale != "small":
        command += f" --scale={scale}"
    if settings["backend"] != "tensorflow":
        command = f"KERAS_BACKEND={settings['backend']} {command}"
    if published != name:
        command += f" --dataset={dataset}"
    experiments.write(experiment, settings, results.of(cells), tmp_path, command)
    page = (folder / experiments.PAGE).read_text()
    assert (tmp_path / experiments.PAGE).read_text() == page
