import json
import re
import sys

import pytest
from full_disk import full_disk

from keras_nfnets import experiments, files
from keras_nfnets.cli.main import main
from keras_nfnets.experiments import glyphs


@pytest.mark.parametrize("arguments", [[], ["--list"]])
def test_claims_and_verdicts_are_listed(arguments, capsys):
    assert main(["experiment", *arguments]) == 0
    out = capsys.readouterr().out
    for name, experiment in experiments.EXPERIMENTS.items():
        assert re.search(
            rf"\n{name}: (partly |not )?(supported|this scale cannot tell) "
            r"\((small|medium|full) scale, \d+ min\)\n",
            out,
        )
        assert " ".join(experiment.claim.split()) in " ".join(out.split())


def test_a_claim_is_tried_and_a_second_run_measures_nothing(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    small = experiments.find("mean_shift").scales["small"]
    monkeypatch.setitem(small, "depths", [2, 2])
    arguments = [
        "experiment",
        "mean_shift",
        "--dataset=digits",
        "--seeds=1",
        "--jobs=1",
    ]
    arguments.append("--output_dir=a folder")
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.count("\n[") == 4 and "[4/4]" in out
    assert re.search("Result: (partly )?supported", out)
    folder = tmp_path / "a folder"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "picture.png", "results.csv", "settings.json")
    ]
    page = (folder / "README.md").read_text()
    assert "keras-nfnets experiment mean_shift --dataset=digits --seeds=1" in page
    before = (folder / "results.csv").read_bytes()
    assert main(arguments) == 0
    assert "\n[" not in capsys.readouterr().out
    assert (folder / "results.csv").read_bytes() == before
    picture = (folder / "picture.png").read_bytes()
    with full_disk(5000):
        assert main(arguments) == 1
    assert (
        f"Not written: File too large: '{arguments[-1][13:]}" in capsys.readouterr().err
    )
    assert (folder / "picture.png").read_bytes() == picture


def test_a_data_set_is_carried_to_another_machine_as_a_file(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    file = "of digits.npz"
    assert main(["experiment", "--dataset=digits", f"--write_dataset={file}"]) == 0
    assert file in capsys.readouterr().out
    small = experiments.find("mean_shift").scales["small"]
    monkeypatch.setitem(small, "depths", [1])
    arguments = ["experiment", "mean_shift", "--seeds=1", "--jobs=1"]
    # Without the fonts, the usual data set of a scale is not available.
    monkeypatch.setattr(glyphs, "_paths", list)
    monkeypatch.setitem(
        experiments.find("mean_shift").scales,
        "medium",
        {**small, "dataset": "characters"},
    )
    arguments.append("--scale=medium")
    assert main([*arguments, f"--dataset={file}"]) == 0
    page = (tmp_path / f"runs/mean_shift-medium-{file}/README.md").read_text()
    assert f"--dataset='{file}'" in page or f"'--dataset={file}'" in page


def test_wrong_usage_is_explained_and_nothing_is_lost(tmp_path, capsys):
    def error(*arguments):
        assert main(["experiment", *arguments]) == 2
        return capsys.readouterr().err

    assert "no experiment 'batchsize'; perhaps batch_size?" in error("batchsize")
    assert "--list lists all" in error("--list", "bn_leaks")
    assert "must be one of 'small', 'full'" in error("bn_leaks", "--scale=medium")
    assert "needs --dataset" in error("--write_dataset=x.npz")
    assert "needs --dataset" in error("--write_dataset=x.npz", "bn_leaks")
    write = ("--dataset=digits", f"--write_dataset={tmp_path / 'digits.csv'}")
    assert "must end in .npz" in error(*write)
    write = ("--dataset=mnist", f"--write_dataset={tmp_path / 'mnist.npz'}")
    assert "must be one of" in error(*write)
    assert "--seeds must be a positive integer" in error("bn_leaks", "--seeds=0")
    folder = f"--output_dir={tmp_path / 'new'}"
    assert "perhaps" in error("bn_leaks", "--dataset=mnsit", folder)
    assert not (tmp_path / "new").exists()
    settings = {"experiment": "mean_shift", "scale": "small"}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    (tmp_path / "results.csv").write_text("seed\n1\n")
    folder = f"--output_dir={tmp_path}"
    said = error("bn_leaks", folder)
    assert "contains results with other settings" in said
    assert (tmp_path / "results.csv").read_text() == "seed\n1\n"
    (tmp_path / "settings.json").write_text("{")
    assert "does not contain settings" in error("bn_leaks", folder)
    (tmp_path / "settings.json").unlink()
    assert "no settings.json" in error("bn_leaks", folder)
    assert "/proc/nowhere" in error("bn_leaks", "--output_dir=/proc/nowhere")


def test_experiments_whose_packages_are_missing_are_explained_and_left_out_of_all(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    folder = f"--output_dir={tmp_path / 'new'}"
    assert main(["experiment", "segmentation", folder]) == 2
    error = capsys.readouterr().err
    assert "'segmentation' needs the package 'keras-hub'" in error
    assert "pip install 'keras_nfnets[experiments,hub]'" in error
    # Stops before the first run.
    assert main(["experiment", "all", "--dataset=nosuch", folder]) == 2
    out, error = capsys.readouterr()
    assert "Left out: The experiment 'segmentation' needs" in out
    assert "keras-hub" not in error and "nosuch" in error


def test_files_that_no_experiment_has_written_are_left_alone(tmp_path, capsys):
    folder = f"--output_dir={tmp_path}"
    (tmp_path / "README.md").write_text("# My project")
    for names in (["mean_shift"], ["mean_shift", "bn_leaks"]):
        assert main(["experiment", *names, "--dataset=digits", folder]) == 2
        assert "README.md" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_folder_belongs_to_one_process(tmp_path, capsys):
    arguments = ["experiment", "mean_shift", "--dataset=digits"]
    with files.claimed(tmp_path):
        status = main([*arguments, f"--output_dir={tmp_path}"])
        assert not (tmp_path / "settings.json").exists()
    assert status == 2
    assert f"is running an experiment in {tmp_path}" in capsys.readouterr().err
