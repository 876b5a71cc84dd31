"""`keras-nfnets list`."""

from keras_nfnets import pretrained
from keras_nfnets.cli.command import Command, UsageError
from keras_nfnets.models.costs import costs, variants


def run(flags, arguments):
    if arguments:
        raise UsageError(f"'list' takes no arguments. Received: {' '.join(arguments)}")
    if flags.weights:
        return _list_weights()
    print(f"{'network':<14}{'parameters':>14}{'FLOPs':>10}{'train':>8}{'test':>6}")
    known = costs()
    for name, variant in variants().items():
        parameters, flops = known[name]
        print(
            f"{name:<14}{parameters:>14,}{flops / 1e9:>9.2f}G"
            f"{variant.train_size:>8}{variant.test_size:>6}"
        )
    return 0


def _list_weights():
    print(f"{'checkpoint':<24}{'network':<14}{'size':>5}{'top-1':>8}  licence, source")
    for c in pretrained.list_checkpoints():
        source = f"huggingface.co/{c.repo}" if c.repo else "bundled"
        top1 = f"{c.top1:.2f} %" if c.top1 else ""
        print(f"{c.name:<24}{c.network:<14}{c.size:>5}{top1:>8}  {c.licence}, {source}")
        if c.authors_url:
            print(f"{'  or ' + c.authors_file:<51}  {c.authors_url.partition('//')[2]}")
    return 0


COMMAND = Command(
    "list",
    "list [--weights]",
    """\
Lists the networks; each is a function of the same name in keras_nfnets.

parameters   with the 1000 classes of ImageNet
FLOPs        multiply-adds for one image of the test size, in billions
train, test  image sizes of the published training and evaluation; others work too

With --weights it lists the published checkpoints, by the names that weights=,
'keras-nfnets predict' and pretrained.create accept, with their networks, image sizes
and published accuracies on ImageNet (for digits: on its test set).
""",
    run,
)
COMMAND.define("boolean", "weights", False, "List the published checkpoints.")
