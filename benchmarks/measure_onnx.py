"""Measurement of an ONNX file in ONNX Runtime or OpenVINO."""

import os

import numpy as np
from turns import peak_memory, serve, task

asked = task()
shape = asked["batch"], asked["size"], asked["size"], 3
x = np.random.default_rng(0).normal(size=shape).astype("float32")
if asked["runtime"] == "onnxruntime":
    import onnxruntime

    imported = peak_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    session = onnxruntime.InferenceSession(
        asked["file"], options, providers=["CPUExecutionProvider"]
    )
    [image] = session.get_inputs()

    def call():
        session.run(None, {image.name: x})
else:
    import openvino

    imported = peak_memory()
    model = openvino.Core().read_model(asked["file"])
    model.reshape(shape)
    # Else it may compute in bfloat16 where the CPU can.
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(model, "CPU", precision)

    def call():
        compiled(x)


serve(call, imported)
