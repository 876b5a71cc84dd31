"""NF-ResNet-50 on ImageNet at several batch sizes, with and without AGC."""

from keras_nfnets.settings.recipe import Recipe

# Read off arXiv 2102.06171, figure 2b: small batches tolerate weaker clipping, large
# ones need 0.01.
_CLIP_FACTORS = {256: 0.08, 1024: 0.01, 4096: 0.01}


def _recipe(batch_size, clip_factor):
    clipping = "with AGC" if clip_factor else "without clipping"
    return Recipe(
        about=f"NF-ResNet-50 on ImageNet, batch {batch_size}, {clipping} "
        "(arXiv 2102.06171, section 4.1 and figure 2)",
        data="imagenet2012",
        test_split="validation",
        model="NFResNet50",
        image_size=224,
        test_image_size=224,
        # Section 4.1; what it does not state is as in the authors' experiment.py.
        augmentation="crop flip",
        crop_mode="crop_resize",
        interpolation="bicubic",
        batch_size=batch_size,
        epochs=90,
        learning_rate=0.1,
        warmup_epochs=5,
        weight_decay=1e-4,
        label_smoothing=0.1,
        clip_factor=clip_factor,
    )


RECIPES = {
    f"nf_resnet50_batch{batch_size}{'' if clip_factor else '_noagc'}": _recipe(
        batch_size, clip_factor
    )
    for batch_size, agc in _CLIP_FACTORS.items()
    for clip_factor in (agc, None)
}
