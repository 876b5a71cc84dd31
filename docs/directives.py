"""Directive for the tables that are generated when the site is built."""

import tables
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


class GeneratedTable(SphinxDirective):
    """`{generated-table} NAME`, where NAME is one of `tables.TABLES`."""

    required_arguments = 1

    def run(self):
        lines = tables.TABLES[self.arguments[0]]()
        container = nodes.container()
        self.state.nested_parse(StringList(lines, "tables.py"), 0, container)
        return container.children
