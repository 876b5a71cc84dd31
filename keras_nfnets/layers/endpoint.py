"""Named feature map of a network."""

import keras


@keras.saving.register_keras_serializable("keras_nfnets")
class Endpoint(keras.layers.Identity):
    """Identity layer that names a feature map and records its stride.

    Copies and saved files of a network have the record, as it is part of a layer.

    Args:
        stride: int. Size of the images divided by that of the feature map.
        half: str or None. Name of the layer, if any, whose output is the last feature map
            of half the stride and has no endpoint.
        **kwargs: see `keras.layers.Layer`.

    Input and output: tensor of any shape.
    """

    def __init__(self, stride, half=None, **kwargs):
        super().__init__(**kwargs)
        self.stride, self.half = stride, half

    def get_config(self):
        return {**super().get_config(), "stride": self.stride, "half": self.half}
