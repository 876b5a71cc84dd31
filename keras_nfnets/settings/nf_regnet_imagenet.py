"""NF-RegNet-B0 to B5 on ImageNet, as published."""

from keras_nfnets.settings.recipe import Recipe
from keras_nfnets.tables import networks

# arXiv 2101.08692, section 4.3 and appendix; the authors' experiment_nf_regnets.py.
_WEIGHT_DECAY = {"b0": 5e-5, "b1": 6e-5, "b2": 7e-5, "b3": 8e-5, "b4": 9e-5, "b5": 1e-4}


def _recipe(variant):
    name = f"NFRegNet{variant.upper()}"
    return Recipe(
        about=f"NF-RegNet-{variant.upper()} on ImageNet (arXiv 2101.08692, table 3)",
        data="imagenet2012",
        test_split="validation",
        model=name,
        image_size=networks()[name].train_size,
        test_image_size=networks()[name].test_size,
        stochastic_depth_rate=0.1,
        augmentation="crop flip mixup_0.2 cutmix",
        crop_mode="crop_resize",
        interpolation="bicubic",
        batch_size=1024,
        epochs=360,
        learning_rate=0.1,  # 0.4 at this batch size
        final_learning_rate=0.001,
        warmup_epochs=5,
        weight_decay=_WEIGHT_DECAY[variant],
        label_smoothing=0.1,
        ema_decay=0.99999,
    )


RECIPES = {f"nf_regnet_{variant}": _recipe(variant) for variant in _WEIGHT_DECAY}
