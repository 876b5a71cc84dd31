"""Docstrings of builders and of constructors, with the arguments that all of them share."""

import inspect
import re
import textwrap

# Entries of `Args:` for every family. A builder's own entry replaces one of these.
_SHARED = """
    include_top: bool. Whether to add pooling, dropout and the classifier. Otherwise the
        output is the last feature map, pooled if `pooling` is given.
    weights: str or None. None for random initialization; `"imagenet"` for the best
        published weights of this network; the name of a checkpoint in
        `pretrained.list_checkpoints()`; or the path of a weight file of the same
        network: a `.keras` or `.weights.h5` file, a `.safetensors` file with timm's names
        or an `.npz` file of the authors. If the number of classes differs, the classifier
        stays random, with a warning. If there are not three input channels, the first
        kernel is adapted as in timm, see `pretrained.load`.
    input_tensor: `keras.KerasTensor` or None. Symbolic tensor to use as the input.
    input_shape: tuple `(height, width, channels)` or None. Shape of an image, without the
        batch. Height and width may be None. None for RGB images of any size.
    pooling: str or None. Pooling without top: None, `"avg"` or `"max"`.
    classes: int. Number of classes.
    classifier_activation: str or callable. Activation of the classifier; None for logits.
    name: str. Name of the model.
    group_size: int. Channels per group of the 3x3 convolutions.
    alpha: float. Scale of the residual branches.
    se_ratio: float. Hidden width of squeeze-and-excitation as a fraction of the channels.
    attention: str or None. `"se"` for squeeze-and-excitation, `"eca"` for efficient
        channel attention, or None.
    activation: str or callable. See `ScaledActivation`.
    stochastic_depth_rate: float. Block `i` of `n`, counted from zero, has a rate of
        `stochastic_depth_rate * i / n`.
    drop_rate: float. Rate of the dropout before the classifier.
    convention: str. `"authors"` or `"timm"`, see `NFBlock`.
    output_stride: int or None. 8, 16 or 32: bound of the size of the images divided by
        that of the last feature map. Stages that would exceed it are dilated instead of
        strided, for semantic segmentation. The weights are the same.
    rematerialize: bool. Whether training saves only the inputs of the blocks and computes
        the blocks again for the gradient (gradient checkpointing): less memory, more time.
"""
_WIDTH = 88


def of_builder(own, signature):
    """Add the shared arguments and all defaults to the docstring of a builder.

    Args:
        own: str. Docstring, whose section `Args:` has the arguments of the family only.
        signature: `inspect.Signature` of the builder.
    """
    if own is None:  # python -OO
        return None
    before, arguments, after = _divided(inspect.cleandoc(own))
    return before + _section(signature, arguments) + after


def of_constructor(name, builder, fixed, sizes, signature, reference):
    """Return the docstring of the constructor of a variant.

    Args:
        name: str. Name of the constructor.
        builder: callable. Builder, with a docstring of `of_builder`.
        fixed: dict. Arguments of the builder that define the variant.
        sizes: tuple of the image sizes in training and in tests, in pixels.
        signature: `inspect.Signature` of the constructor.
        reference: str. Source of the variant.
    """
    if builder.__doc__ is None:  # python -OO
        return None
    _, arguments, after = _divided(builder.__doc__)
    results, _, _ = after.partition("Example:")
    settings = ", ".join(f"{argument}={value}" for argument, value in fixed.items())
    about = (
        f"This is `{builder.__name__}` with {settings}. It is trained at {sizes[0]} and "
        f"tested at {sizes[1]} pixels per side."
    )
    example = f"""Example:

>>> model = keras_nfnets.{name}(classes=10)
>>> model.output_shape
(None, 10)

Reference: {reference}
"""
    return (
        f"Build {name}, a variant of `{builder.__name__}`.\n\n{_filled(about)}\n\n"
        f"{_section(signature, arguments)}{results}{example}"
    )


def _divided(docstring):
    """Return a docstring before its entries of `Args:`, these entries, and the rest."""
    before, _, rest = docstring.partition("Args:\n")
    entries, returns, after = rest.partition("\nReturns:\n")
    return before, entries, returns + after


def _section(signature, own):
    """Return the section `Args:` of a signature, given the entries of its family."""
    meanings = {**_meanings(_SHARED), **_meanings(own)}
    entries = [
        _filled(
            f"{name}: {_with_default(meanings[name], parameter.default)}",
            initial_indent=4 * " ",
            subsequent_indent=8 * " ",
        )
        for name, parameter in signature.parameters.items()
    ]
    return "\n".join(["Args:", *entries, ""])


def _meanings(entries):
    """Return `{argument: text}` of the entries of a section."""
    found = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", entries, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _with_default(meaning, default):
    # (Which the entry may have from the builder: a constructor has another one.)
    meaning, _, _ = meaning.partition(" Defaults to ")
    if default is inspect.Parameter.empty:
        return meaning
    shown = f'`"{default}"`' if isinstance(default, str) else f"{default}"
    return f"{meaning} Defaults to {shown}."


def _filled(text, **indents):
    """Wrap a text; lines break outside of code only."""
    space = "\N{NO-BREAK SPACE}"
    text = re.sub("`[^`]+`", lambda code: code[0].replace(" ", space), text)
    lines = textwrap.fill(
        text, _WIDTH, break_long_words=False, break_on_hyphens=False, **indents
    )
    return lines.replace(space, " ")
