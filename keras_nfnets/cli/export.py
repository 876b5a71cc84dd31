"""`keras-nfnets export`."""

import pathlib

from keras_nfnets import tables
from keras_nfnets.cli.command import (
    Command,
    Failure,
    UsageError,
    progress_bar,
    received,
)
from keras_nfnets.cli.quiet import import_keras
from keras_nfnets.printing import printable

# Enough to calibrate the ranges of a network's activations.
_EXAMPLES = 200
# Class names that are printed.
_NAMES = 10


def run(flags, arguments):
    if len(arguments) != 2:
        raise UsageError(
            "'export' takes a network and the file or folder to write. "
            f"{received(arguments)}"
        )
    name, out = arguments
    if flags.quantize != "int8" and flags.examples is not None:
        raise UsageError(
            "--examples has no effect without --quantize=int8, which measures ranges on "
            f"these images. Received: --examples={flags.examples}"
        )
    import_keras()
    from keras_nfnets import runs

    try:
        classifier = runs.load_classifier(name)
        examples = None
        if flags.examples is not None:
            examples = _examples(flags.examples, classifier.preparation)
        classifier.export(
            out,
            flags.format,
            quantize=flags.quantize,
            examples=examples,
            batch_size=flags.batch_size,
            input_name=flags.input_name,
            output_name=flags.output_name,
            opset=flags.opset,
            preprocessing=flags.preprocessing,
            overwrite=flags.overwrite,
        )
    except (ValueError, OSError, ImportError) as error:
        raise Failure(str(error).replace("`path`", "OUT")) from error
    path = pathlib.Path(out).expanduser()
    files = [path, *path.rglob("*")]
    if path.suffix.lower() == ".xml":
        files.append(path.with_suffix(".bin"))  # OpenVINO's weights
    size = sum(file.stat().st_size for file in files if file.is_file())
    print(f"{printable(path)}  ({size / 2**20:.1f} MB)")
    _describe(classifier, flags.preprocessing)
    return 0


def _describe(classifier, has_preprocessing):
    if has_preprocessing:
        print(
            "The input is a batch of uint8 images (batch, height, width, 3) of any size."
        )
    else:
        print(f"Images must be preprocessed as in training: {classifier.preparation}")
    names = classifier.class_names
    if names is not None:
        shown = ", ".join(names[:_NAMES]) + (", ..." if len(names) > _NAMES else "")
        print(f"{len(names)} classes: {printable(shown)}")
    if "licence" in classifier.metadata:
        print(f"Licence of the weights: {printable(classifier.metadata['licence'])}")


def _examples(folder, preparation):
    import numpy as np

    from keras_nfnets import data

    files = data.find_pictures([folder])
    # Spread over all files, so that they are not all of the first class.
    count = min(len(files), _EXAMPLES)
    files = [files[i * len(files) // count] for i in range(count)]
    return np.stack(
        [
            data.prepare(data.read_picture(file), **preparation)
            for file in progress_bar(files, "reading", "images")
        ]
    )


COMMAND = Command(
    "export",
    "export NETWORK OUT [FLAGS]",
    """\
Folds a network and writes it for another runtime.

  keras-nfnets export digits digits.onnx
  keras-nfnets export model.keras small.tflite --quantize=dynamic
  keras-nfnets export model.keras int8.onnx --quantize=int8 --examples=images/

NETWORK is as in 'keras-nfnets predict'. OUT ends in .onnx (ONNX Runtime and
others), .tflite (LiteRT, formerly TensorFlow Lite), .xml (OpenVINO, with the
weights in a .bin file), or OUT is the folder of a TensorFlow SavedModel.
""",
    run,
)
_flag = COMMAND.define
_flag(
    "enum",
    "format",
    None,
    f"Format: {', '.join(tables.FORMATS)}. By default the extension of OUT decides.",
    enum_values=tables.FORMATS,
)
_flag(
    "enum",
    "quantize",
    None,
    "For .onnx and .tflite: 'int8' (8-bit kernels and activations); for .tflite also "
    "'dynamic' (8-bit kernels) or 'float16' (16-bit kernels).",
    enum_values=tables.QUANTIZATIONS,
)
_flag(
    "string",
    "examples",
    None,
    f"Folder of images on which --quantize=int8 measures the ranges of the activations; up "
    f"to {_EXAMPLES} images are used. By default they are measured on normal noise.",
)
_flag(
    "integer",
    "batch_size",
    None,
    "Fixed number of images per batch; by default that of the model, usually any.",
    lower_bound=1,
)
_flag(
    "string",
    "input_name",
    None,
    "For .onnx and .xml: name of the input instead of 'image'.",
)
_flag(
    "string",
    "output_name",
    None,
    "For .onnx and .xml: name of the output instead of 'predictions'.",
)
_flag("integer", "opset", None, "For .onnx and .xml: version of the ONNX operator set.")
_flag(
    "boolean",
    "preprocessing",
    False,
    "Include the preprocessing: the file takes unprocessed images and returns "
    "probabilities. By default its metadata describe the preprocessing.",
)
_flag("boolean", "overwrite", False, "Replace OUT if it exists.")
