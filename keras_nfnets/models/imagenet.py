"""ImageNet's conventions: what a network reads and what its answers are called."""

from keras.applications import imagenet_utils


def preprocess_input(x, data_format=None):
    """Prepares pictures as the authors did: ImageNet's mean off, over its deviation.

    Args:
        x: array or tensor of RGB values in [0, 255], `(height, width, 3)` or a batch
            of such, or with the channels first. A float array is changed in place.
        data_format: `"channels_last"` or `"channels_first"`; by default Keras's.

    Returns:
        Floats of the same shape (float32, but for arrays and tensors of other floats,
        which keep their type), each channel `(x / 255 - mean) / deviation` with
        means 0.485, 0.456, 0.406 and deviations 0.229, 0.224, 0.225.

    Raises:
        ValueError: an unknown `data_format`.

    Example:

    >>> preprocess_input(np.full((1, 2, 2, 3), 255.0))[0, 0, 0].round(2).tolist()
    [2.25, 2.43, 2.64]

    Reference: `MEAN_RGB` and `STDDEV_RGB` in the authors' dataset.py.
    """
    return imagenet_utils.preprocess_input(x, data_format=data_format, mode="torch")


def decode_predictions(preds, top=5):
    """The names of the most probable ImageNet classes.

    The names come from Keras's own file, which it downloads on first use.

    Args:
        preds: float array `(batch, 1000)` of class probabilities or logits.
        top: how many classes to return.

    Returns:
        For each picture a list of `top` tuples (WordNet id, name, score), best first.

    Raises:
        ValueError: `preds` is not of shape `(batch, 1000)`.

    Example:

    >>> decode_predictions(model.predict(images), top=1)  # doctest: +SKIP
    [[('n02123045', 'tabby', 0.83)]]
    """
    return imagenet_utils.decode_predictions(preds, top=top)
