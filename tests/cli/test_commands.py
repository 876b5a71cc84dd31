import re

import pytest

import keras_nfnets
from keras_nfnets import recipes
from keras_nfnets.cli.main import COMMANDS, main


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
            assert re.search(rf"^  --(\[no\])?{flag_name}( |$)", out, re.MULTILINE)
        _, blank, sentence, *rest = out.splitlines()
        assert blank == "" and sentence.endswith(".")
        # Examples come first.
        assert rest[0] == "" and rest[1].startswith(f"  keras-nfnets {command}")
    assert max(map(len, out.splitlines())) <= 80


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
        (["train", "--clip_factor=-1"], "more than 0, or --noagc .*Received: -1"),
        (["train", "--precision=float8"], "must be one of float32, mixed_b.*: float8"),
        (["experiment", "bn_leak"], "no experiment 'bn_leak'; perhaps bn_leaks?"),
        (["train", "--clip_factor=nan"], "--clip_factor must be finite. Received: nan"),
        (["train", "--learning_rate=inf"], "must be finite. Received: inf"),
        (["train", "--seed=9999999999"], "--seed must be .*4294967295"),
        (["train", "--model=NFNetF9"], "no network 'NFNetF9'; perhaps NFNetF"),
        (["train", "--dataset=mnsit"], "where there is no folder; perhaps mnist"),
        (["train", "--clip-factor", "0"], "more than 0, or --noagc .*Received: 0"),
        (["train", "20"], "did you mean --epochs=20. Received: 20"),
        (["train", "my folder"], "did you mean '--data=my folder'. Received: 'my f"),
        (["train", "nfnetl0"], "did you mean --model=nfnetl0"),
        (["train", "nf_regnet_b0", "--epochs=3"], "did you mean --recipe=nf_regnet_b0"),
        (
            ["train", "--recipe=nf_regnet_b9"],
            "perhaps nf_regnet_b.*The recipes are digits, f",
        ),
        (["train", "--ema_decay=1"], "--ema_decay must be between 0 and 1"),
        (["train", "--output_dir=/proc/nowhere"], "Cannot write into --output_dir"),
        (["list", "NFNetF0", "F1"], "one part of a name. Received: NFNetF0 F1"),
        (["list", "NFNetF9"], "contains 'NFNetF9'; perhaps NFNetF"),
        (
            ["list", "--weights", "regnet_b2"],
            "contains 'regnet_b2'; perhaps nf_regnet_b1",
        ),
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
    # arXiv 2102.06171, tables 1 (image sizes) and 3 (parameters, billions of FLOPs).
    assert rows["NFNetF0"] == ["71,489,284", "12.38G", "192", "256"]
    assert rows["NFNetF1"][1:] == ["35.54G", "224", "320"]
    assert rows["NFNetF6"][1:] == ["377.28G", "448", "576"]


def test_list_selects_rows_by_a_part_of_a_name(capsys):
    def names(*arguments):
        status, out, _ = outputs(capsys, "list", *arguments)
        assert status == 0
        return [line.split()[0] for line in out.splitlines()]

    assert names("REGNETB1") == ["network", "NFRegNetB1"]
    assert names("dm_nfnet_f3") == ["network", "NFNetF3"]
    assert names("--weights", "nfnetl0") == names("nfnet_l0.", "--weights")
    assert names("NFRegNet", "--weights") == ["checkpoint", "nf_regnet_b1.ra2_in1k"]
    assert names("--recipes") == list(recipes.RECIPES)
    assert names("--recipes", "noagc") == [n for n in recipes.RECIPES if "noagc" in n]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["train", "--overwrite"], "--overwrite has no effect without --output_dir"),
        (["train", "--resume", "--overwrite", "--output_dir=x"], "Give one of them"),
        (
            ["train", "--dry_run", "--tensorboard"],
            "--tensorboard has no effect with --d",
        ),
        (["train", "--dry_run", "--resume"], "--resume has no effect with --dry_run"),
        (["train", "--dry-run", "--output-dir=x"], "--output_dir has no effect with"),
        (["train", "--dry_run", "--strategy=none"], "--strategy has no effect with"),
        (["train", "--set=epochs=3", "--epochs=4"], "--set=epochs and --epochs contra"),
        (
            ["train", "--set=model=NFNetF0", "--model=NFNetF0"],
            "--set=model and --model",
        ),
        (["train", "--set=epochs=3", "--set=epochs=4"], "--set=epochs is given twice"),
        (["train", "--agc", "--noagc"], "--agc and --noagc contradict each other"),
        (["train", "--output-dir="], "--output_dir must be a folder"),
        (["predict", "digits", "--", "--a-b.png"], "There is no file '--a-b.png'"),
        (["--verison"], "perhaps --version?"),
        (["train", "--noagc", "--clip_factor=0.1"], "--noagc and a clip factor contra"),
        (
            ["train", "--noagc", "--set=clip_factor=1"],
            "--noagc and a clip factor contra",
        ),
        (["train", "--agc", "--recipe=nf_regnet_b0"], "--agc needs --clip_factor"),
        (["train", "--agc", "--set=clip_factor=None"], "--agc needs --clip_factor"),
        (
            ["train", "--set=head_epochs=3"],
            "--set=head_epochs has no effect without --w",
        ),
        (
            ["data", "--augmentation=flip"],
            "--augmentation has no effect without --prev",
        ),
        (["data", "--output=a.png"], "--output has no effect without --preview"),
        (
            ["data", "--image-size", "32"],
            "--image_size has no effect without --preview",
        ),
        (["data", "--seed=1", "--nopreview"], "--seed has no effect without --preview"),
        (
            ["data", "digits", "--recipe=digits"],
            "--recipe has no effect with a data set",
        ),
        (["list", "--weights", "--recipes"], "--recipes has no effect with --weights"),
        (
            ["evaluate", "digits", "--json", "--worst=3"],
            "--worst has no effect with --j",
        ),
        (["experiment", "--seeds=2"], "--seeds has no effect without the name"),
        (
            ["experiment", "bn_cost", "--dataset=mnist"],
            "--dataset has no effect, .*Received: bn_cost --dataset=mnist",
        ),
    ],
)
def test_a_flag_without_effect_is_refused(
    arguments, sentence, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    status, out, err = outputs(capsys, *arguments)
    assert (status, out) == (2, "")
    assert re.search(sentence, err)
    assert not list(tmp_path.iterdir())


def test_summary_shows_layers_figures_and_endpoints(capsys):
    status, out, _ = outputs(capsys, "summary", "nfresnet26", "--image_size=64")
    assert status == 0
    assert "stage4_block2" in out and "15,995,184" in out
    assert "64 x 64 image" in out
    assert "stem, stage1, stage2, stage3, stage4, features, avg_pool" in out
