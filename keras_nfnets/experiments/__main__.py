"""Writing of claims.json, from which the command lists the experiments."""

import json

from keras_nfnets import tables
from keras_nfnets.experiments import EXPERIMENTS

if __name__ == "__main__":
    claims = {name: experiment.claim for name, experiment in EXPERIMENTS.items()}
    text = json.dumps(claims, indent=1, ensure_ascii=False)
    tables.CLAIMS.write_text(text + "\n", "utf-8")
