"""Fine-tune MiniLM, then shrink, distil and quantize it: the steps of `keras-efficient compress`.

    python examples/compress.py [--limit 3000] [--epochs 3] [--speedup 10] [--output FOLDER]

Ran as `keras-efficient compress` on a tiny BERT and a CPU. Not run: MiniLM, GPU, TPU.
"""

import argparse

import keras
import rich

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", default=ke.data.demo_reviews, help="data file [movie reviews]")
parser.add_argument("--model", default=ke.data.demo_model, help="BERT checkpoint [MiniLM]")
parser.add_argument("--limit", type=int, default=3000, help="training texts [3000]")
parser.add_argument("--epochs", type=int, default=3, help="epochs of each model [3]")
parser.add_argument("--speedup", type=float, default=10, help="over Keras' float32 export [10]")
parser.add_argument("--output", default="saved_models/compress", help="folder of the exports")
arguments = parser.parse_args()

data, folder = (x() if callable(x) else x for x in (arguments.data, arguments.model))
train, test = ke.data.split(ke.data.read_records(data), validation=0.15)
train = train.take(range(min(arguments.limit, len(train))))
teacher, tokenizer = ke.models.load(folder, library="keras", num_labels=len(train.label_names))
ids, words = ke.data.trim_vocabulary(tokenizer, train.texts, min_frequency=2)
teacher = ke.shrink(teacher, vocabulary=ids).model
batches = ke.data.text(train, words, batch_size=32, max_length=64)
tests = ke.data.text(test, words, batch_size=64, max_length=64, shuffle=False)
exports = {}


def finish(name, model, rate):
    """Train a model, quantize it, and export it as int8 with its accuracy as served."""
    steps = arguments.epochs * batches.stats.batches
    rate = ke.schedules.warmup_linear(rate, warmup_steps=steps // 10, total_steps=steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY), loss, jit_compile=False
    )
    model.fit(batches, epochs=arguments.epochs, verbose=2, shuffle=False)
    path = f"{arguments.output}/{name}"
    report = ke.pipelines.quantized_export(model, path, calibration=batches.take(8), held_out=tests)
    exports[name] = report.directory
    print(f"{name}: {report.evaluation['served']:.1%} of the test texts, {report.bytes:,} bytes")


finish("teacher", teacher, 5e-5)
sample, _ = next(iter(batches))
exports["keras"] = ke.exporters.keras_export(teacher, f"{arguments.output}/keras", features=sample)
latency = ke.bench.ExportLatency(quantize="int8", batch=8, length=64, baseline="keras")
options = {"measure": latency, "data": batches.take(8), "importance": "reconstruction"}
student, report = ke.shrink(teacher, speedup=arguments.speedup, **options)
print(report)
outputs = ke.distillation.cache(teacher, batches, f"{arguments.output}/teacher_outputs")
ke.distill(student, outputs, alpha=0.0, divergence="mse")
finish("student", student, 4e-4)
rich.print(ke.bench.bench(exports, batches=[8], lengths=[64], vocabulary=len(ids)).table())
