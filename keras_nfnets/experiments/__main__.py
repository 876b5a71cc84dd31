"""Writing of claims.json and of the page with all published results.

    python -m keras_nfnets.experiments experiments

The command line lists the experiments from claims.json. The argument is the folder with the
published results.
"""

import json
import pathlib
import sys

from keras_nfnets import tables
from keras_nfnets.experiments import EXPERIMENTS, PAGE, published, write_index


def main(folder):
    found = {name: published(folder / name) for name in EXPERIMENTS}
    claims = {
        name: {"claim": experiment.claim, **found[name]}
        for name, experiment in EXPERIMENTS.items()
    }
    text = json.dumps(claims, indent=1, ensure_ascii=False)
    tables.CLAIMS.write_text(text + "\n", "utf-8")
    write_index(
        [(experiment, found[name]) for name, experiment in EXPERIMENTS.items()],
        folder / PAGE,
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("python -m keras_nfnets.experiments FOLDER_WITH_PUBLISHED_RESULTS")
    main(pathlib.Path(sys.argv[1]))
