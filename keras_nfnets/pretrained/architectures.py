"""The networks there are, by name; the zoo (`models`) fills this register."""

import contextlib
import typing

import keras

from keras_nfnets import checks


class Architecture(typing.NamedTuple):
    """What makes a network the one it is: its builder and the arguments that matter.

    Attributes:
        builder: name of a builder, such as `"NFNet"`.
        settings: dict of its arguments, but for those that leave the weights what they
            are (`classes`, `input_shape`, rates of dropout, ...).

    Example:

    >>> keras_nfnets.NFNetF0.architecture().settings["depths"]
    (1, 2, 6, 3)
    """

    builder: str
    settings: dict


class Network(typing.NamedTuple):
    """A network that a name stands for."""

    name: str
    constructor: typing.Callable
    options: dict

    def build(self, **options):
        """The model; `options` override the network's own."""
        return self.constructor(**{**self.options, **options})

    @property
    def architecture(self):
        return self.constructor.architecture(**self.options)


# Our names (`"NFNetF0"`) and timm's (`"dm_nfnet_f0"`), which may mean the same network.
NETWORKS = {}


def register(name, constructor, options):
    """Makes `constructor(**options)` known by a name, to `create` and the command.

    Args:
        name: one of ours, or timm's.
        constructor: one of a network of the zoo, with `architecture(**options)`.
        options: dict of what is passed to it.

    Example:

    >>> find_network("NFNetF0").constructor.__name__
    'NFNetF0'
    """
    NETWORKS[name] = Network(name, constructor, options)


def find_network(name):
    """Finds a network of the register.

    Args:
        name: ours or timm's, in any mixture of cases.

    Returns:
        A `Network`: its name as it is registered, its constructor, the options for it,
        `build(**options)` and `architecture`.

    Raises:
        ValueError: there is none; the message has names like it.

    Example:

    >>> find_network("dm_nfnet_f0").constructor.__name__
    'NFNetF0'
    """
    by_lower_case = {known.lower(): known for known in NETWORKS}
    known = by_lower_case.get(str(name).lower())
    if known is None:
        suggestion = checks.perhaps(name, NETWORKS) or "."
        raise ValueError(
            f"There is no network {name!r}{suggestion} 'keras-nfnets list' shows their "
            "names; timm's are known, too."
        )
    return NETWORKS[known]


@contextlib.contextmanager
def without_memory():
    """A context in which networks are built without allocating their weights.

    They can be looked at (`count_params`, `summary`) but not run. Clears Keras's
    session in the end (its counters of automatic names): Keras would otherwise
    allocate the weights at the next opportunity.

    Returns:
        A context manager.

    Example:

    >>> with without_memory():
    ...     model = keras_nfnets.NFNetF7()
    >>> round(model.count_params() / 1e6)  # millions
    500
    """
    with keras.StatelessScope(initialize_variables=False):
        yield
    keras.utils.clear_session(free_memory=False)
