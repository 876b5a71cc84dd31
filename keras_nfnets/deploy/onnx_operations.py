"""TensorFlow operations that tf2onnx lacks, expressed as ONNX operations."""

import numpy as np
from tf2onnx.handler import tf_op


@tf_op("Erfc")  # in the exact GELU
class _Erfc:
    @classmethod
    def version_9(cls, context, node, **kwargs):
        _replace(context, node, "Erf", lambda one, y: [one, y])


@tf_op("Expm1")  # in CELU
class _Expm1:
    @classmethod
    def version_1(cls, context, node, **kwargs):
        _replace(context, node, "Exp", lambda one, y: [y, one])


def _replace(context, node, operation, difference):
    """Replace a node by the difference between 1 and an operation's result.

    `difference` returns the two in the order of the subtraction.
    """
    dtype, shape = (
        get(node.output[0]) for get in (context.get_dtype, context.get_shape)
    )
    one = context.make_const(f"{node.name}_one", np.array(1, "float32")).output[0]
    result = context.make_node(operation, node.input).output[0]
    context.remove_node(node.name)
    context.make_node(
        "Sub",
        difference(one, result),
        outputs=node.output,
        name=node.name,
        shapes=[shape],
        dtypes=[dtype],
    )
