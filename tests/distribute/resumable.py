"""A training script that can be killed: resumable.py LIBRARY FOLDER [SECONDS_PER_STEP].

Every worker appends each step's loss to a file of its own, and writes its process id.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

import keras_efficient as ke

library, folder = sys.argv[1], Path(sys.argv[2])
pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
strategy = ke.strategy("auto", seed=7, deterministic=True, start_timeout=300)
index = strategy.cluster.index if hasattr(strategy, "cluster") else 0

import tensorflow as tf  # noqa: E402
from zoo import CLASSES, LENGTH, VOCABULARY, keras_of  # noqa: E402

keras = keras_of(library)
layers = keras.layers
with strategy.scope():
    ids = layers.Input((LENGTH,), dtype="int32")
    # With gradients of rows, and without: they are summed in different ways.
    embedding = layers.Embedding(VOCABULARY, 8, trainable=library == "keras")
    x = layers.Dropout(0.2)(embedding(ids))
    x = layers.Dense(16, activation="relu")(layers.Flatten()(x))
    model = keras.Model(ids, layers.Dense(CLASSES)(layers.Dropout(0.2)(x)))
    rate = ke.schedules.warmup_cosine(1e-2, warmup_steps=5, total_steps=40)
    model.compile(
        ke.optimizers.AdamW(rate, library=library),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
ke.accumulate(model, 2)
rng = np.random.default_rng(0)
features = rng.integers(1, VOCABULARY, (93, LENGTH)).astype("int32")
labels = (features.sum(1) % CLASSES).astype("int32")
examples = tf.data.Dataset.from_tensor_slices((features, labels))
data = examples.shuffle(93, seed=3).batch(8)


class Diary(ke.flavor.Callback):
    def __init__(self):
        self.file = (folder / f"losses-{index}.jsonl").open("a")
        self.attempt = int(os.environ.get("KERAS_EFFICIENT_RESTART", 0))

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.batch = epoch, 0

    def on_train_batch_end(self, batch, logs=None):
        updates = int(self.model.optimizer.iterations.numpy())
        line = {"attempt": self.attempt, "updates": updates, "loss": float(logs["loss"])}
        print(json.dumps(line), file=self.file, flush=True)
        time.sleep(pause)


(folder / f"pid-{index}").write_text(str(os.getpid()))
history = model.fit(
    data,
    epochs=3,
    validation_data=examples.batch(31),
    shuffle=False,
    verbose=0,
    callbacks=[
        Diary(),
        ke.callbacks.EMA(decay=0.9),
        ke.callbacks.Resume(folder / "saves", every_steps=4),
    ],
).history
if index == 0:
    np.savez(folder / "end.npz", *model.get_weights())
    (folder / "history.json").write_text(json.dumps(history))
