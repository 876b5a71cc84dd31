"""Training, dry runs and their console output, for `keras-nfnets train`."""

import os
import shlex
import sys

from keras_nfnets import runs
from keras_nfnets.cli.command import Failure, UsageError
from keras_nfnets.printing import printable


def run(recipe, flags, with_flags):
    """Train, print the progress and return the exit status.

    `with_flags` writes the names of arguments in a message as flags.
    """
    progress = _Progress(with_flags)
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


def dry_run(recipe):
    """Print the plan of a run, train two steps and return the exit status."""
    try:
        rows = runs.plan(recipe)
        width = max(map(len, rows))
        for name, value in rows.items():
            print(f"{name.ljust(width)}  {printable(value)}")
        print(f"\n{runs.try_steps(recipe)}\nThis run can be started.")
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    return 0


class _Progress(runs.Progress):
    """Console output of a run, which ends with the next command to try."""

    began = ended = False

    def __init__(self, with_flags):
        super().__init__()
        self._with_flags = with_flags

    def write(self, text, file=None):
        super().write(self._with_flags(text), file)

    def on_run_begin(self, run):
        self.began = True
        super().on_run_begin(run)

    def on_run_end(self, run, stopped):
        self.ended = True
        super().on_run_end(run, stopped)
        if stopped and not isinstance(stopped, FloatingPointError):
            return  # the next step is printed above
        if run.recipe.report:
            model = shlex.quote(_path(run.folder))
            print(f"Next, use it:  keras-nfnets predict {printable(model)} IMAGE...")
        elif run.recipe.clip_factor:
            print("Next, train without clipping:  keras-nfnets train --noagc")
        else:
            print("Next, train with clipping:  keras-nfnets train")


def _path(folder):
    """Return the path of a folder in a form that is no name of a published network."""
    return str(folder) if os.sep in str(folder) else os.path.join(os.curdir, folder)


def _start_again():
    """Replace this process by one that resumes, after another worker was lost."""
    print(
        "Another worker was lost. Start it again with --resume. This worker waits for it, "
        "and then continues from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    os.execv(sys.executable, [*sys.orig_argv, "--resume"])
