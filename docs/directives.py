"""Directive for the tables that are generated when the site is built."""

import tables
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


class GeneratedTable(SphinxDirective):
    """`{generated-table} NAME`, where NAME is one of `tables.TABLES`.

    The entries of the constructors in the reference follow the table of a family.
    """

    required_arguments = 1

    def run(self):
        name = self.arguments[0]
        lines = tables.TABLES[name]()
        if name in tables.FAMILIES:
            lines += ["", *_entries(tables.names_of(name))]
        container = nodes.container()
        self.state.nested_parse(StringList(lines, "tables.py"), 0, container)
        return container.children


def _entries(names):
    entries = [f".. autofunction:: keras_nfnets.{name}" for name in names]
    return ["```{eval-rst}", *entries, "```"]
