"""`AGCModel.train_step` on JAX, where all state goes in and comes out."""

import jax
import keras

from keras_nfnets.training.sharpness import perturbed


def train_step(model, state, data):
    trainable, non_trainable, optimizer, metrics = state
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)

    def loss_and_gradients(trainable, non_trainable):
        gradient_of_loss = jax.value_and_grad(
            model.compute_loss_and_updates, has_aux=True
        )
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
        return auxiliary, gradients

    auxiliary, gradients = loss_and_gradients(trainable, non_trainable)
    loss, y_pred, non_trainable, metrics = auxiliary
    if model.sam_rho:
        worst = perturbed(
            trainable, gradients, model.trainable_variables, model.sam_rho
        )
        (_, _, non_trainable, _), gradients = loss_and_gradients(worst, non_trainable)

    def scope(trainable, optimizer, metrics):
        values = [
            *zip(model.trainable_variables, trainable),
            *zip(model.optimizer.variables, optimizer),
            *zip(model.metrics_variables, metrics),
        ]
        return keras.StatelessScope(state_mapping=values)

    with scope(trainable, optimizer, metrics) as before:
        clipped, finite = model.clip_gradients(gradients)
        model.update_loss_metric(loss, x, finite)
        clipped.set_accumulated(model.optimizer, model.trainable_variables)
        step = keras.ops.copy(model.optimizer.iterations)
    metrics = [before.get_current_value(v) for v in model.metrics_variables]
    new_trainable, new_optimizer = model.optimizer.stateless_apply(
        [before.get_current_value(v) for v in model.optimizer.variables],
        clipped.gradients,
        trainable,
    )
    if model.leaves_out_by_itself:
        new_trainable, new_optimizer = jax.tree.map(
            lambda new, old: jax.numpy.where(finite, new, old),
            (new_trainable, new_optimizer),
            (trainable, optimizer),
        )
    with scope(new_trainable, new_optimizer, metrics) as after:
        model.update_averages(step)
        logs = model.training_logs(x, y, y_pred, sample_weight)
    return logs, (
        new_trainable,
        non_trainable,
        [after.get_current_value(v) for v in model.optimizer.variables],
        [after.get_current_value(v) for v in model.metrics_variables],
    )
