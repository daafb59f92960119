"""Training script that is killed and started again: `LIBRARY FOLDER LOG [WHOLE]`.

Every step it trains is a line in LOG: epoch, step, and the loss to the last bit. With WHOLE, it
then trains the uninterrupted run in that folder, with a log of its own.
"""

# ruff: noqa: E402

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import tensorflow as tf

tf.config.experimental.enable_op_determinism()

from fit_helpers import compiled
from resumed_runs import dataset, held_out, model_of
from zoo import keras_of

import keras_efficient as ke


class Log(ke.flavor.Callback):
    def __init__(self, file):
        self.file = open(file, "a", buffering=1)  # noqa: SIM115

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.file.write(f"{self.epoch} {batch} {float(logs['loss']).hex()}\n")


def main(library, folder, log, whole=None):
    train(library, folder, log)
    if whole is not None:
        keras_of(library).backend.clear_session()
        train(library, Path(whole) / "run", Path(whole) / "log")


def train(library, folder, log):
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    keras_of(library).utils.set_random_seed(0)
    model = compiled(library, model_of(library), "adam", jit_compile=False)
    ke.accumulate(model, 2)
    model.fit(
        dataset(47),
        validation_data=held_out(),
        epochs=3,
        callbacks=[ke.callbacks.Resume(folder, every_steps=3), ke.callbacks.EMA(), Log(log)],
        verbose=0,
    )
    print(repr(model.history.history), float(sum(abs(w).sum() for w in model.get_weights())).hex())


if __name__ == "__main__":
    main(*sys.argv[1:])
