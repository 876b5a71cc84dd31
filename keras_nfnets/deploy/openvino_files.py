"""ONNX files as files of OpenVINO."""

import os

import openvino

from keras_nfnets.deploy.onnx_files import compare


def write_openvino(model, onnx_file, file):
    """Convert an ONNX file, remove it, and compare the result in OpenVINO.

    Args:
        model: `keras.Model`. The network.
        onnx_file: str. Path of the file that was written for it.
        file: str. Path of the `.xml` file; the weights go to the `.bin` file next to it.
    """
    network = openvino.Core().read_model(onnx_file)
    openvino.save_model(network, file, compress_to_fp16=False)
    del network  # it may have the file open
    os.remove(onnx_file)
    compare(model, file, _outputs)


def _outputs(file, trials):
    # Some CPUs would compute in bfloat16.
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.Core().compile_model(file, "CPU", options)
    outputs = [network(inputs) for inputs in trials]
    return [[found[port] for port in network.outputs] for found in outputs]
