"""Training runs: from a recipe to a trained model in a folder, and its use.

`train` writes a model, its history and a report; `load_classifier`, `predict` and
`evaluate` use what it has written, or published weights.
"""

from keras_nfnets.runs.classifier import (
    Classifier,
    ClassScore,
    Prediction,
    load_classifier,
    predict,
)
from keras_nfnets.runs.dry_run import plan, try_steps
from keras_nfnets.runs.errors import LostWorkerError, RunError
from keras_nfnets.runs.evaluation import Evaluation, Results, evaluate
from keras_nfnets.runs.inference_time import InferenceTimes, inference_times
from keras_nfnets.runs.preview import preview
from keras_nfnets.runs.progress import Progress, RunCallback
from keras_nfnets.runs.training_run import Run, report, train
from keras_nfnets.settings import RECIPES, Recipe
from keras_nfnets.settings import find as find_recipe

__all__ = [
    "RECIPES",
    "ClassScore",
    "Classifier",
    "Evaluation",
    "InferenceTimes",
    "LostWorkerError",
    "Prediction",
    "Progress",
    "Recipe",
    "Results",
    "Run",
    "RunCallback",
    "RunError",
    "evaluate",
    "find_recipe",
    "inference_times",
    "load_classifier",
    "plan",
    "predict",
    "preview",
    "report",
    "train",
    "try_steps",
]
