"""`AGCModel.train_step` on PyTorch."""

import keras
import torch


def train_step(model, data):
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    y_pred = model(x, training=True)
    model.zero_grad()
    loss = model.training_loss(x, y, y_pred, sample_weight)
    model.update_loss_metric(loss, x)
    model.optimizer.scale_loss(loss).backward()
    variables = model.trainable_variables
    with torch.no_grad():
        gradients = model.clip_gradients([v.value.grad for v in variables])
        model.optimizer.apply(gradients, variables)
    return model.training_logs(x, y, y_pred, sample_weight)
