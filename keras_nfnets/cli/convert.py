"""`keras-nfnets convert`."""

import pathlib

from keras_nfnets import files
from keras_nfnets.cli.command import (
    Command,
    Failure,
    UsageError,
    progress_bar,
    received,
)
from keras_nfnets.cli.quiet import import_keras
from keras_nfnets.printing import printable

_ENDINGS = (".weights.h5", ".keras")


def run(flags, arguments):
    if len(arguments) != 2:
        raise UsageError(
            f"'convert' takes a weight file and the file to write. {received(arguments)}"
        )
    source, out = arguments[0], pathlib.Path(arguments[1]).expanduser()
    ending = next((e for e in _ENDINGS if out.name.lower().endswith(e)), None)
    if ending is None:
        raise UsageError(
            f"OUT must end in {' or '.join(_ENDINGS)}. Received: {arguments[1]}"
        )
    if out.is_dir():
        raise UsageError(f"OUT must be a file. Received: the folder {out}")
    if out.exists() and not flags.overwrite:
        raise UsageError(
            f"{out} exists already. Choose another OUT, or add --overwrite to replace it."
        )
    if not out.parent.is_dir():
        raise UsageError(
            f"The folder of OUT does not exist. Create {out.parent}, or choose another "
            f"OUT. Received: {arguments[1]}"
        )
    import_keras()
    try:
        model, name = _read(source)
    except (ValueError, OSError) as error:
        raise Failure(str(error)) from error
    from keras_nfnets.runs.saved_model import save_weights

    print(f"{printable(source)}: {name}, {model.count_params():,} parameters")
    try:
        if ending == ".keras":
            with files.written(out) as partial:
                model.save(partial)
        else:
            save_weights(model, out)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise Failure(f"Cannot write {out}: {reason}") from error
    print(f"  {printable(out)}  ({out.stat().st_size / 2**20:.1f} MB)")
    return 0


def _read(source):
    """Return the model of a weight file, and a description of the model."""
    from keras_nfnets import pretrained
    from keras_nfnets.runs.saved_model import load_model

    if source.lower().endswith(".keras") and pretrained.is_weight_file(source):
        # A .keras file holds its architecture, which cannot always be told from weights.
        model = load_model(source)
        return model, f"the model '{printable(model.name)}'"
    checkpoint = pretrained.find_checkpoint(source)
    if checkpoint is not None and not pretrained.is_weight_file(source):
        source = checkpoint.fetch(source)
    found = pretrained.recognize(source)
    model = found.network.build(**found.options)
    pretrained.load(
        model,
        pretrained.Source(str(source), None),
        progress=lambda items: progress_bar(items, "converting", "weights"),
    )
    about = ", ".join(f"{name}={value}" for name, value in found.options.items())
    return model, f"{found.name} ({about})"


COMMAND = Command(
    "convert",
    "convert SOURCE OUT [--overwrite]",
    """\
Converts a weight file to a Keras format.

  keras-nfnets convert digits digits.keras
  keras-nfnets convert F0_haiku.npz f0.keras
  keras-nfnets convert model.safetensors l0.weights.h5

SOURCE is a .safetensors file with timm's parameter names, an .npz file of the
authors, a .weights.h5 or .keras file, or a checkpoint of 'keras-nfnets list
--weights', which is downloaded. The network is recognized from its weights.
OUT ends in .weights.h5 (only weights) or .keras (the complete model).
""",
    run,
)
COMMAND.define("boolean", "overwrite", False, "Replace OUT if it exists.")
