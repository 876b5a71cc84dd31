"""`AGCModel.train_step` on TensorFlow."""

import keras
import tensorflow as tf


def train_step(model, data):
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        raise NotImplementedError(
            "AGCModel does not train on several replicas yet: it would clip each "
            "replica's part of the gradient, not their sum. Received: a strategy of "
            f"{tf.distribute.get_strategy().num_replicas_in_sync} replicas"
        )
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        loss = model.compute_loss(x, y, y_pred, sample_weight, training=True)
        scaled_loss = model.optimizer.scale_loss(loss)
    model.update_loss_metric(loss, x)
    variables = model.trainable_variables
    gradients = model.clip_gradients(tape.gradient(scaled_loss, variables))
    model.optimizer.apply_gradients(zip(gradients, variables))
    return model.training_logs(x, y, y_pred, sample_weight)
