"""ImageNet conventions: input normalization and class names."""

from keras.applications import imagenet_utils


def preprocess_input(x, data_format=None):
    """Normalize images by the mean and standard deviation of ImageNet.

    Args:
        x: array or tensor. RGB values in [0, 255], `(height, width, 3)` or a batch of
            these, or channels first. A float array is modified in place.
        data_format: str. `"channels_last"` or `"channels_first"`; Keras's setting by
            default.

    Returns:
        An array or tensor of the same shape, each channel `(x / 255 - mean) / std` with
        means 0.485, 0.456, 0.406 and standard deviations 0.229, 0.224, 0.225. The dtype
        of floats is preserved; other dtypes become float32.

    Raises:
        ValueError: an unknown `data_format`.

    Example:

    >>> preprocess_input(np.full((1, 2, 2, 3), 255.0))[0, 0, 0].round(2).tolist()
    [2.25, 2.43, 2.64]

    Reference: `MEAN_RGB` and `STDDEV_RGB` in the authors' dataset.py.
    """
    return imagenet_utils.preprocess_input(x, data_format=data_format, mode="torch")


def decode_predictions(preds, top=5):
    """Return the names of the most probable ImageNet classes.

    The names come from a file that Keras downloads on first use.

    Args:
        preds: float array `(batch, 1000)`. Class probabilities or logits.
        top: int. Number of classes to return.

    Returns:
        A list that holds, for each image, a list of `top` tuples (WordNet id, name,
        score), highest score first.

    Raises:
        ValueError: `preds` is not of shape `(batch, 1000)`.

    Example:

    >>> decode_predictions(model.predict(images), top=1)  # doctest: +SKIP
    [[('n02123045', 'tabby', 0.83)]]
    """
    return imagenet_utils.decode_predictions(preds, top=top)
