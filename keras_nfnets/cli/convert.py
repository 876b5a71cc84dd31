"""`keras-nfnets convert`."""

import os
import pathlib
import tempfile

from keras_nfnets import pretrained
from keras_nfnets.cli.command import Command, UsageError, progress_bar

_ENDINGS = (".weights.h5", ".keras")


def run(flags, arguments):
    if len(arguments) != 2:
        raise UsageError(
            "'convert' takes a weight file and the file to write. "
            f"Received: {' '.join(arguments) or 'none'}"
        )
    source, out = arguments[0], pathlib.Path(arguments[1]).expanduser()
    ending = next((e for e in _ENDINGS if out.name.lower().endswith(e)), None)
    if ending is None:
        raise UsageError(
            f"OUT must end in {' or '.join(_ENDINGS)}. Received: {arguments[1]}"
        )
    if out.exists() and not flags.overwrite:
        raise UsageError(f"{out} is there already; --overwrite replaces it.")
    if not out.parent.is_dir():
        raise UsageError(f"There is no folder {out.parent} to write into.")
    try:
        found = pretrained.recognize(source)
    except ValueError as error:
        raise UsageError(str(error)) from error
    model = found.network.build(**found.options)
    about = ", ".join(f"{name}={value}" for name, value in found.options.items())
    print(f"{source}: {found.name} ({about}), {model.count_params():,} parameters")
    pretrained.load(
        model,
        pretrained.Source(source, None),
        progress=lambda items: progress_bar(items, "converting", "weights"),
    )
    try:
        # Written beside, and moved when it is whole.
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=out.parent) as partial:
            whole = pathlib.Path(partial) / f"model{ending}"
            (model.save if ending == ".keras" else model.save_weights)(whole)
            os.replace(whole, out)
    except OSError as error:
        raise UsageError(f"Cannot write {out}: {error}") from error
    constructor = (
        f"keras_nfnets.pretrained.create({found.name!r}, {about}, weights=...)"
    )
    how = "keras.saving.load_model" if ending == ".keras" else constructor
    print(f"  {out}  ({out.stat().st_size / 2**20:.1f} MB, for {how})")
    return 0


COMMAND = Command(
    "convert",
    "convert SOURCE OUT [--overwrite]",
    """\
Converts a weight file to Keras's formats. SOURCE is a .safetensors with timm's names,
one of the authors' .npz, or a .weights.h5 or .keras file; the network is recognized by
its weights. OUT ends in .weights.h5 (weights alone) or .keras (the whole model).

  keras-nfnets convert F0_haiku.npz f0.keras
  keras-nfnets convert model.safetensors l0.weights.h5
""",
    run,
)
COMMAND.define("boolean", "overwrite", False, "Replace OUT if it is there.")
