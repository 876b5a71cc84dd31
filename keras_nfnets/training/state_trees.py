"""State of a model by names of variables, as in Orbax checkpoints."""

import warnings

_SAME_NAMES = (
    "Values are found by the names of variables. Create the same model first thing in a "
    "new process, so that names that Keras chooses, such as `dense_1`, are those of the "
    "checkpoint, and freeze the same layers."
)


def check(state_tree, model):
    """Check that Keras will find the state of a model, as it ignores other names.

    Args:
        state_tree: dict. See `keras.Model.get_state_tree`.
        model: a compiled `keras.Model`.

    Raises:
        ValueError: weights are missing. If the optimizer has another name, there is a
            warning only: it may be another optimizer.
    """
    groups = {
        "trainable_variables": model.trainable_weights,
        "non_trainable_variables": model.non_trainable_weights,
    }
    missing = [
        path
        for group, variables in groups.items()
        for path in _missing(variables, state_tree.get(group, {}))
    ]
    if missing:
        raise ValueError(
            f"The weights were not loaded: the checkpoint lacks some. {_SAME_NAMES} "
            f"Received: a checkpoint without {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}"
        )
    variables = model.optimizer.variables
    of_optimizer = state_tree.get("optimizer_variables")
    if of_optimizer and len(_missing(variables, of_optimizer)) == len(variables):
        warnings.warn(
            f"The state of the optimizer was not loaded. {_SAME_NAMES} Received: a "
            f"checkpoint of the optimizer {', '.join(of_optimizer)} for "
            f"{model.optimizer.name}",
            stacklevel=2,
        )


def _missing(variables, tree):
    """List the paths of variables that are not in a nested dict by parts of paths."""
    return [v.path for v in variables if not _has(tree, v.path.split("/"))]


def _has(tree, names):
    for name in names:
        if name not in tree:
            return False
        tree = tree[name]
    return True
