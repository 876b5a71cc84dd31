import math

import pytest

from keras_nfnets import tables
from keras_nfnets.models.costs import costs, count_costs, timm_names, variants
from keras_nfnets.pretrained.architectures import NETWORKS

# The others differ from these in their depths and widths.
_QUICK = {"NFResNet26", "NFSEResNet26", "NFRegNetB0", "NFNetF0", "NFNetTiny"}


def test_every_network_has_its_costs():
    assert list(costs()) == list(variants())


def test_the_table_has_the_names_and_sizes_of_the_networks():
    assert set(tables.network_names()) == set(NETWORKS)
    for name, variant in variants().items():
        row = tables.networks()[name]
        assert row.timm == timm_names(name)
        assert (row.train_size, row.test_size) == (
            variant.train_size,
            variant.test_size,
        )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in _QUICK else [pytest.mark.slow])
        for name in variants()
    ],
)
def test_costs_are_what_the_network_counts(name):
    assert costs()[name] == count_costs(name)


def test_costs_grow_as_the_authors_table_says():
    # arXiv 2102.06171, table 3: parameters in millions, FLOPs in billions.
    parameters, flops = costs()["NFNetF6"]
    assert math.isclose(parameters / 1e6, 438.4, abs_tol=0.06)
    assert math.isclose(flops / 1e9, 377.28, abs_tol=0.01)
