import re
import sys

import pytest
from one_block import networks_of_one_block

from keras_nfnets.cli.main import main

ROWS = ["not folded", "not folded, XLA", "folded", "folded, XLA"]
ROWS += ["inference_function"]


def test_measures_a_network_and_says_which_peer_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    arguments = ["NFNetTest", "--image_size=32", "--batch_size=2", "--rounds=2"]
    with networks_of_one_block():
        assert main(["benchmark", *arguments, "--peers"]) == 0
    out = capsys.readouterr().out
    for row in ROWS:
        [numbers] = re.findall(
            rf"^{row} +([\d.]+) +([\d.]+) +([\d.]+)$", out, re.MULTILINE
        )
        one, two, pictures = map(float, numbers)
        # The command prints one decimal place.
        best = max(1e3 / one, 2e3 / two)
        assert one > 0 and two > 0 and pictures == pytest.approx(best, rel=0.1)
    assert re.search("timm was not measured: .*timm", out)
    assert re.search(
        "kecam was not measured: .*(keras_cv_attention|LEGACY_KERAS=1)", out
    )


def test_wrong_usage(capsys):
    assert main(["benchmark", "ResNet50"]) == 2
    assert "perhaps NFResNet50" in capsys.readouterr().err
    assert main(["benchmark", "NFNetF0", "--image_size=0"]) == 2
