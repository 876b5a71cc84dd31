"""The examples of docstrings and the code of the README, executed."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import keras
import numpy as np
import pytest

import keras_nfnets

README = pathlib.Path(__file__).parent.parent / "README.md"


def modules():
    for module in pkgutil.walk_packages(keras_nfnets.__path__, "keras_nfnets."):
        # The train steps need their backend, and running __main__ runs the command.
        if not re.search("__main__|train_step_", module.name):
            yield importlib.import_module(module.name)


@pytest.mark.parametrize("module", list(modules()), ids=lambda module: module.__name__)
def test_examples_of_docstrings(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"keras": keras, "np": np, "keras_nfnets": keras_nfnets}
    failures, _ = doctest.testmod(
        module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert failures == 0


def test_every_public_function_and_class_has_an_example():
    for name in keras_nfnets.__all__:
        thing = getattr(keras_nfnets, name)
        if callable(thing) and not re.fullmatch(
            r"(ECA)?NF\w+\d\w*|NFNetTiny|NFNetTest", name
        ):
            assert ">>> " in thing.__doc__, name
            assert "Example:" in thing.__doc__, name


def test_code_of_the_readme(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 4
    names = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)  # noqa: S102
    # What the code prints stands in a comment under it.
    [printed] = [line for line in blocks[0].splitlines() if line.startswith("# [")]
    assert printed.removeprefix("# ") in capsys.readouterr().out


def test_figures_of_the_readme_are_those_of_the_networks():
    from keras_nfnets.models.figures import count_flops, variants
    from keras_nfnets.pretrained import without_memory

    rows = re.findall(
        r"\| (NF\w+) \| ([\d.]+) M \| ([\d.]+) G \| (\d+) \| (\d+) \|",
        README.read_text(),
    )
    assert len(rows) >= 9
    for name, millions, billions, train_size, test_size in rows:
        variant = variants()[name]
        assert (variant.train_size, variant.test_size) == (
            int(train_size),
            int(test_size),
        )
        with without_memory():
            model = getattr(keras_nfnets, name)(
                input_shape=(variant.test_size,) * 2 + (3,)
            )
            assert f"{model.count_params() / 1e6:.1f}" == millions
            assert f"{count_flops(model) / 1e9:.1f}" == billions
