"""Script that loads one exported model in a process without Keras, and runs it on request.

Run as `python -P _runner_script.py`. It imports the standard library, NumPy, `_bare_process` and
the runtime that the model needs. It reads one JSON request a line from its standard input and
answers each with one line: {"load": path, "kind": "saved_model" | "litert" | "onnx" |
"openvino", "threads": n}
first, then {"run": npz, "to": npz} and {"time": npz, "calls": n, "seconds": s}.
"""

import json
import os
import sys
import traceback
from pathlib import Path

# At the end of the path, where the folder shadows nothing.
sys.path.append(str(Path(__file__).resolve().parents[2]))
from keras_efficient.runtime._bare_process import (
    block_imports,
    end_with_parent,
    load_arrays,
    time_calls,
)


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # Output of libraries to standard output must not get between the answers.
    os.dup2(2, 1)
    end_with_parent()
    block_imports()
    model, cases = None, {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "load" in request:
                model = LOADERS[request["kind"]](request["load"], request["threads"])
                answer = {"inputs": model.inputs, "outputs": model.outputs}
            elif "run" in request:
                answer = run(model, request)
            else:
                answer = time_case(model, cases, request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": one_line(error), "lines": str(error).strip().splitlines()[-12:]}
        print(json.dumps(answer), file=answers)


def one_line(error):
    """Return type and reason of an exception as one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith("[[")] or [""]
    # TensorFlow's messages start with "Graph execution error:" and end with the reason.
    text = f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") and lines[1:] else lines[0]
    return f"{type(error).__name__}: {text}"


def run(model, request):
    import numpy as np

    outputs = model.call(model.prepare(load_arrays(request["run"])))
    np.savez(request["to"], **outputs)
    return {}


def time_case(model, cases, request):
    """Return durations and processor times in milliseconds, after a call that is not timed.

    The first call refills the caches, which other processes have used meanwhile. At least one call
    is timed, and none starts after the given seconds.
    """
    inputs = cases.get(request["time"])
    if inputs is None:
        inputs = cases[request["time"]] = model.prepare(load_arrays(request["time"]))
    model.call(inputs)
    times, processor = time_calls(lambda: model.call(inputs), request["calls"], request["seconds"])
    return {"times": times, "processor": processor}


def select_inputs(inputs, values):
    """Return the arrays for a model's inputs, in its order and dtypes."""
    missing = [name for name in inputs if name not in values]
    if missing:
        raise ValueError(f"no array for the inputs {missing}; there are {sorted(values)}")
    return {name: values[name].astype(spec["dtype"]) for name, spec in inputs.items()}


class SavedModel:
    def __init__(self, path, threads):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self._tf, self._model = tf, tf.saved_model.load(path)
        self._serve = self._model.signatures["serving_default"]
        self.inputs = {
            name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
            for name, spec in self._serve.structured_input_signature[1].items()
        }
        self.outputs = list(self._serve.structured_outputs)

    def prepare(self, values):
        values = select_inputs(self.inputs, values)
        return {name: self._tf.constant(value) for name, value in values.items()}

    def call(self, inputs):
        return {name: value.numpy() for name, value in self._serve(**inputs).items()}


class LiteRT:
    def __init__(self, path, threads):
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=path, num_threads=threads)
        # Fails for files without a signature, which other converters may write.
        self._runner = self._interpreter.get_signature_runner()
        self.inputs = {
            name: {
                "dtype": detail["dtype"].__name__,
                "shape": [None if n < 0 else int(n) for n in detail["shape_signature"]],
            }
            for name, detail in self._runner.get_input_details().items()
        }
        self.outputs = list(self._runner.get_output_details())

    def prepare(self, values):
        return select_inputs(self.inputs, values)

    def call(self, inputs):
        # The runner resizes its inputs to those of the arrays, and copies its outputs.
        return self._runner(**inputs)


class Onnx:
    def __init__(self, path, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Threads that spin between calls would slow down the other processes.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        dtypes = {"tensor(float)": "float32", "tensor(double)": "float64"}
        self.inputs = {
            value.name: {
                "dtype": dtypes.get(value.type, value.type.removeprefix("tensor(")[:-1]),
                "shape": [n if isinstance(n, int) else None for n in value.shape],
            }
            for value in self._session.get_inputs()
        }
        self.outputs = [value.name for value in self._session.get_outputs()]

    def prepare(self, values):
        return select_inputs(self.inputs, values)

    def call(self, inputs):
        return dict(zip(self.outputs, self._session.run(None, inputs), strict=True))


class OpenVino:
    def __init__(self, path, threads):
        import openvino

        # Floats are computed as such; by default CPUs with AMX compute them in bfloat16.
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        self._model = openvino.Core().compile_model(path, "CPU", settings)
        self.inputs = {
            value.get_any_name(): {
                "dtype": value.get_element_type().to_dtype().name,
                "shape": [n.get_length() if n.is_static else None for n in value.partial_shape],
            }
            for value in self._model.inputs
        }
        self.outputs = [value.get_any_name() for value in self._model.outputs]

    def prepare(self, values):
        return select_inputs(self.inputs, values)

    def call(self, inputs):
        results = self._model(inputs)
        return {name: results[name] for name in self.outputs}


LOADERS = {"saved_model": SavedModel, "litert": LiteRT, "onnx": Onnx, "openvino": OpenVino}


if __name__ == "__main__":
    main()
