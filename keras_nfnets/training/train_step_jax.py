"""`AGCModel.train_step` on JAX, where all state goes in and comes out."""

import jax
import keras


def train_step(model, state, data):
    trainable, non_trainable, optimizer, metrics = state
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    gradient_of_loss = jax.value_and_grad(model.compute_loss_and_updates, has_aux=True)
    (_, auxiliary), gradients = gradient_of_loss(
        trainable,
        non_trainable,
        metrics,
        x,
        y,
        sample_weight,
        training=True,
        optimizer_variables=optimizer,
    )
    loss, y_pred, non_trainable, metrics = auxiliary

    variables = [
        *zip(model.trainable_variables, trainable),
        *zip(model.optimizer.variables, optimizer),
        *zip(model.metrics_variables, metrics),
    ]
    with keras.StatelessScope(state_mapping=variables) as scope:
        gradients = model.clip_gradients(gradients)
        model.update_loss_metric(loss, x)
        logs = model.training_logs(x, y, y_pred, sample_weight)
    metrics = [scope.get_current_value(v) for v in model.metrics_variables]

    trainable, optimizer = model.optimizer.stateless_apply(
        optimizer, gradients, trainable
    )
    return logs, (trainable, non_trainable, optimizer, metrics)
