"""`keras-nfnets train`."""

import dataclasses
import importlib.util
import os
import shlex
import sys

from keras_nfnets import runs, training
from keras_nfnets.cli.command import Command, Failure, UsageError, find_network
from keras_nfnets.runs import folder
from keras_nfnets.runs.recipes import PRECISIONS


def run(flags, arguments):
    if arguments:
        raise UsageError(
            "'train' takes flags only, as --epochs=20. "
            f"Received: {shlex.join(arguments)}"
        )
    if flags.tensorboard and not importlib.util.find_spec("tensorboard"):
        raise UsageError(
            "--tensorboard needs TensorBoard: pip install keras_nfnets[tensorboard]"
        )
    recipe = _recipe(flags)
    if flags.dry_run:
        return _dry_run(recipe)
    progress = _Progress()
    try:
        runs.train(
            recipe,
            flags.output_dir,
            strategy=flags.strategy,
            resume=flags.resume,
            overwrite=flags.overwrite,
            tensorboard=flags.tensorboard,
            callbacks=[progress],
        )
    except (ValueError, OSError) as error:
        if progress.began:
            raise  # the flags were right
        raise UsageError(str(error)) from error
    except runs.LostWorkerError:
        return _start_again()
    except runs.RunError as error:
        raise Failure(str(error)) from error
    except KeyboardInterrupt:
        if progress.ended:
            return 130  # the results are written
        raise
    except FloatingPointError:
        return 1  # explained by the progress
    return 0


def _dry_run(recipe):
    try:
        rows = runs.plan(recipe)
        width = max(map(len, rows))
        for name, value in rows.items():
            print(f"{name.ljust(width)}  {value}")
        print(f"\n{runs.try_steps(recipe)}\nThis run can be started.")
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    return 0


class _Progress(runs.Progress):
    """Console output of a run, which ends with the next command to try."""

    began = ended = False

    def on_run_begin(self, run):
        self.began = True
        super().on_run_begin(run)

    def on_run_end(self, run, stopped):
        self.ended = True
        super().on_run_end(run, stopped)
        if stopped and not isinstance(stopped, FloatingPointError):
            return  # the next step is printed above
        if run.recipe.report:
            model = shlex.quote(str(run.folder))
            print(f"Next, use it:  keras-nfnets predict {model} IMAGE...")
        elif run.recipe.clip_factor:
            print("Next, see what clipping does:  keras-nfnets train --noagc")
        else:
            print("Next, the same with clipping:  keras-nfnets train")


def _start_again():
    """Replace this process by one that resumes, after another worker was lost."""
    print(
        "Another worker was lost. This one waits for it to be started again with "
        "--resume, and continues from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    os.execv(sys.executable, [*sys.orig_argv, "--resume"])


def _recipe(flags):
    """Return the recipe that the flags ask for."""
    values = {
        name: getattr(flags, name)
        for name in (
            *("data", "weights", "image_size", "batch_size", "epochs"),
            *("learning_rate", "clip_factor", "ema_decay", "precision", "seed"),
        )
        if getattr(flags, name) is not None
    }
    if flags.image_size:
        values["test_image_size"] = None
    if flags.agc is False:
        values["clip_factor"] = None
    if flags.model:
        values["model"] = find_network(flags.model).name
    try:
        if flags.recipe:
            recipe = runs.find_recipe(flags.recipe)
        else:
            recipe = runs.recipes.for_data(flags.data or "digits")
        return dataclasses.replace(recipe, **values).changed(flags.set)
    except ValueError as error:
        raise UsageError(str(error)) from error


COMMAND = Command(
    "train",
    "train [FLAGS]",
    f"""\
Trains a network on labeled images: SGD with Nesterov momentum, adaptive gradient
clipping (AGC), a learning rate with a linear warm-up and a cosine decay, label
smoothing. Without flags it trains on scikit-learn's handwritten digits, in half a
minute.

With --data=FOLDER, a folder with one subfolder of images per class, it trains on your
images: a fifth of them is the validation set, training stops when the validation
accuracy no longer improves, the best model is kept, and {folder.REPORT} shows the
results.

--recipe names a complete run, such as those of the papers; --set changes any of its
settings, and the other flags change some of them. --dry-run prints the plan of a run
and trains two steps on noise. The recipes are
  {
        '''
  '''.join(runs.RECIPES)
    }

A run writes {folder.MODEL} (with {folder.METADATA}), {folder.HISTORY},
{folder.CURVES} and {folder.PREDICTIONS} into one folder. Ctrl-C ends training
early and writes the results so far. A run that was stopped or killed continues, with
--resume and the same flags, after its last completed epoch, and ends with the same
results.

--strategy chooses the devices. On several machines, set the environment variable
TF_CONFIG, which lists them, and start the same command on all of them with the same
--output_dir; the first one writes. If one is lost, the others notice within a minute
and wait ten minutes for it to be started again with --resume.

  keras-nfnets train
  keras-nfnets train --data=holiday/ --model=NFNetL0 --weights=imagenet
  keras-nfnets train --dataset=cifar10 --batch_size=512 --strategy=mirrored
  keras-nfnets train --recipe=nfnet_f0_imagenet --set=epochs=90 --dry-run
""",
    run,
    other_names={"dataset": "data"},
)
_flag = COMMAND.define
_flag(
    "string",
    "recipe",
    None,
    "Name of a complete run; by default 'digits', or 'finetune' for folders.",
)
_flag(
    "multi_string",
    "set",
    [],
    "key=value: a setting of the recipe",
)
_flag("boolean", "dry_run", False, "Print the plan and train two steps on noise.")
_flag(
    "string",
    "data",
    None,
    "Folder with one subfolder of images per class, 'digits' (scikit-learn's, bundled) "
    "or a classification data set of TensorFlow Datasets, such as mnist or cifar10, "
    "which is downloaded on first use.",
)
_flag("string", "model", None, "Network of 'keras-nfnets list', or its name in timm.")
_flag(
    "string",
    "weights",
    None,
    "Initial weights: imagenet, a checkpoint of 'keras-nfnets list --weights' or a "
    "weight file.",
)
_flag(
    "integer",
    "image_size",
    None,
    "Image size in pixels; by default the training size of the network.",
    lower_bound=1,
)
_flag(
    "integer",
    "batch_size",
    None,
    "Images per step, on all devices together.",
    lower_bound=1,
)
_flag("integer", "epochs", None, "Passes over the training images.", lower_bound=1)
_flag(
    "float",
    "learning_rate",
    None,
    "Peak learning rate for batches of 256 images; it scales with --batch_size.",
    lower_bound=0.0,
)
_flag("boolean", "agc", None, "Whether to clip gradients adaptively.")
_flag(
    "float",
    "clip_factor",
    None,
    "Maximum ratio of the gradient norm to the weight norm of each unit; the paper uses "
    "0.01 to 0.16, smaller for larger batches.",
    lower_bound=1e-9,
)
_flag(
    "float",
    "ema_decay",
    None,
    "Decay of a moving average of the weights, such as 0.99 (the paper's 0.99999 is for "
    f"long runs). The averaged weights are evaluated too and written to {folder.AVERAGED}.",
    lower_bound=1e-9,
    upper_bound=1 - 1e-9,
)
_flag(
    "enum",
    "precision",
    None,
    "Keras dtype policy; mixed_float16 includes loss scaling.",
    enum_values=PRECISIONS,
)
_flag(
    "enum",
    "strategy",
    "auto",
    "auto (all available devices), none (one device), mirrored (all GPUs of this "
    "machine), multi_worker (the machines in TF_CONFIG) or tpu (the one in TPU_NAME).",
    enum_values=training.STRATEGIES,
)
_flag(
    "integer",
    "seed",
    None,
    "Seed of initialization, data order and regularization.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
_flag(
    "string",
    "output_dir",
    None,
    "Folder of the results; by default a new one under runs/.",
)
_flag("boolean", "overwrite", False, "Replace the run in --output_dir.")
_flag("boolean", "resume", False, "Continue a run that was stopped or killed.")
_flag(
    "boolean",
    "tensorboard",
    False,
    f"Also write logs for TensorBoard, into {folder.TENSORBOARD} in the run's folder.",
)
