"""`keras-nfnets list`."""

from keras_nfnets import checks, settings, tables
from keras_nfnets.cli.command import Command, UsageError


def run(flags, arguments):
    if len(arguments) > 1:
        raise UsageError(
            f"'list' takes one part of a name. Received: {' '.join(arguments)}"
        )
    part = arguments[0] if arguments else ""
    if flags.weights:
        _list_weights(part)
    elif flags.recipes:
        _list_recipes(part)
    else:
        _list_networks(part)
    return 0


def _chosen(part, rows):
    """Return the rows that have a name which contains this part.

    `rows` is a list of (row, names).
    """
    chosen = [
        row for row, names in rows if any(part.lower() in n.lower() for n in names)
    ]
    if not chosen:
        suggestion = checks.perhaps(part, [n for _, names in rows for n in names if n])
        raise UsageError(
            f"No name contains {part!r}{suggestion or '.'} Received: {part!r}"
        )
    return chosen


def _list_networks(part):
    known = tables.networks().values()
    rows = _chosen(
        part, [(network, (network.name, *network.timm)) for network in known]
    )
    print(f"{'network':<14}{'parameters':>14}{'FLOPs':>10}{'train':>8}{'test':>6}")
    for network in rows:
        print(
            f"{network.name:<14}{network.parameters:>14,}{network.flops / 1e9:>9.2f}G"
            f"{network.train_size:>8}{network.test_size:>6}"
        )


def _list_weights(part):
    ours = {timm: n.name for n in tables.networks().values() for timm in n.timm}
    rows = [
        (row, (row["name"], row["network"], ours.get(row["network"], "")))
        for row in tables.checkpoints()
    ]
    chosen = _chosen(part, rows)
    print(f"{'checkpoint':<24}{'network':<14}{'size':>5}{'top-1':>8}  licence, source")
    for row in chosen:
        source = f"huggingface.co/{row['repo']}" if row.get("repo") else "bundled"
        top1 = f"{row['top1']:.2f} %" if row["top1"] else ""
        print(
            f"{row['name']:<24}{row['network']:<14}{row['size']:>5}{top1:>8}  "
            f"{row['licence']}, {source}"
        )
        if row.get("authors_url"):
            address = row["authors_url"].partition("//")[2]
            file = address.rpartition("/")[2]
            print(f"{'  or ' + file:<51}  {address}")


def _list_recipes(part):
    for name in _chosen(part, [(name, [name]) for name in settings.RECIPES]):
        print(f"{name:<29}{settings.RECIPES[name].about}")


COMMAND = Command(
    "list",
    "list [PART] [--weights | --recipes]",
    """\
Lists the networks; each is a function of the same name in keras_nfnets.

  keras-nfnets list
  keras-nfnets list regnet
  keras-nfnets list --weights
  keras-nfnets list nfnet_f0 --recipes

PART selects the rows with a name that contains it. The columns are

  parameters   with the 1000 classes of ImageNet
  FLOPs        multiply-adds for one image of the test size, in billions
  train, test  image sizes of the published training and evaluation; others
               work too

With --weights it lists the published checkpoints by name, with their networks,
image sizes and published accuracies on ImageNet (for digits: on its test set).
The names are accepted by weights=, 'keras-nfnets predict' and
pretrained.create.
""",
    run,
)
COMMAND.define(
    "boolean",
    "weights",
    False,
    "List the published checkpoints.",
    excludes=["recipes"],
)
COMMAND.define("boolean", "recipes", False, "List the recipes of 'keras-nfnets train'.")
