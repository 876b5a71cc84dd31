"""Registry of networks by name, which the model zoo (`models`) fills."""

import contextlib
import typing

import keras

from keras_nfnets import tables


class Architecture(typing.NamedTuple):
    """Builder of a network and the arguments that define its weights.

    Attributes:
        builder: str. Name of a builder, such as `"NFNet"`.
        settings: dict. Arguments of the builder, except those that may vary for the
            same weights (`classes`, `input_shape`, dropout rates, ...).

    Example:

    >>> keras_nfnets.NFNetF0.architecture().settings["depths"]
    (1, 2, 6, 3)
    """

    builder: str
    settings: dict


class Network(typing.NamedTuple):
    """Constructor and its options, registered under a name."""

    name: str
    constructor: typing.Callable
    options: dict

    def build(self, **options):
        """Build the model; `options` override those of the network."""
        return self.constructor(**{**self.options, **options})

    @property
    def architecture(self):
        return self.constructor.architecture(**self.options)


# Our names (`"NFNetF0"`) and timm's (`"dm_nfnet_f0"`), which may mean the same network.
NETWORKS = {}


def register(name, constructor, options):
    """Register `constructor(**options)` under a name, for `create` and the commands.

    Args:
        name: str. One of our names or timm's.
        constructor: callable. Constructor of a network in the zoo, with a method
            `architecture(**options)`.
        options: dict. Arguments of the constructor.

    Example:

    >>> find_network("NFNetF0").constructor.__name__
    'NFNetF0'
    """
    NETWORKS[name] = Network(name, constructor, options)


def find_network(name):
    """Find a network in the registry.

    Args:
        name: str. Our name or timm's; case is ignored.

    Returns:
        A `Network`: its registered name, its constructor, the options of the
        constructor, `build(**options)` and `architecture`.

    Raises:
        ValueError: no network has this name; the message suggests similar names.

    Example:

    >>> find_network("dm_nfnet_f0").constructor.__name__
    'NFNetF0'
    """
    return NETWORKS[tables.known_network(name, NETWORKS)]


@contextlib.contextmanager
def without_memory():
    """Context in which networks are built without allocating their weights.

    Such networks can be inspected (`count_params`, `summary`) but not run. At its end,
    the context clears the session of Keras (its counters of automatic names), as Keras
    would otherwise allocate the weights at the next opportunity.

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
