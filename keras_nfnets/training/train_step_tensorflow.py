"""`AGCModel.train_step` on TensorFlow."""

import keras
import tensorflow as tf

from keras_nfnets.training.clipping_optimizers import check_one_replica


def train_step(model, data):
    check_one_replica()
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        loss = model.training_loss(x, y, y_pred, sample_weight)
        scaled_loss = model.optimizer.scale_loss(loss)
    model.update_loss_metric(loss, x)
    variables = model.trainable_variables
    gradients = model.clip_gradients(tape.gradient(scaled_loss, variables))
    model.optimizer.apply_gradients(zip(gradients, variables))
    return model.training_logs(x, y, y_pred, sample_weight)
