import re
import sys

import pytest

import keras_nfnets
from keras_nfnets.cli.main import COMMANDS, main, run


def outputs(capsys, *arguments):
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_explains(command, flag, capsys):
    arguments = [flag] if command is None else [command, flag]
    status, out, _ = outputs(capsys, *arguments)
    assert status == 0
    assert out.startswith("usage: keras-nfnets")
    if command is None:
        assert all(f"\n  {name} " in out for name in COMMANDS)
    else:
        for flag_name in COMMANDS[command].values:
            assert re.search(rf"--(\[no\])?{flag_name}\n", out)
    assert max(map(len, out.splitlines())) <= 88


def test_no_arguments_and_version(capsys):
    assert outputs(capsys, "help", "list") == outputs(capsys, "list", "--help")
    assert outputs(capsys)[:2] == outputs(capsys, "--help")[:2]
    assert outputs(capsys, "--version")[1].strip() == keras_nfnets.__version__


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["trian"], "no command 'trian'; perhaps train?"),
        (["train", "--epoch=3"], "Did you mean: epochs"),
        (["train", "--epochs=0"], "--epochs must be a positive integer. Received: 0"),
        (["train", "--epochs=many"], "--epochs must be .* integer. Received: many"),
        (["train", "--epochs"], "epochs"),
        (["train", "--agc=perhaps"], "--agc must be true or false. Received: perhaps"),
        (["train", "--clip_factor=-1"], "must be a number >= .*Received: -1"),
        (["train", "--precision=float8"], "must be one of float32, mixed_b.*: float8"),
        (["experiment", "bn_leak"], "no experiment 'bn_leak'; perhaps bn_leaks?"),
        (["train", "--clip_factor=nan"], "--clip_factor must be finite. Received: nan"),
        (["train", "--learning_rate=inf"], "must be finite. Received: inf"),
        (["train", "--seed=9999999999"], "--seed must be .*4294967295"),
        (["train", "--model=NFNetF9"], "no network 'NFNetF9'; perhaps NFNetF"),
        (["train", "--dataset=mnsit"], "where there is no folder; perhaps mnist"),
        (["train", "20"], "takes flags only, as --epochs=20. Received: 20"),
        (["train", "--output_dir=/proc/nowhere"], "Cannot write into --output_dir"),
        (["list", "NFNetF0"], "takes no arguments. Received: NFNetF0"),
        (["summary"], "takes the name of one network. Received: none"),
        (["summary", "ResNet50"], "no network 'ResNet50'; perhaps NFResNet50"),
        (["summary", "NFNetF0", "--image_size=-3"], "positive integer. Received: -3"),
    ],
)
def test_wrong_usage_is_explained(arguments, sentence, capsys):
    status, out, err = outputs(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert re.search(sentence, err)
    assert "Traceback" not in err


def test_list_shows_every_network_with_the_published_figures(capsys):
    status, out, _ = outputs(capsys, "list")
    assert status == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
    assert set(rows) == {
        name
        for name in keras_nfnets.__all__
        if re.fullmatch(r"(ECA)?NF\w+\d(Plus)?|NFNetTiny|NFNetTest", name)
    }
    # arXiv 2102.06171, table 1: parameters, billions of FLOPs, image sizes.
    assert rows["NFNetF0"] == ["71,489,284", "12.38G", "192", "256"]
    assert rows["NFNetF1"][1:] == ["35.54G", "224", "320"]
    assert rows["NFNetF6"][1:] == ["377.28G", "448", "576"]


def test_summary_shows_layers_figures_and_endpoints(capsys):
    status, out, _ = outputs(capsys, "summary", "nfresnet26", "--image_size=64")
    assert status == 0
    assert "stage4_block2" in out and "15,995,184" in out
    assert "64 x 64 image" in out
    assert "stem, stage1, stage2, stage3, stage4, features, avg_pool" in out


def test_output_to_a_full_disk_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["keras-nfnets", "list"])
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as exit:
            run()
    assert exit.value.code == 1
    assert "cannot write the standard output: No space" in capsys.readouterr().err
