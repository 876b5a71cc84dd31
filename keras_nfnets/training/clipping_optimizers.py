"""Optimizers with AGC: a wrapper for any Keras optimizer, and the authors' SGD."""

import functools
import inspect
import warnings

import keras
from keras import ops

from keras_nfnets import checks
from keras_nfnets.backend import fusion, keras_internals
from keras_nfnets.layers.units import mark_units_of, unit_axes, weights_of_units
from keras_nfnets.training import replicas
from keras_nfnets.training.accumulation import clip_mean
from keras_nfnets.training.adaptive_clip import (
    CLASSIFIER_KERNEL,
    check_exclude,
    check_settings,
    clip_units,
    dense,
    is_excluded,
    is_overwritten,
    multiply,
    unit_factors,
    warn_of_classifier,
)
from keras_nfnets.training.inner_optimizers import all_optimizers


class Setting:
    """Attribute of an optimizer that cannot change after the optimizer is built.

    A compiled training step would not notice the change.
    """

    def __set_name__(self, owner, name):
        self._name = name

    def __get__(self, optimizer, owner=None):
        if optimizer is None:
            return self
        if self._name not in vars(optimizer):
            raise AttributeError(self._name)
        return vars(optimizer)[self._name]

    def __set__(self, optimizer, value):
        if optimizer.built:
            raise AttributeError(
                f"`{self._name}` cannot change after the optimizer is built, as training "
                "steps may be compiled already. Create an optimizer with the new value, "
                "build it, and copy the state with `set_weights`. "
                f"Received: {self._name}={value!r}"
            )
        vars(optimizer)[self._name] = value


def _check_inner(optimizer):
    """Raise a ValueError if `AGC` cannot wrap an optimizer."""
    inside = all_optimizers(optimizer)
    if any(map(clips, inside)):
        raise ValueError(
            f"{type(optimizer).__name__} clips by itself; use it without AGC. "
            f"Received: optimizer={optimizer}"
        )
    if any(isinstance(o, keras.optimizers.LossScaleOptimizer) for o in inside):
        raise ValueError(
            "Loss scaling must wrap clipping: use LossScaleOptimizer(AGC(...)). "
            f"Received: optimizer={optimizer}"
        )


def prepare_clipping(optimizer, variables):
    """Find the units of an optimizer's variables, and warn about likely mistakes.

    A name in `exclude` that matches no variable is not an error: frozen variables may be
    excluded too, and an optimizer does not see them.

    Args:
        optimizer: `AGC` or `SGDAGC`.
        variables: list of the variables it is built for.
    """
    try:
        check_exclude(optimizer.exclude, variables)
    except ValueError as error:
        warnings.warn(str(error), stacklevel=3)
    mark_units_of(variables)
    for model in keras_internals.layers_with(variables):
        is_compiled = isinstance(model, keras.Model) and model.compiled
        if is_compiled and optimizer in all_optimizers(model.optimizer):
            warn_of_classifier(model, optimizer.exclude, "exclude")


@keras.saving.register_keras_serializable("keras_nfnets")
class AGC(keras.optimizers.Optimizer):
    """Wrapper that clips gradients by AGC and passes them to another optimizer.

    Use it for models that are not `AGCModel`s and for custom training loops. Except for the
    arguments below, its attributes (learning rate, iterations, variables, `momentum`, ...)
    are those of the inner optimizer, which may be a `MultiOptimizer`. Under `mixed_float16`, wrap it in a
    `LossScaleOptimizer` (`compile` of Keras does so automatically), not the reverse.

    Under a `tf.distribute` strategy, gradients are summed over replicas and then clipped.
    If the inner optimizer accumulates gradients, their mean is clipped when it is
    applied.

    Args:
        optimizer: a `keras.optimizers.Optimizer`, its name or its config.
        clip_factor, eps: float. See `adaptive_clip`.
        exclude: str, list of str, callable or None. See `adaptive_clip`. By default the
            kernel of a layer named `"predictions"`, the classifier of this package's
            networks.
        name: str. Name of this optimizer.

    Raises:
        ValueError: settings that `adaptive_clip` rejects; an optimizer that already
            clips by AGC or scales the loss dynamically.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model.compile(AGC("adam", clip_factor=0.05), "mse")
    >>> history = model.fit(np.ones((8, 4)), np.zeros((8, 2)), verbose=0)

    Reference: Brock et al. (2021), arXiv 2102.06171, section 4.
    """

    clip_factor, eps, exclude = Setting(), Setting(), Setting()

    def __init__(
        self,
        optimizer,
        clip_factor=0.01,
        eps=1e-3,
        exclude=CLASSIFIER_KERNEL,
        name=None,
    ):
        clip_factor, eps = check_settings(clip_factor, eps, exclude)
        optimizer = keras.optimizers.get(optimizer)
        _check_inner(optimizer)
        super().__init__(learning_rate=0.0, name=name)
        self.clip_factor = clip_factor
        self.eps = eps
        self.exclude = exclude
        self._is_prepared = False
        # From here on, all other attributes are those of the inner optimizer.
        for attribute in list(vars(self)):
            if not self._is_own(attribute):
                delattr(self, attribute)
        self.inner_optimizer = optimizer

    # `_lock` is Keras's mark that `Optimizer.__init__` was called.
    _OWN = frozenset(
        ("name", "inner_optimizer", "clip_factor", "eps", "exclude")
        + ("_is_prepared", "_lock")
    )

    def _is_own(self, attribute):
        """Whether an attribute is that of the wrapper, not of the inner optimizer."""
        # TensorFlow keeps its tracking of objects in attributes with this prefix.
        return attribute in self._OWN or attribute.startswith("_self_")

    def __getattr__(self, name):
        if self._is_own(name):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.inner_optimizer, name)

    def __setattr__(self, name, value):
        is_property = inspect.isdatadescriptor(getattr(type(self), name, None))
        is_own = self._is_own(name) or is_property
        if is_own or "inner_optimizer" not in vars(self):
            super().__setattr__(name, value)
        else:
            setattr(self.inner_optimizer, name, value)

    def build(self, variables):
        if not self.inner_optimizer.built:
            self.inner_optimizer.build(variables)
        if not self._is_prepared:
            # Checked again, as a `MultiOptimizer` is complete only now.
            _check_inner(self.inner_optimizer)
            prepare_clipping(self, variables)
            self._is_prepared = True

    def apply(self, grads, trainable_variables=None):
        gradients = list(grads)
        if not gradients or (trainable_variables is None and not self.built):
            self.inner_optimizer.apply(gradients)  # which does nothing or raises
            return
        if trainable_variables is None:
            trainable_variables = keras_internals.optimized_variables(self)
        variables = list(trainable_variables)
        self.build(variables)

        def clip_and_apply(gradients):
            loss_scale = self.scale_loss(ops.ones(()))
            settings = self.clip_factor, self.eps, self.exclude
            clip_mean(
                lambda means: clip_units(means, variables, *settings, loss_scale),
                self.inner_optimizer,
                gradients,
                variables,
                loss_scale,
            ).apply(self.inner_optimizer, variables)

        replicas.sum_and_update(self, clip_and_apply, gradients, variables)

    # Names that the base class defines, so that `__getattr__` does not forward them.

    @property
    def variables(self):
        return self.inner_optimizer.variables

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    def set_weights(self, weights):
        self.inner_optimizer.set_weights(weights)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)

    # Keras saves the inner optimizer, as it saves all attributes with variables.

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass

    def get_config(self):
        return {
            "name": self.name,
            "optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "clip_factor": self.clip_factor,
            "eps": self.eps,
            "exclude": keras.saving.serialize_keras_object(self.exclude),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(
            **keras.saving.deserialize_keras_object(
                config, custom_objects=custom_objects
            )
        )


@functools.cache
def _update(axes, has_momentum, nesterov):
    """Return a function that computes the update of a variable by `SGDAGC`.

    It is cached, as `fusion.fused` compiles each function object once.

    Args:
        axes: tuple of ints, the axes of a unit's norm; None for no clipping.
        has_momentum: bool.
        nesterov: bool.
    """

    def update(
        gradient, variable, learning_rate, decay, clip_factor, eps, momentum, *others
    ):
        velocity, adapted = others[:has_momentum], others[has_momentum:]
        if axes is not None:
            arguments = *(adapted or [variable]), clip_factor, eps, 1.0
            gradient = multiply(gradient, unit_factors(gradient, *arguments, axes))
        gradient = ops.cast(gradient, variable.dtype)
        decay, momentum = (ops.cast(x, variable.dtype) for x in (decay, momentum))
        gradient = gradient + decay * variable
        if has_momentum:
            velocity = [momentum * velocity[0] + gradient]
            gradient = gradient + momentum * velocity[0] if nesterov else velocity[0]
        return variable - learning_rate * gradient, *velocity

    return update


@keras.saving.register_keras_serializable("keras_nfnets")
class SGDAGC(keras.optimizers.Optimizer):
    """The authors' optimizer: SGD with AGC and momentum.

    With `g` the gradient and `v` the momentum of a variable, of the same shape, a step is

        g = adaptive_clip(g) + weight_decay * variable
        v = momentum * v + g
        variable -= learning_rate * (g + momentum * v  if nesterov else  v)

    Weight decay is not clipped, and it is scaled by the learning rate. The learning rate
    is applied after the momentum, but in `keras.optimizers.SGD` before it; the two differ
    when the learning rate changes. Gains and biases do not decay. `g` is the sum over the
    replicas of a `tf.distribute` strategy, and the mean of accumulated gradients.

    Args:
        learning_rate: float or `keras.optimizers.schedules.LearningRateSchedule`.
        momentum: float in [0, 1). 0 or None disables momentum.
        nesterov: bool. Whether to use Nesterov momentum.
        weight_decay: float. 0 or None disables weight decay.
        clip_factor: float or None. See `adaptive_clip`; None disables clipping.
        eps: float. See `adaptive_clip`.
        exclude: str, list of str, callable or None. Variables that are not clipped, see
            `adaptive_clip`. By default the kernel of a layer named `"predictions"`, the
            classifier of this package's networks.
        **kwargs: see `keras.optimizers.Optimizer` (`use_ema`, `name`, ...).

    Raises:
        ValueError: settings that `adaptive_clip` rejects, or a momentum or weight decay
            out of range.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model.compile(SGDAGC(0.1, clip_factor=0.02), "mse")
    >>> history = model.fit(np.ones((8, 4)), np.zeros((8, 2)), verbose=0)

    Reference: `SGD_AGC` in the authors' optim.py, with the settings of
    experiment_nfnets.py as defaults.
    """

    clip_factor, eps, exclude = Setting(), Setting(), Setting()

    def __init__(
        self,
        learning_rate=0.1,
        momentum=0.9,
        nesterov=True,
        weight_decay=2e-5,
        clip_factor=0.01,
        eps=1e-3,
        exclude=CLASSIFIER_KERNEL,
        **kwargs,
    ):
        if clip_factor is not None:
            clip_factor, eps = check_settings(clip_factor, eps, exclude)
        momentum = checks.number("momentum", momentum or 0.0, below=1)
        weight_decay = checks.number("weight_decay", weight_decay or 0.0)
        super().__init__(learning_rate=learning_rate, **kwargs)
        # Not the `weight_decay` of Keras, which decays the variable before the step.
        self.gradient_weight_decay = weight_decay
        self.momentum = momentum
        self.nesterov = bool(nesterov)
        self.clip_factor = clip_factor
        self.eps = eps
        self.exclude = exclude

    def build(self, variables):
        if self.built:
            return
        if self.clip_factor is not None:
            prepare_clipping(self, variables)
        super().build(variables)
        if self.momentum:
            self.momentums = [
                None
                if is_overwritten(variable)
                else self.add_variable_from_reference(variable, "momentum")
                for variable in variables
            ]

    def apply(self, grads, trainable_variables=None):
        apply, gradients = super().apply, list(grads)
        replicas.sum_and_update(
            self,
            lambda gradients: apply(gradients, trainable_variables),
            gradients,
            trainable_variables or keras_internals.optimized_variables(self),
        )

    def update_step(self, gradient, variable, learning_rate):
        # TensorFlow passes the variable inside of the Keras variable; it has no path.
        index = keras_internals.variable_index(self, variable)
        keras_variable = keras_internals.optimized_variables(self)[index]
        clips = self.clip_factor is not None
        clips = clips and not is_excluded(keras_variable, self.exclude)
        decays = self.gradient_weight_decay and self._decays(keras_variable)
        weights = weights_of_units(keras_variable) if clips else keras_variable
        adapted = [] if weights is keras_variable else [weights]
        function = _update(
            axes=unit_axes(keras_variable) if clips else None,
            has_momentum=bool(self.momentum),
            nesterov=self.nesterov,
        )
        new, *new_velocity = fusion.fused(
            function,
            dense(gradient, keras_variable),
            ops.convert_to_tensor(variable),
            ops.cast(learning_rate, variable.dtype),
            float(self.gradient_weight_decay) if decays else 0.0,
            float(self.clip_factor) if clips else 0.0,
            float(self.eps),
            float(self.momentum),
            *[ops.convert_to_tensor(v) for v in self._velocity(index)],
            *adapted,
        )
        for velocity, value in zip(self._velocity(index), new_velocity):
            self.assign(velocity, value)
        self.assign(variable, new)

    def _velocity(self, index):
        """Return a list with the momentum of a variable, empty if there is none."""
        return [self.momentums[index]] if self.momentum else []

    def _decays(self, variable):
        is_gain_or_bias = (
            len(variable.shape) <= 1
            or "gain" in variable.name
            or "bias" in variable.name
        )
        return not is_gain_or_bias and keras_internals.has_weight_decay(self, variable)

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": self.gradient_weight_decay,
            "clip_factor": self.clip_factor,
            "eps": self.eps,
            "exclude": keras.saving.serialize_keras_object(self.exclude),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        if "exclude" in config:
            exclude = keras.saving.deserialize_keras_object(
                config["exclude"], custom_objects=custom_objects
            )
            config = {**config, "exclude": exclude}
        return super().from_config(config, custom_objects=custom_objects)


def clips(optimizer):
    """Whether an optimizer clips by AGC itself."""
    return isinstance(optimizer, (AGC, SGDAGC))
