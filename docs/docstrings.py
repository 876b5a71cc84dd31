"""Conversion of the package's docstrings from Markdown to reStructuredText."""

import functools
import importlib
import inspect
import re

import keras_nfnets

_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_CODE_BLOCK_INDENT = "    "
# Names of arguments with one shared description, continued on the next line.
_NAMES_GO_ON = re.compile(r"(?m)^( +(?:\w+, )*\w+,)\n +(?=(?:\w+, )*\w+[,:])")


def process(app, what, name, thing, options, lines):
    """Convert `lines` in place, as autodoc requires."""
    text = "\n".join(lines).replace(", **kwargs:", r", \*\*kwargs:")
    if _is_variant(thing):
        text = _without_arguments(text, thing)
    while _NAMES_GO_ON.search(text):
        text = _NAMES_GO_ON.sub(r"\1 ", text)
    # Such as "keras_nfnets.data" for "keras_nfnets.data.Source.records".
    literal = functools.partial(_literal, module=".".join(name.split(".")[:2]))
    blocks = re.split(r"\n{2,}", text)
    changed, after_text = [], False
    for block in blocks:
        if block.startswith(">>> "):
            after_text = False
        elif block.startswith("| "):
            block, after_text = _table(block, literal), False
        elif after_text and block.startswith(_CODE_BLOCK_INDENT):
            changed.append("::")
        else:
            # An indented block after a list or a section belongs to it.
            after_text = not block.startswith((" ", "- ")) and "\n " not in block
            block = _CODE.sub(literal, block)
        changed.append(block)
    lines[:] = "\n\n".join(changed).split("\n")


def signature(app, what, name, thing, options, given, returned):
    """Return the signature to show, without representations of objects.

    It is that of `__init__` for classes whose `__new__` hides it. For the constructor of a
    variant, it has the arguments whose defaults differ from those of its family.
    """
    if given is None:
        return None
    if _is_variant(thing):
        of_family = inspect.signature(_builder(thing)).parameters
        changed = [
            str(parameter)
            for parameter in inspect.signature(thing).parameters.values()
            if parameter.default != of_family[parameter.name].default
        ]
        return f"({', '.join(['...', *changed])})", returned
    if what == "class" and given == "(*args, **kwargs)":
        parameters = list(inspect.signature(thing.__init__).parameters.values())
        given = str(inspect.Signature(parameters[1:]))
    given = given.replace("<factory>", "{}")
    return re.sub(r"<built-in function (\w+)>", r"\1", given), returned


def _is_variant(thing):
    return inspect.isfunction(thing) and hasattr(thing, "architecture")


def _builder(constructor):
    return getattr(keras_nfnets, constructor.architecture().builder)


def _without_arguments(text, constructor):
    """Replace sections that the page has in the entry of the family by a link to it."""
    before, _, after = text.partition("\nArgs:\n")
    builder = _builder(constructor).__name__
    link = (
        "The other arguments and defaults, the result and the errors are those of "
        f"`{builder}`."
    )
    return f"{before}\n{link}\n\nReference:{after.partition('Reference:')[2]}"


def _literal(match, module):
    """Convert code to a literal, or to a link if it is a public name.

    Names in `module` are short, such as `Source`. Names in other modules begin with that
    of their module, such as `data.find`.
    """
    code = re.sub(r"\s+", " ", match[1])
    behind = match.string[match.end() : match.end() + 1]
    escape = "\\" if behind.isalnum() else ""
    space = " " if escape else ""
    if _is_public(f"keras_nfnets.{code}"):
        return f":py:obj:`{code} <keras_nfnets.{code}>`{escape}{space}"
    # Short names in lower case can be those of arguments.
    if _is_public(f"{module}.{code}") and ("_" in code or code[0].isupper()):
        return f":py:obj:`{code} <{module}.{code}>`{escape}{space}"
    return f"``{code}``{escape}{space}"


def _is_public(path):
    module, _, name = path.rpartition(".")
    return name in _public_names(module)


@functools.cache
def _public_names(module):
    try:
        return importlib.import_module(module).__all__
    except (ImportError, AttributeError):
        return ()


def _table(block, literal):
    """Convert a Markdown table to a list-table."""
    rows = [
        [cell.strip() for cell in row.strip().strip("|").split("|")]
        for row in block.split("\n")
    ]
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [rows[0], *rows[2:]]:
        for i, cell in enumerate(row):
            lines.append(f"   {'  ' if i else '* '}- {_CODE.sub(literal, cell)}")
    return "\n".join(lines)
