"""`keras-nfnets train`."""

import dataclasses
import functools
import importlib.util
import shlex

from keras_nfnets import settings, tables
from keras_nfnets.cli.command import (
    Command,
    UsageError,
    check_network,
    is_given,
    tell_data,
)
from keras_nfnets.cli.quiet import import_keras

# Flags that are settings of a recipe, by the same name.
_SETTINGS = (
    *("data", "weights", "image_size", "batch_size", "epochs", "learning_rate"),
    *("clip_factor", "ema_decay", "precision", "seed"),
)


def run(flags, arguments):
    if arguments:
        raise UsageError(_suggest_flag(arguments))
    if flags.tensorboard and not importlib.util.find_spec("tensorboard"):
        raise UsageError(
            "--tensorboard needs TensorBoard: pip install keras_nfnets[tensorboard]"
        )
    try:
        recipe = _recipe(flags)
        settings.check_folder(flags.output_dir, flags.resume, flags.overwrite)
    except ValueError as error:
        raise UsageError(str(error)) from error
    tell_data(recipe.data)
    import_keras()
    from keras_nfnets.cli import run_training

    if flags.dry_run:
        return run_training.dry_run(recipe)
    return run_training.run(recipe, flags, COMMAND.with_flags)


def _suggest_flag(arguments):
    """Return the error message for positional arguments, with the flag that is meant."""
    first, *_ = arguments
    if first.isdecimal():
        flag = "epochs"
    elif first in settings.RECIPES and first != "digits":
        flag = "recipe"
    elif first.lower() in map(str.lower, tables.network_names()):
        flag = "model"
    else:
        flag = "data"
    return (
        f"'train' takes flags only; did you mean {shlex.join([f'--{flag}={first}'])}? "
        f"Received: {shlex.join(arguments)}"
    )


def _recipe(flags):
    """Return the recipe that the flags ask for."""
    _check_contradictions(flags)
    values = {
        name: getattr(flags, name)
        for name in _SETTINGS
        if getattr(flags, name) is not None
    }
    if flags.image_size:
        values["test_image_size"] = None
    if flags.agc is False:
        values["clip_factor"] = None
    if flags.model:
        values["model"] = check_network(flags.model)
    if flags.recipe:
        recipe = settings.find(flags.recipe)
    else:
        recipe = settings.for_data(flags.data or "digits")
    recipe = dataclasses.replace(recipe, **values).changed(flags.set)
    check_network(recipe.model)
    if flags.agc and not recipe.clip_factor:
        raise UsageError(
            "--agc needs --clip_factor, because the recipe does not clip. Add --clip_factor: "
            "about 0.01 for large batches, up to 0.16 for small ones."
        )
    if "head_epochs" in _assigned(flags) and recipe.head_epochs and not recipe.weights:
        raise UsageError(
            "--set=head_epochs has no effect without --weights: the classifier is trained "
            f"alone on pretrained features. Received: --set=head_epochs={recipe.head_epochs}"
        )
    return recipe


def _assigned(flags):
    """Return the names of the settings that --set assigns."""
    return [assignment.partition("=")[0].strip() for assignment in flags.set]


def _check_contradictions(flags):
    """Raise a `UsageError` if a setting is given twice."""
    assigned = _assigned(flags)
    given = [name for name in (*_SETTINGS, "model") if is_given(flags, name)]
    for name in assigned:
        if assigned.count(name) > 1:
            raise UsageError(f"--set={name} is given twice. Give it once.")
        if name in given:
            raise UsageError(
                f"--set={name} and --{name} contradict each other. Give one of them."
            )
    if flags.agc is False and "clip_factor" in assigned + given:
        raise UsageError(
            "--noagc and a clip factor contradict each other. Give one of them."
        )


COMMAND = Command(
    "train",
    "train [FLAGS]",
    """\
Trains a network on labeled images, with adaptive gradient clipping (AGC).

  keras-nfnets train
  keras-nfnets train --data=holiday/ --model=NFNetL0 --weights=imagenet
  keras-nfnets train --dataset=cifar10 --batch_size=512 --strategy=mirrored
  keras-nfnets train --recipe=nfnet_f0_imagenet --set=epochs=90 --dry-run

Without flags it trains a small network on scikit-learn's handwritten digits, in
half a minute. With --data=FOLDER, a folder with one subfolder of images per
class, it trains on your images. If the folder has no splits, about a fifth of
all images, chosen by their file names, is the validation set. Training stops
when the validation accuracy no longer improves, and a report shows the results.

A run writes the model, its history and plots into one folder. Ctrl-C ends
training early and writes the results so far. With --resume and the same flags,
the run continues after its last completed epoch.
""",
    run,
    other_names={"dataset": "data"},
)
_flag = functools.partial(COMMAND.define, group="data")
_flag(
    "string",
    "data",
    None,
    "Folder with one subfolder of images per class, 'digits' (bundled; ./digits is a "
    "folder) or a classification data set of TensorFlow Datasets, such as mnist or "
    "cifar10, which is downloaded on first use.",
)
_flag(
    "integer",
    "image_size",
    None,
    "Image size in pixels; by default the training size of the network.",
    lower_bound=1,
)
_flag = functools.partial(COMMAND.define, group="network")
_flag("string", "model", None, "Network of 'keras-nfnets list', or its name in timm.")
_flag(
    "string",
    "weights",
    None,
    "Initial weights: imagenet, a checkpoint of 'keras-nfnets list --weights' or a "
    "weight file.",
)
_flag = functools.partial(COMMAND.define, group="training")
_flag(
    "string",
    "recipe",
    None,
    "Recipe with the settings of a complete run, such as those of the papers; see "
    "'keras-nfnets list --recipes'. By default 'digits', or 'finetune' for folders.",
)
_flag(
    "multi_string",
    "set",
    [],
    "key=value: change any other setting of the recipe. May be repeated.",
)
_flag("integer", "epochs", None, "Passes over the training images.", lower_bound=1)
_flag(
    "integer",
    "batch_size",
    None,
    "Images per step, on all devices together.",
    lower_bound=1,
)
_flag(
    "float",
    "learning_rate",
    None,
    "Peak learning rate for batches of 256 images; it scales with --batch_size.",
    lower_bound=0.0,
)
_flag(
    "float",
    "clip_factor",
    None,
    "Maximum ratio of the gradient norm to the weight norm of each unit; the paper uses "
    "0.01 to 0.16, smaller for larger batches.",
    wanted="more than 0, or --noagc for no clipping",
    lower_bound=1e-9,
)
_flag(
    "boolean", "agc", None, "Adaptive gradient clipping; by default as in the recipe."
)
_flag(
    "float",
    "ema_decay",
    None,
    "Decay of an exponential moving average of the weights, such as 0.99 (0.99999 in the "
    "paper is for long runs). The averaged weights are evaluated and written too.",
    wanted="between 0 and 1",
    lower_bound=1e-9,
    upper_bound=1 - 1e-9,
)
_flag(
    "integer",
    "seed",
    None,
    "Random seed for initialization, data order and regularization.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
_flag = functools.partial(COMMAND.define, group="output")
_flag(
    "string",
    "output_dir",
    None,
    "Folder of the results; by default a new one under runs/.",
)
_flag("boolean", "overwrite", False, "Replace the run in --output_dir.")
_flag("boolean", "resume", False, "Continue a run that was stopped or killed.")
_flag("boolean", "tensorboard", False, "Also write logs for TensorBoard.")
_flag(
    "boolean",
    "dry_run",
    False,
    "Print the plan and train two steps on noise, without writing anything.",
    excludes=["output_dir", "overwrite", "resume", "tensorboard", "strategy"],
)
_flag = functools.partial(COMMAND.define, group="devices")
_flag(
    "enum",
    "precision",
    None,
    "Keras dtype policy; mixed_float16 includes loss scaling.",
    enum_values=tables.PRECISIONS,
)
_flag(
    "enum",
    "strategy",
    "auto",
    "auto (all available devices), none (one device), mirrored (all GPUs of this "
    "machine), multi_worker (the machines in TF_CONFIG, or the tasks of Slurm's srun) or "
    "tpu (the TPU in TPU_NAME). On several machines, start the same command with the same "
    "--output_dir on each; the first machine writes the results. If a machine is lost, "
    "the others wait ten minutes for it to be started again with --resume.",
    enum_values=tables.STRATEGIES,
)
