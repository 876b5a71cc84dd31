"""Normalizer-free networks and adaptive gradient clipping for Keras 3."""

import os
import pathlib
import sys

from keras_nfnets.version import __version__

_PROGRAMS = {"keras-nfnets", "keras-nfnets.exe"}


def _is_command():
    """Return whether this process is `keras-nfnets` or `python -m keras_nfnets`.

    Processes that the command starts through `multiprocessing` count too.
    """
    if "--multiprocessing-fork" in sys.orig_argv:  # `sys.argv` is that of the command
        path = pathlib.Path(sys.argv[0])
        return path.name in _PROGRAMS or path.parts[-2:] == (__name__, "__main__.py")
    # The program and its arguments, as in `sys.argv`, which does not name a module yet.
    program = sys.orig_argv[-len(sys.argv) :][:1]
    if sys.argv[:1] == ["-m"]:
        return program == ["keras_nfnets"]
    return {os.path.basename(p) for p in program} & _PROGRAMS


# Keras finds the classes of a saved model only if they are registered, which their import
# does: so `import keras_nfnets` imports all of them, and is not lazy. The exception is the
# process of the command, where nobody uses these names: importing Keras takes seconds, and
# help, lists and errors do without. The subcommands import what they need.
if not _is_command():
    from keras_nfnets import pretrained
    from keras_nfnets.deploy import export, fold, inference_function
    from keras_nfnets.layers import (
        DynamicErf,
        DynamicTanh,
        EfficientChannelAttention,
        NFBlock,
        ScaledActivation,
        SkipGain,
        SqueezeExcite,
        StochasticDepth,
        WSConv1D,
        WSConv2D,
        WSConv2DTranspose,
        WSConv3D,
        WSDense,
        WSDepthwiseConv2D,
        WSSeparableConv2D,
        activation_gain,
    )
    from keras_nfnets.models import (
        ECANFNetL0,
        ECANFNetL1,
        ECANFNetL2,
        ECANFNetL3,
        NFECAResNet26,
        NFECAResNet50,
        NFECAResNet101,
        NFNet,
        NFNetF0,
        NFNetF0Plus,
        NFNetF1,
        NFNetF1Plus,
        NFNetF2,
        NFNetF2Plus,
        NFNetF3,
        NFNetF3Plus,
        NFNetF4,
        NFNetF4Plus,
        NFNetF5,
        NFNetF5Plus,
        NFNetF6,
        NFNetF6Plus,
        NFNetF7,
        NFNetF7Plus,
        NFNetL0,
        NFNetTest,
        NFNetTiny,
        NFRegNet,
        NFRegNetB0,
        NFRegNetB1,
        NFRegNetB2,
        NFRegNetB3,
        NFRegNetB4,
        NFRegNetB5,
        NFRegNetB6,
        NFRegNetB7,
        NFRegNetB8,
        NFResNet,
        NFResNet26,
        NFResNet50,
        NFResNet101,
        NFResNet152,
        NFResNet200,
        NFResNet288,
        NFResNet600,
        NFSEResNet26,
        NFSEResNet50,
        NFSEResNet101,
        decode_predictions,
        feature_pyramid,
        freeze,
        intermediate_features,
        layerwise_optimizer,
        normalizer_free,
        plot_signal_propagation,
        preprocess_input,
        reset_classifier,
        signal_propagation,
    )
    from keras_nfnets.training import AGC, SGDAGC, AGCModel, adaptive_clip

__all__ = [
    "AGC",
    "SGDAGC",
    "AGCModel",
    "DynamicErf",
    "DynamicTanh",
    "ECANFNetL0",
    "ECANFNetL1",
    "ECANFNetL2",
    "ECANFNetL3",
    "EfficientChannelAttention",
    "NFBlock",
    "NFECAResNet26",
    "NFECAResNet50",
    "NFECAResNet101",
    "NFNet",
    "NFNetF0",
    "NFNetF0Plus",
    "NFNetF1",
    "NFNetF1Plus",
    "NFNetF2",
    "NFNetF2Plus",
    "NFNetF3",
    "NFNetF3Plus",
    "NFNetF4",
    "NFNetF4Plus",
    "NFNetF5",
    "NFNetF5Plus",
    "NFNetF6",
    "NFNetF6Plus",
    "NFNetF7",
    "NFNetF7Plus",
    "NFNetL0",
    "NFNetTest",
    "NFNetTiny",
    "NFRegNet",
    "NFRegNetB0",
    "NFRegNetB1",
    "NFRegNetB2",
    "NFRegNetB3",
    "NFRegNetB4",
    "NFRegNetB5",
    "NFRegNetB6",
    "NFRegNetB7",
    "NFRegNetB8",
    "NFResNet",
    "NFResNet26",
    "NFResNet50",
    "NFResNet101",
    "NFResNet152",
    "NFResNet200",
    "NFResNet288",
    "NFResNet600",
    "NFSEResNet26",
    "NFSEResNet50",
    "NFSEResNet101",
    "ScaledActivation",
    "SkipGain",
    "SqueezeExcite",
    "StochasticDepth",
    "WSConv1D",
    "WSConv2D",
    "WSConv2DTranspose",
    "WSConv3D",
    "WSDense",
    "WSDepthwiseConv2D",
    "WSSeparableConv2D",
    "__version__",
    "activation_gain",
    "adaptive_clip",
    "decode_predictions",
    "export",
    "feature_pyramid",
    "fold",
    "freeze",
    "inference_function",
    "intermediate_features",
    "layerwise_optimizer",
    "normalizer_free",
    "plot_signal_propagation",
    "preprocess_input",
    "pretrained",
    "reset_classifier",
    "signal_propagation",
]
