"""Recipes: their settings are those of the papers, and each can be started."""

import dataclasses
import re

import numpy as np
import pytest
from one_block import networks_of_one_block
from quick import quick

import keras_nfnets
from keras_nfnets import data, pretrained, recipes
from keras_nfnets.cli.main import main
from keras_nfnets.data import Augmentation


def test_the_recipes_there_are():
    nfnets = [f"nfnet_f{i}_imagenet" for i in range(7)]
    regnets = [f"nf_regnet_b{i}" for i in range(6)]
    resnets = [
        f"nf_resnet50_batch{n}{end}"
        for n in (256, 1024, 4096)
        for end in ("", "_noagc")
    ]
    assert set(recipes.RECIPES) == {"digits", "finetune", *nfnets, *regnets, *resnets}


def test_nfnets_train_as_published():
    """The settings are those of the authors' experiment_nfnets.py."""
    layers_and_magnitude = [(4, 5), (4, 10), (4, 10)] + [(4, 15)] * 4
    train_sizes = [192, 224, 256, 320, 384, 416, 448]
    test_sizes = [256, 320, 352, 416, 512, 544, 576]
    for i, expected in enumerate(zip(train_sizes, test_sizes)):
        recipe = recipes.find(f"nfnet_f{i}_imagenet")
        assert recipes.image_sizes(recipe) == expected
        assert Augmentation.parse(recipe.augmentation) == Augmentation(
            crop=0.08,
            flip=True,
            mixup=0.2,
            cutmix=True,
            rand_augment=layers_and_magnitude[i],
        )
        assert (recipe.batch_size, recipe.epochs) == (4096, 360)
        assert (recipe.weight_decay, recipe.clip_factor) == (2e-5, 0.01)
        assert (recipe.momentum, recipe.label_smoothing) == (0.9, 0.1)
        assert (recipe.stochastic_depth_rate, recipe.ema_decay) == (0.25, 0.99999)
        assert recipe.crop_mode == "resize_crop_32"
        assert recipe.sam_rho == (0.05 if i == 6 else None)
        schedule = recipes.schedule(recipe, 312)
        rates = [float(schedule(step)) for step in (0, 780, 1560, 312 * 360)]
        np.testing.assert_allclose(rates, [0, 0.8, 1.6, 0], atol=1e-6)


def test_regnets_train_as_published():
    """The settings are those of the authors' experiment_nf_regnets.py."""
    for i in range(6):
        recipe = recipes.find(f"nf_regnet_b{i}")
        schedule = recipes.schedule(recipe, 1251)
        rates = [float(schedule(step)) for step in (0, 5 * 1251, 360 * 1251)]
        np.testing.assert_allclose(rates, [0, 0.4, 0.001], atol=1e-6)
        assert recipe.weight_decay == pytest.approx((5 + i) * 1e-5)
        assert recipe.clip_factor is None and recipe.stochastic_depth_rate == 0.1
        assert recipe.augmentation == "crop flip mixup_0.2 cutmix"


def test_settings_are_changed_by_name():
    recipe = recipes.find("digits").changed(
        ["epochs=3", "clip_factor=None", "augmentation=crop flip", "report=True"]
    )
    assert (recipe.epochs, recipe.clip_factor, recipe.report) == (3, None, True)
    assert recipe.augmentation == "crop flip"
    for assignment, sentence in [
        ("epoch=3", "Received: 'epoch=3'; perhaps epochs"),
        ("epochs", "A setting is key=value, such as epochs=15. Received: 'epochs'"),
        ("about=x", "A setting is key=value"),
        ("epochs=0", "`epochs` must be an integer of at least 1"),
        ("epochs=many", "`epochs` must be an integer"),
        ("label_smoothing=1", "less than 1"),
        ("augmentation=zoom", "Received: 'zoom'"),
        ("report=3", "`report` must be True or False"),
        ("warmup_epochs=15", "`warmup_epochs` must be"),
        ("epochs=" + "-" * 10**6 + "1", "`epochs` must be an integer"),
        ("epochs=" + "[" * 10**5, "`epochs` must be an integer"),
        ("epochs=" + "1+" * 10**5 + "1", "`epochs` must be an integer"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            recipes.find("digits").changed([assignment])
    with pytest.raises(ValueError, match="perhaps nfnet_f0_imagenet"):
        recipes.find("nfnet_f0_imagnet")


@pytest.mark.parametrize(
    "name, changes",
    [
        ("nfnet_f0_imagenet", ["model=NFNetTest"]),
        ("digits", []),
        pytest.param("nf_regnet_b0", ["model=NFNetTest"], marks=pytest.mark.slow),
        pytest.param("finetune", [], marks=pytest.mark.slow),
    ],
)
def test_a_recipe_passes_its_dry_run_with_a_small_network(name, changes, capsys):
    with networks_of_one_block():
        assert_dry_run(name, changes, capsys)


@pytest.mark.slow
@pytest.mark.own_process
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_passes_its_dry_run(name, capsys):
    assert_dry_run(name, [], capsys)


def assert_dry_run(name, changes, capsys):
    flags = [f"--set={change}" for change in changes]
    status = main(["train", f"--recipe={name}", *flags, "--dry-run"])
    out = capsys.readouterr().out
    assert status == 0
    recipe = recipes.find(name).changed(changes)
    for row in (
        "data",
        "sizes",
        "augmentation",
        "steps",
        "learning rate",
        "memory",
    ):
        assert re.search(rf"^{row}  ", out, re.MULTILINE)
    assert f"{recipe.model}, " in out and f"{recipe.epochs} epochs" in out
    assert (f"AGC {recipe.clip_factor}" if recipe.clip_factor else "no clipping") in out
    loss = float(re.search(r"loss ([\d.]+), 0 steps", out)[1])
    assert 0 < loss < 12


def test_a_recipe_that_cannot_be_started_says_why(capsys):
    for arguments, sentence in [
        (["--recipe=digit"], "perhaps digits"),
        (["--dry-run", "--set=model=NFNetF9"], "no network 'NFNetF9'"),
        (["--dry-run", "--set=learning_rate=-1"], "--learning_rate must be"),
        (["--dry-run", "--data=/nowhere"], "There is no folder '/nowhere'"),
        (["--dry-run", "--set=precision=banana"], "--precision must be one of"),
        (["--dry-run", "--set=weights=none.h5"], "'none.h5', where there is no file"),
        (["--dry-run", "--set=weights=imagenet"], "no published ImageNet weights"),
        (["--dry-run", "--set=train_split=tset"], "`split` must be one of 'train'"),
        (["--dry-run", "--set=test_split=tset"], "must have a split tset"),
        (["--dry-run", "--set=first_image_size=99"], "at most .*, 32. Received"),
        (["--epochs=1", "--set=first_image_size=8"], "at least two epochs"),
        (["--set=crop_mode=center"], "`crop_mode` must be one of"),
        (["--dry-run", "--set=clip_factor=abc"], "--clip_factor must be"),
    ]:
        assert main(["train", *arguments]) == 2
        assert re.search(sentence, capsys.readouterr().err)


@pytest.mark.parametrize(
    "name", quick(["nfnet_f0_imagenet", "nf_regnet_b0"], "nfnet_f0_imagenet")
)
def test_with_weight_decay_the_optimizer_is_the_authors(name):
    """The optimizer gets all settings, and nothing is clipped twice."""
    recipe = dataclasses.replace(
        recipes.find(name), model="NFNetTiny", precision="float32", data="digits"
    )
    with networks_of_one_block():
        model = recipes.create_model(recipe, data.find("digits"))
    recipes.compile_model(recipe, model, steps_per_epoch=10)
    optimizer = model.optimizer
    assert isinstance(optimizer, keras_nfnets.SGDAGC)
    assert optimizer.gradient_weight_decay == recipe.weight_decay
    assert optimizer.clip_factor == recipe.clip_factor
    assert (optimizer.momentum, optimizer.nesterov) == (0.9, True)
    model.run_eagerly = True  # compilation would take longest
    x, y = next(data.load("digits", "train", 32, 16).as_numpy_iterator())
    history = model.fit(x, y, batch_size=16, verbose=0).history
    assert "clip_share" not in history


def test_a_new_classifier_learns_alone_first():
    recipe = dataclasses.replace(
        recipes.find("finetune"),
        data="digits",
        model="NFNetTiny",
        weights="digits",
        test_split="test",
        head_epochs=4,
    )
    x, y = data.load_digits()[0]
    source = data.find({part: (x[:128], y[:128] % 2) for part in ("train", "test")})
    with pytest.warns(UserWarning, match="The classifier of digits has 10 classes"):
        model = recipes.create_model(recipe, source)
    before = {v.path: v.numpy() for v in model.weights}
    accuracy, held_out_accuracy = recipes.train_head(recipe, model, source)
    assert accuracy > 0.75 and held_out_accuracy > 0.75
    changed = {
        v.path for v in model.weights if not np.array_equal(before[v.path], v.numpy())
    }
    assert changed == {"predictions/kernel", "predictions/bias"}
    # Images are normalized as for the checkpoint.
    checkpoint = pretrained.find_checkpoint("digits")
    assert recipes.preparation(recipe, source)["mean"] == checkpoint.mean
