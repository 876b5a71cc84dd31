import math

import pytest

from keras_nfnets.models.costs import costs, count_costs, variants

# Networks of more blocks take at least a second to build.
_DEEP = 30


def depth(variant):
    return sum(variant.depths)


def test_every_network_has_its_costs():
    assert list(costs()) == list(variants())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if depth(variant) > _DEEP else [])
        for name, variant in variants().items()
    ],
)
def test_costs_are_what_the_network_counts(name):
    assert costs()[name] == count_costs(name)


def test_costs_grow_as_the_authors_table_says():
    # arXiv 2102.06171, table 1: parameters in millions, FLOPs in billions.
    parameters, flops = costs()["NFNetF6"]
    assert math.isclose(parameters / 1e6, 438.4, abs_tol=0.06)
    assert math.isclose(flops / 1e9, 377.28, abs_tol=0.01)
