"""NFNet-F0 to F6 on ImageNet, as published."""

from keras_nfnets.settings.recipe import Recipe
from keras_nfnets.tables import networks

# Layers x magnitude, larger for larger networks: `augment` in experiment_nfnets.py;
# arXiv 2102.06171, section 5.
_RAND_AUGMENT = {
    "F0": "4x5",
    "F1": "4x10",
    "F2": "4x10",
    "F3": "4x15",
    "F4": "4x15",
    "F5": "4x15",
    "F6": "4x15",
}


def _recipe(variant):
    network = networks()[f"NFNet{variant}"]
    return Recipe(
        about=f"NFNet-{variant} on ImageNet (arXiv 2102.06171, section 5 and table 3)",
        data="imagenet2012",
        test_split="validation",
        model=f"NFNet{variant}",
        # Table 1, as is the network's default dropout. Stochastic depth: section 5.
        image_size=network.train_size,
        test_image_size=network.test_size,
        stochastic_depth_rate=0.25,
        # Section 5, with the settings of the authors' experiment_nfnets.py.
        augmentation=f"crop flip mixup_0.2 cutmix randaugment_{_RAND_AUGMENT[variant]}",
        crop_mode="resize_crop_32",
        interpolation="bicubic",
        batch_size=4096,
        epochs=360,
        learning_rate=0.1,
        warmup_epochs=5,
        weight_decay=2e-5,
        label_smoothing=0.1,
        clip_factor=0.01,
        # Table 3 has F6 with SAM; the radius is that of arXiv 2010.01412.
        sam_rho=0.05 if variant == "F6" else None,
        ema_decay=0.99999,
        precision="mixed_bfloat16",
    )


RECIPES = {
    f"nfnet_{variant.lower()}_imagenet": _recipe(variant) for variant in _RAND_AUGMENT
}
