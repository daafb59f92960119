"""Recognise spoken digits by a Transformer on spectrograms, prune it 2:4 and export it as int8.

    python examples/audio_classification.py [--epochs 15] [--limit 400] [--espeak PROGRAM]

The words are synthesised by eSpeak NG (`apt-get install espeak-ng`): four accents of English times
eight voices, each at three speeds and pitches. Two voices are held out in all accents, so the
accuracy is that on unknown voices; synthetic ones, which differ less than people. The model is a
vision Transformer that reads a log-mel spectrogram as an image of one channel.

Ran on a 2-core CPU with eSpeak NG 1.51. Not run: GPU, TPU, several devices, recordings of people.
"""

import argparse
import itertools
import shutil
import subprocess
import tempfile
import wave

import keras
import numpy as np
import tensorflow as tf
from keras_hub.models import ViTBackbone, ViTImageClassifier

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--espeak", default="espeak-ng", help="program that speaks [espeak-ng]")
parser.add_argument("--limit", type=int, help="use this many of the 960 clips [all]")
parser.add_argument("--epochs", type=int, default=15, help="a third as many follow for pruning")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="saved_models/words", help="folder of the exported models")
arguments = parser.parse_args()
ke.exporters.check_destination(f"{arguments.output}/float")
if shutil.which(arguments.espeak) is None:
    raise SystemExit(f"There is no program {arguments.espeak!r}: apt-get install espeak-ng")

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-029")
VOICES, HELD_OUT = ("m1", "m3", "m5", "m7", "f1", "f2", "f3", "f5"), ("m7", "f3")
SPEEDS_AND_PITCHES = ((140, 35), (165, 50), (190, 65))
RATE, FRAMES, MELS = 22050, 64, 64  # 64 frames of 16 ms are about a second.


def spoken(word, accent, voice, speed, pitch):
    """Return a word as samples, float32 [FRAMES * 352], from -1 to 1."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        options = ["-v", f"{accent}+{voice}", "-s", str(speed), "-p", str(pitch), "-w", file.name]
        subprocess.run([arguments.espeak, *options, word], check=True)
        with wave.open(file.name) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")[: FRAMES * 352]
    return np.pad(samples / 32768, (0, FRAMES * 352 - len(samples))).astype("float32")


def spectrograms(samples):
    """Return log-mel spectrograms [clips, FRAMES, MELS, 1], each of mean 0 and variance 1."""
    power = tf.abs(tf.signal.stft(samples, 1024, 352, pad_end=True)) ** 2
    mel = tf.signal.linear_to_mel_weight_matrix(MELS, power.shape[-1], RATE, 60.0, 8000.0)
    log = tf.math.log(power @ mel + 1e-6)
    mean, variance = tf.nn.moments(log, (1, 2), keepdims=True)
    return ((log - mean) / tf.sqrt(variance))[..., None].numpy()


def new_model():
    """Return a Transformer with new weights, for patches of 16 frames and 8 bands."""
    backbone = ViTBackbone(
        (FRAMES, MELS, 1), (16, 8), num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128
    )
    return ViTImageClassifier(backbone, num_classes=len(WORDS))


def fit(model, epochs, rate):
    """Train a model, and return its accuracy on the held-out voices."""
    steps = epochs * -(-len(train[0]) // 32)
    rate = ke.schedules.warmup_linear(rate, warmup_steps=steps // 10, total_steps=steps)
    model.compile(
        ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    data = tf.data.Dataset.from_tensor_slices(train).shuffle(1000, seed=arguments.seed).batch(32)
    model.fit(data, epochs=epochs, shuffle=False, verbose=0)
    return model.evaluate(*test, batch_size=64, verbose=0, return_dict=True)["accuracy"]


clips = list(itertools.product(enumerate(WORDS), ACCENTS, VOICES, SPEEDS_AND_PITCHES))
clips = [clips[i] for i in np.random.default_rng(0).permutation(len(clips))[: arguments.limit]]
sounds = spectrograms(np.stack([spoken(w, a, v, *sp) for (_, w), a, v, sp in clips]))
labels = np.array([label for (label, _), *_ in clips], "int32")
unknown = np.array([voice in HELD_OUT for _, _, voice, _ in clips])
train, test = (sounds[~unknown], labels[~unknown]), (sounds[unknown], labels[unknown])
print(f"{len(train[0])} clips of {len(VOICES) - len(HELD_OUT)} voices, {len(test[0])} of others")

keras.utils.set_random_seed(arguments.seed)
model = new_model()
print(ke.unpad(model))
ke.accumulate(model, microbatch_size=16)
print(f"float: {fit(model, arguments.epochs, 1e-3):.1%}")
criterion = ke.compression.Reconstruction(train[0][:256])
print(ke.prune(model, pattern="2:4", criterion=criterion))
print(f"2:4: {fit(model, max(1, arguments.epochs // 3), 3e-4):.1%}")
# The zeros stay zero as integers.
print(ke.calibrate(model, train[0][:256], method="mse"))
evaluate = ke.exporters.Evaluation(test, max_drop=0.02)
path = f"{arguments.output}/int8"
report = ke.export(model, path, sample=train[0][:16], quantize="int8", evaluate=evaluate)
print(f"2:4, int8: {report.accuracy:.1%} when served, {report.weight_bytes:,} bytes of weights")
