"""`AGCModel.train_step` on JAX, which takes all state and returns it."""

import jax
import keras

from keras_nfnets.backend.keras_internals import JaxState, jax_loss
from keras_nfnets.training.inner_optimizers import number_of_updates
from keras_nfnets.training.sam import gradients_of_sam, perturbed
from keras_nfnets.training.state import State


def train_step(model, state, data):
    state = JaxState(*state)
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)

    def loss(trainable, non_trainable):
        current = state._replace(trainable=trainable, non_trainable=non_trainable)
        return jax_loss(model, current, x, y, sample_weight)

    with _variables_are(model, state):
        before = model.state_before_step()
    loss_and_gradients = jax.value_and_grad(loss, has_aux=True)
    (_, updates), gradients = loss_and_gradients(state.trainable, state.non_trainable)
    non_trainable = updates.non_trainable
    if model.sam_rho:
        worst = perturbed(
            state.trainable, gradients, model.trainable_variables, model.sam_rho
        )
        (_, at_worst), gradients_at_worst = loss_and_gradients(worst, non_trainable)
        gradients = gradients_of_sam(
            gradients, gradients_at_worst, model.trainable_variables
        )
        with _variables_are(model, state._replace(non_trainable=non_trainable)):
            after = State(model.non_trainable_weights)
        state_at_worst = state._replace(non_trainable=at_worst.non_trainable)
        with _variables_are(model, state_at_worst) as scope:
            after.restore()
        non_trainable = _values(scope, model.non_trainable_variables)

    with _variables_are(model, state._replace(metrics=updates.metrics)) as scope:
        clipped, finite = model.clip_gradients(gradients)
        model.update_loss_metric(updates.loss, x)
        clipped.set_accumulated(model.optimizer, model.trainable_variables)
        step = keras.ops.copy(number_of_updates(model.optimizer))
    trainable, optimizer = model.optimizer.stateless_apply(
        _values(scope, model.optimizer.variables), clipped.gradients, state.trainable
    )
    if model.skips_nonfinite_steps:
        trainable, optimizer = jax.tree.map(
            lambda new, old: jax.numpy.where(finite, new, old),
            (trainable, optimizer),
            (state.trainable, state.optimizer),
        )

    metrics = _values(scope, model.metrics_variables)
    state = JaxState(trainable, non_trainable, optimizer, metrics)
    with _variables_are(model, state) as scope:
        model.update_averages(step)
        logs = model.training_logs(x, y, updates.y_pred, sample_weight, finite, before)
    return logs, (
        trainable,
        _values(scope, model.non_trainable_variables),
        _values(scope, model.optimizer.variables),
        _values(scope, model.metrics_variables),
    )


def _variables_are(model, state):
    """Scope in which the variables of training have the values of a `JaxState`."""
    pairs = [
        *zip(model.trainable_variables, state.trainable),
        *zip(model.non_trainable_variables, state.non_trainable),
        *zip(model.optimizer.variables, state.optimizer),
        *zip(model.metrics_variables, state.metrics),
    ]
    return keras.StatelessScope(state_mapping=pairs)


def _values(scope, variables):
    return [scope.get_current_value(variable) for variable in variables]
