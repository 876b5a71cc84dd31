"""ONNX files as files of OpenVINO."""

import os
import pathlib

import onnx
import openvino

from keras_nfnets.deploy.onnx_files import compare


def convert(model, onnx_file):
    """Convert an ONNX file with its metadata, remove it, and compare the result.

    Args:
        model: `keras.Model`. The network.
        onnx_file: str. Path of the file that was written for it.

    Returns:
        str. Path of the `.xml` file; the weights are in the `.bin` file next to it.
    """
    network = openvino.Core().read_model(onnx_file)
    for entry in onnx.load(onnx_file).metadata_props:
        network.set_rt_info(entry.value, ["model_info", entry.key])
    file = os.fspath(pathlib.Path(onnx_file).with_suffix(".xml"))
    openvino.save_model(network, file, compress_to_fp16=False)
    del network  # it may have the file open
    os.remove(onnx_file)
    compare(model, file, _outputs)
    return file


def _outputs(file, trials):
    # Some CPUs would compute in bfloat16.
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.Core().compile_model(file, "CPU", options)
    outputs = [network(inputs) for inputs in trials]
    return [[found[port] for port in network.outputs] for found in outputs]
