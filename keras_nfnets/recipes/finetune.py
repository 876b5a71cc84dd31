"""Pictures of one's own: a folder of class folders, often few of them."""

from keras_nfnets.recipes.recipe import Recipe

RECIPES = {
    "finetune": Recipe(
        about="your own pictures, from scratch or from published weights",
        data="digits",  # to be replaced by a folder
        # Of a folder that has both, `test` is for the end.
        test_split="validation",
        model="NFNetTiny",
        # Less of a picture may be too little to tell what it is.
        augmentation="crop_0.6 flip",
        # Whatever their shape and size, nothing of them is cut away.
        crop_mode="whole",
        drop_rate=0.2,
        batch_size=16,
        epochs=40,
        # arXiv 2102.06171, section 4.1: a rate of 0.1 for 256, and larger clip factors
        # for smaller batches (figure 2b).
        learning_rate=0.4,
        clip_factor=0.04,
        head_epochs=10,
        patience=12,
        report=True,
    )
}
