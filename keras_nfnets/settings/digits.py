"""Recipe for a first run: scikit-learn's digits, half a minute on two cores."""

from keras_nfnets.settings.recipe import Recipe

RECIPES = {
    "digits": Recipe(
        about="a small NFNet on scikit-learn's handwritten digits, in half a minute",
        data="digits",
        model="NFNetTiny",
        batch_size=64,
        epochs=15,
        learning_rate=1.6,
        clip_factor=0.01,
    )
}
