"""Train a small vision Transformer on handwritten digits, prune it 2:4 and export it as int8.

    python examples/image_classification.py [--library tf_keras] [--epochs 30] [--limit 400]

The images are scikit-learn's 1,797 digits of 8 x 8 pixels (`pip install scikit-learn`), enlarged
to 16 x 16. The last 397 of a permutation are held out. Keras 3 has KerasHub's ViT, tf_keras Hugging
Face's, whose images are [batch, channels, height, width].

Ran on a 2-core CPU, both libraries. Not run: GPU, TPU, several devices.
"""

import argparse

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
parser.add_argument("--limit", type=int, default=1400, help="train on this many images [1,400]")
parser.add_argument("--epochs", type=int, default=30, help="a third as many follow for pruning")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="saved_models/digits", help="folder of the exported models")
arguments = parser.parse_args()
ke.exporters.check_destination(f"{arguments.output}/float")

digits = load_digits()
images = np.kron(digits.images / 8 - 1, np.ones((1, 2, 2)))[..., None].repeat(3, -1)
if arguments.library == "tf_keras":
    images = images.transpose(0, 3, 1, 2)
order = np.random.default_rng(0).permutation(len(images))
images, labels = images[order].astype("float32"), digits.target[order].astype("int32")
train, test = ((images[part], labels[part]) for part in (slice(1400), slice(1400, None)))
train = tuple(array[: arguments.limit] for array in train)


def new_model():
    """Return a vision Transformer with new weights."""
    if arguments.library == "keras":
        from keras_hub.models import ViTBackbone, ViTImageClassifier

        backbone = ViTBackbone(
            (16, 16, 3), (4, 4), num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128
        )
        return ViTImageClassifier(backbone, num_classes=10)
    from transformers import TFViTForImageClassification, ViTConfig

    config = ViTConfig(64, 4, 4, 128, image_size=16, patch_size=4, num_labels=10)
    config.initializer_range = 0.1  # The default, 0.02, is meant for a width of 768.
    model = TFViTForImageClassification(config)
    model(images[:1])
    return model


def fit(model, epochs, rate):
    """Train a model, and return its accuracy on the held-out images."""
    steps = epochs * -(-len(train[0]) // 64)
    rate = ke.schedules.warmup_linear(rate, warmup_steps=steps // 10, total_steps=steps)
    model.compile(
        ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY, library=model),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    # KerasHub's models do not shuffle arrays themselves.
    data = tf.data.Dataset.from_tensor_slices(train).shuffle(1400, seed=arguments.seed).batch(64)
    model.fit(data, epochs=epochs, shuffle=False, verbose=0)
    return model.evaluate(*test, batch_size=128, verbose=0, return_dict=True)["accuracy"]


def export(name, model, quantize=None):
    """Export a model, and return its accuracy when it is served without Keras."""
    report = ke.export(
        model,
        f"{arguments.output}/{name}",
        sample=train[0][:64],
        quantize=quantize,
        evaluate=ke.exporters.Evaluation(test, max_drop=0.02),
        latency=False,
    )
    print(f"{name}: {report.accuracy:.2%} when served, {report.weight_bytes:,} bytes of weights")
    return report.accuracy


def calibrated(model):
    """Return a copy of a model whose inputs of layers are rounded to 8 bits."""
    copy = new_model()
    copy.set_weights(model.get_weights())
    ke.calibrate(copy, train[0][:512], method="mse")
    return copy


keras = ke.flavor.of(new_model()).keras
keras.utils.set_random_seed(arguments.seed)
model = new_model()
print(ke.architecture.describe(model))
# Images have no padding: the blocks need fewer operations, and the last one computes the first
# token alone.
print(ke.unpad(model))
ke.accumulate(model, microbatch_size=32)
accuracies = {"float": fit(model, arguments.epochs, 1e-3)}
export("float", model)
accuracies["int8"] = export("int8", calibrated(model), "int8")

# Half of the weights of the blocks become zero, the others make up for it; then more training.
criterion = ke.compression.Reconstruction(train[0][:512])
print(ke.prune(model, pattern="2:4", criterion=criterion))
accuracies["2:4"] = fit(model, max(1, arguments.epochs // 3), 3e-4)
export("2:4", model)
ke.merge(model)
accuracies["2:4, int8"] = export("2:4-int8", calibrated(model), "int8")
print(" ".join(f"{name} {accuracy:.1%};" for name, accuracy in accuracies.items()))
