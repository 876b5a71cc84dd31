"""Recipe for your own images: one folder per class, often with few images."""

from keras_nfnets.settings.recipe import Recipe

RECIPES = {
    "finetune": Recipe(
        about="your own images, from scratch or from published weights",
        data="digits",  # to be replaced by a folder
        # If a folder has both splits, `test` is reserved for the final evaluation.
        test_split="validation",
        model="NFNetTiny",
        # A smaller crop may not show enough to recognize the class.
        augmentation="crop_0.6 flip",
        # Resize the complete image, whatever its shape; crop nothing.
        crop_mode="whole",
        # Photographs are made much smaller.
        interpolation="antialiased_bicubic",
        drop_rate=0.2,
        batch_size=16,
        epochs=40,
        # Four times the learning rate of arXiv 2102.06171, section 4.1, as these runs are
        # short. Smaller batches tolerate larger clip factors (figure 2b).
        learning_rate=0.4,
        clip_factor=0.04,
        head_epochs=10,
        patience=12,
        report=True,
    )
}
