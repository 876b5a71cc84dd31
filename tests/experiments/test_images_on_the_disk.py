import numpy as np
import pytest
import shades  # noqa: F401 (registers the data set)

from keras_nfnets import experiments
from keras_nfnets.experiments import fitting, images


@pytest.fixture(autouse=True)
def _data(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))


def test_a_data_set_of_tfds_is_trained_and_tuned_on():
    experiment = experiments.find("batch_size")
    settings = experiments.settings_of(experiment, "small", "shades")
    settings |= {"epochs": 1, "depths": [1]}
    dataset = images.load(settings)
    train, test, steps = dataset.batches(8, 0, tuning=True)
    assert steps == 4  # from three quarters of the images
    assert sum(len(x) for x, _ in train) == 30
    assert sum(len(x) for x, _ in test) == 10
    x, labels = dataset.test_images(3)
    assert x.shape == (3, *dataset.input_shape) == (3, 28, 28, 1)
    np.testing.assert_array_equal(labels, x.mean(axis=(1, 2, 3)) > 0)
    _, row = fitting.train(
        settings, fitting.CLIPPED, batch_size=8, learning_rate=0.1, seed=0
    )
    assert 0 <= row["accuracy"] <= 1 and not row["diverged"]
    with pytest.raises(ValueError, match="no split 'nosuch'"):
        images.load({**settings, "test_split": "nosuch"})


@pytest.mark.slow
def test_calibration_images_are_read_from_disk():
    experiment = experiments.find("any_network_training")
    settings = experiments.settings_of(experiment, "small", "shades")
    settings |= {"epochs": 1, "batch_sizes": [8]}
    [cell] = [
        cell
        for cell in experiment.plan(settings, [])
        if cell["network"] == "VGG" and cell["version"] == "normalizer_free"
    ][:1]
    row = experiment.measure(settings, cell)
    assert 0 <= row["accuracy"] <= 1
