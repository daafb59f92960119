"""Latency, bytes and accuracy of MiniLM in fifteen formats, in one interleaved run.

    python benchmarks/serving.py [--quick] [--threads N] [--json FILE] [--plot [FILE]]

Movie reviews, sentiment. MiniLM is trained briefly, calibrated on 256 training reviews, and written
by Keras' own `model.export`, by `ke.export` as float32, bfloat16, int8 weights and int8, and as
LiteRT and ONNX files in float and dynamic int8; and of Keras' own export by the LiteRT converter as
float and as dynamic int8, by tf2onnx as float and, quantized by ONNX Runtime, as dynamic int8, and
from the ONNX file by OpenVINO as float and, quantized by NNCF on the same 256 reviews, as int8.
`ke.bench.bench` then times them in turns at batches 1, 8 and 32 and lengths 32, 64 and 128, equal
and mixed ones, and measures accuracy on the same held-out reviews.

`--quick` trains on 1,280 reviews (else 3,200), times batches 1 and 8 at length 64, and measures
accuracy on 800 of the 1,605 held-out reviews. The JSON has {"speedup": {format: {case: latency of
keras_export / its latency}}, "processor_speedup": the same of processor times, "bytes_ratio":
{format: bytes on disk / (4 · parameters)}, "accuracy_drop": {format: accuracy of the Keras model
minus its accuracy, in points of percent}, "cpu": name of the CPU, "threads": threads}.

Training and writing have processes of their own. Nothing is kept, unless `--folder` names a folder,
in which a second run finds the formats of the first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LONGEST, BATCH, RATE = 64, 32, 1e-4
VOCABULARY = 30522
PLOT = Path(__file__).parent.parent / "docs" / "images" / "serving.png"


def reviews():
    """Training reviews, held-out reviews."""
    import keras_efficient as ke

    records = ke.data.read_records(ke.data.demo_reviews())
    return ke.data.split(records, validation=1605, stratify=False)


def data(quick):
    """The reviews that are used."""
    train, test = reviews()
    train = train.take(range(1280 if quick else 3200))
    return train, test.take(range(800)) if quick else test


def train(folder, quick):
    """Train in the quickest precision here, and keep the weights."""
    import keras_efficient as ke

    ke.mixed_precision("auto")
    model, tokenizer = ke.models.load(ke.data.demo_model(), seed=0)
    keras = ke.flavor.of(model).keras
    keras.utils.set_random_seed(0)
    batches = ke.data.text(data(quick)[0], tokenizer, batch_size=BATCH, max_length=LONGEST, seed=0)
    total = 2 * batches.stats.batches
    rate = ke.schedules.warmup_linear(RATE, warmup_steps=total // 10, total_steps=total)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY), loss, jit_compile=False
    )
    model.fit(batches, epochs=2, verbose=0, shuffle=False)
    model.save_weights(folder / "trained.weights.h5")


def write(folder, quick, allow_missing):
    """Write all formats; `made.json` says where they are."""
    import numpy as np

    import keras_efficient as ke
    from keras_efficient._errors import InputError, VerificationError

    ke.mixed_precision("float32")
    model, tokenizer = ke.models.load(ke.data.demo_model(), seed=0)
    model.load_weights(folder / "trained.weights.h5")
    parameters = model.count_params()
    train, held_out = data(quick)
    (features, labels), *_ = ke.data.text(
        held_out, tokenizer, batch_size=len(held_out), max_length=LONGEST, shuffle=False
    )
    arrays = {name: np.asarray(value) for name, value in features.items()}
    np.savez(folder / "held_out.npz", labels=np.asarray(labels), **arrays)
    calibration = ke.data.text(
        train.take(range(256)), tokenizer, batch_size=BATCH, max_length=LONGEST, seed=0
    )
    sample = next(iter(calibration))
    logits = model.predict(arrays, batch_size=BATCH, verbose=0)
    made = {
        "accuracy": float((logits.argmax(-1) == np.asarray(labels)).mean()),
        "parameters": parameters,
        "paths": {},
    }
    # What a run that was interrupted has written is kept.
    progress = folder / "written.json"
    if progress.exists():
        made["paths"] = json.loads(progress.read_text())

    def own(name, quantize):
        target = folder / name
        return ke.export(model, target, sample=sample, quantize=quantize, latency=False).directory

    def by_keras():
        model.export(folder / "keras_export", verbose=False)
        return folder / "keras_export"

    def own_file(format, quantize):
        name = f"own_{format}_{quantize}"
        made = ke.export(model, folder / name, sample=sample, quantize=quantize, format=format)
        return made.directory

    def calibrated_int8():
        ke.calibrate(model, calibration)
        return own("int8", "int8")

    makers = {
        "keras_export": by_keras,
        "fp32": lambda: own("fp32", None),
        "bfloat16": lambda: own("bfloat16", "bfloat16"),
        "litert_float": lambda: litert(made["paths"]["keras_export"], folder / "float.tflite"),
        "litert_int8": lambda: litert(
            made["paths"]["keras_export"], folder / "int8.tflite", dynamic=True
        ),
        "ort_float": lambda: onnx(made["paths"]["keras_export"], folder / "float.onnx"),
        "ort_int8": lambda: onnx_int8(made["paths"]["ort_float"], folder / "int8.onnx"),
        "openvino_float": lambda: openvino(made["paths"]["ort_float"], folder / "float.xml"),
        "openvino_int8": lambda: openvino(
            made["paths"]["ort_float"], folder / "int8.xml", calibration
        ),
        "own_litert_float": lambda: own_file("litert", None),
        "own_litert_int8": lambda: own_file("litert", "int8-weights"),
        "own_onnx_float": lambda: own_file("onnx", None),
        "own_onnx_int8": lambda: own_file("onnx", "int8-weights"),
        # Before the calibration: a calibrated model rounds the inputs of its layers in any format.
        "int8_weights": lambda: own("int8_weights", "int8-weights"),
        "int8": calibrated_int8,
    }
    for name, make in makers.items():
        if name in made["paths"]:
            continue
        start = time.perf_counter()
        try:
            made["paths"][name] = str(make())
        except ImportError as error:
            # A peer whose converter is not installed.
            print(f"{name}: missing. {error}", file=sys.stderr)
        except (InputError, VerificationError) as error:
            if not allow_missing:
                raise
            print(f"{name}: missing. {error}", file=sys.stderr)
        else:
            print(f"{name}: written, {time.perf_counter() - start:.0f} s", file=sys.stderr)
            progress.write_text(json.dumps(made["paths"]))
    (folder / "made.json").write_text(json.dumps(made))


def litert(saved_model, file, dynamic=False):
    """Keras' own SavedModel, by the converter of LiteRT."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(saved_model), signature_keys=["serving_default"]
    )
    if dynamic:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    file.write_bytes(converter.convert())
    return file


def onnx(saved_model, file):
    """The function of Keras' own SavedModel, by tf2onnx."""
    import tensorflow as tf
    import tf2onnx

    # Keep a reference to the model: its function alone does not keep its variables alive.
    model = tf.saved_model.load(saved_model)
    serve = model.signatures["serving_default"]
    specs = [
        tf.TensorSpec(spec.shape, spec.dtype, name=name)
        for name, spec in serve.structured_input_signature[1].items()
    ]

    @tf.function(input_signature=specs)
    def function(*values):
        return serve(**{spec.name: value for spec, value in zip(specs, values, strict=True)})

    tf2onnx.convert.from_function(
        function,
        input_signature=specs,
        opset=17,
        output_path=str(file),
        custom_op_handlers={"Erfc": (erfc, [])},
    )
    return file


def erfc(graph, node, name, _):
    """tf2onnx 1.17 has no Erfc, which is in TensorFlow's GELU as erfc(-x · √½).

    It becomes 1 + erf(x / √2), in the nodes of which ONNX Runtime makes one GELU.
    """
    import numpy as np

    negative = next(source for source in node.inputs[0].inputs if source.type == "Neg")
    shape, dtype = graph.get_shape(node.output[0]), graph.get_dtype(node.output[0])
    one = graph.make_const(f"{name}/one", np.array(1, "float32"))
    root = graph.make_const(f"{name}/root", np.array(2**0.5, "float32"))
    graph.remove_node(node.name)
    scaled = graph.make_node("Div", [negative.input[0], root.output[0]])
    erf = graph.make_node("Erf", scaled.output)
    graph.make_node(
        "Add",
        [erf.output[0], one.output[0]],
        name=node.name,
        outputs=node.output,
        shapes=[shape],
        dtypes=[dtype],
    )


def onnx_int8(source, file):
    """Quantized by ONNX Runtime, so that it rounds all products with weights.

    tf2onnx writes those of Q, K and V as Gemm with beta = 0, and no third input that it would be
    for. ONNX Runtime leaves such ones in floats; with beta = 1 they are the same to all others.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as scratch:
        prepared = f"{scratch}/prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        for node in model.graph.node:
            if node.op_type == "Gemm" and len(node.input) == 2:
                next(a for a in node.attribute if a.name == "beta").f = 1.0
        onnx.save(model, prepared)
        quantize_dynamic(prepared, file, weight_type=QuantType.QInt8)
    return file


def openvino(source, file, calibration=None):
    """Converted by OpenVINO; with calibration data, quantized by NNCF as it does Transformers."""
    import numpy as np
    import openvino

    model = openvino.convert_model(source)
    if calibration is not None:
        import nncf

        examples = [
            {name: np.asarray(value[row : row + 1]) for name, value in features.items()}
            for features, labels in calibration
            for row in range(len(labels))
        ]
        data = nncf.Dataset(examples)
        kind = nncf.ModelType.TRANSFORMER
        model = nncf.quantize(model, data, model_type=kind, subset_size=len(examples))
    openvino.save_model(model, file, compress_to_fp16=False)
    return file


#: In the order of the table.
FORMATS = (
    *("keras_export", "fp32", "bfloat16", "int8_weights", "int8"),
    *("litert_float", "litert_int8", "ort_float", "ort_int8"),
    *("openvino_float", "openvino_int8"),
    *("own_litert_float", "own_litert_int8", "own_onnx_float", "own_onnx_int8"),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two cases, within 10 minutes")
    parser.add_argument("--threads", type=int, default=1, help="of one operation [1]")
    parser.add_argument("--seconds", type=float, default=None, help="per format and case [4]")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, nargs="?", const=PLOT, help=f"PNG [{PLOT}]")
    parser.add_argument("--folder", type=Path, help="keep the formats here, and take them up")
    parser.add_argument("--allow-missing", action="store_true", help="go on without a format")
    parser.add_argument("--part", choices=("train", "write"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part == "train":
        return train(arguments.folder, arguments.quick)
    if arguments.part == "write":
        return write(arguments.folder, arguments.quick, arguments.allow_missing)
    with tempfile.TemporaryDirectory() as scratch:
        # The two trained models differ.
        folder = (arguments.folder or Path(scratch)).absolute() / (
            "quick" if arguments.quick else "full"
        )
        folder.mkdir(parents=True, exist_ok=True)
        for part, product in (("train", "trained.weights.h5"), ("write", "made.json")):
            if not (folder / product).exists():
                command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
                command += ["--quick"] * arguments.quick
                command += ["--allow-missing"] * arguments.allow_missing
                start = time.perf_counter()
                subprocess.run(command, check=True)
                print(f"{part}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        measure(folder, arguments)


def measure(folder, arguments):
    from rich.console import Console

    from keras_efficient.bench import bench

    made = json.loads((folder / "made.json").read_text())
    report = bench(
        {name: made["paths"][name] for name in FORMATS if name in made["paths"]},
        batches=(1, 8) if arguments.quick else (1, 8, 32),
        lengths=(64,) if arguments.quick else (32, 64, 128),
        threads=arguments.threads,
        seconds=arguments.seconds or 4.0,
        vocabulary=VOCABULARY,
        data=folder / "held_out.npz",
        mixed=True,
    )
    Console(width=110).print(report.table())
    print(f"Accuracy of the Keras model: {made['accuracy']:.2%}")
    if arguments.plot:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        report.plot(arguments.plot)
    figures = {
        "speedup": report.speedup("keras_export"),
        "processor_speedup": report.speedup("keras_export", "processor_ms"),
        "cpu": report.cpu,
        "threads": arguments.threads,
        "bytes_ratio": {
            n: t["bytes"] / (4 * made["parameters"]) for n, t in report.targets.items()
        },
        "accuracy_drop": {
            n: 100 * (made["accuracy"] - t["accuracy"]) for n, t in report.targets.items()
        },
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
