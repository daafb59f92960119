"""Script that runs a text signature of a SavedModel in a process without Keras.

Run as `python -P _predict_script.py FOLDER`. FOLDER holds `request.json` ({"saved_model": path,
"signature": name, "texts": {name of an input: [...]}, "serves": [names of outputs]}); the script
adds `result.json`, which is {"outputs": {name: [...]}} or {"error": why}.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path

# At the end of the path, where the folder shadows nothing.
sys.path.append(str(Path(__file__).resolve().parents[2]))
from keras_efficient.runtime._bare_process import block_imports, end_with_parent

BATCH = 32


def main(folder):
    folder = Path(folder)
    end_with_parent(folder)
    block_imports(("keras", "tf_keras"))
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    names = ("signature", "texts", "serves")
    result = predict(Path(request["saved_model"]), *(request[name] for name in names))
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def predict(path, signature, texts, serves):
    """Check the graph, load it and run the signature; return the content of `result.json`."""
    from keras_efficient._errors import InputError
    from keras_efficient.serving._check_graph import check_graph

    try:
        ops = check_graph(path)
        load_text_ops(path, ops)
    except InputError as error:
        return {"error": str(error)}
    import tensorflow as tf

    try:
        # The loaded object must stay alive: it owns the variables that the signature reads.
        model = tf.saved_model.load(str(path))
        serve = model.signatures.get(signature)
        problem = signature_error(serve, signature, list(model.signatures), list(texts), serves)
        if problem:
            return {"error": problem}
        # A single input may have any name.
        names = list(serve.structured_input_signature[1]) if len(texts) == 1 else list(texts)
        outputs = {name: [] for name in serves}
        columns = list(texts.values())
        for start in range(0, len(columns[0]), BATCH):
            batch = (tf.constant(column[start : start + BATCH]) for column in columns)
            out = serve(**dict(zip(names, batch, strict=True)))
            for name in serves:
                outputs[name] += plain(out[name].numpy())
    except Exception as error:
        # A damaged model can make TensorFlow raise any exception.
        text = str(error).strip() or "no message"
        if asserted := re.search(r"assertion failed: \[(This SavedModel .*?)\]\s+\[", text):
            # The model's own check of this CPU or of the texts says what to do.
            return {"error": f"{asserted[1][:500]} ({path})"}
        why = text.splitlines()[0][:300]
        return {
            "error": f"A version must load and run in TensorFlow. Received: {path}, which raised "
            f"{type(error).__name__}: {why}. Copy the version again, or export it again."
        }
    return {"outputs": outputs}


def plain(array):
    """Return an array as lists of numbers or strings."""
    if array.dtype.kind != "O":
        return (array.astype("float64") if array.dtype.kind == "f" else array).tolist()
    return [x.decode("utf-8", "replace") if isinstance(x, bytes) else plain(x) for x in array]


def load_text_ops(path, ops):
    """Register the ops of tensorflow-text, if the graph has any.

    The libraries are loaded directly, because importing tensorflow-text imports Keras.
    """
    import tensorflow as tf
    from tensorflow.python.framework import op_def_registry

    from keras_efficient._errors import InputError

    if not (unknown := [op for op in sorted(ops) if op_def_registry.get(op) is None]):
        return
    found = importlib.util.find_spec("tensorflow_text")
    for folder in (found.submodule_search_locations or ()) if found else ():
        for library in sorted(Path(folder, "python", "ops").glob("*.so")):
            tf.load_op_library(str(library))
    if unknown := [op for op in unknown if op_def_registry.get(op) is None]:
        missing = "with tensorflow-text" if found else "and tensorflow-text is not installed"
        raise InputError(
            f"TensorFlow must know every op of the graph. Received: {path}, with the op "
            f"{unknown[0][:80]!r}, which it does not {missing}. Run `pip install "
            "tensorflow-text`, in the version of TensorFlow that the model's manifest names."
        )


def signature_error(serve, signature, names, wanted_inputs, serves):
    """Return why this signature does not give the outputs `serves` for texts, or None if it does.

    Args:
        serve: the signature's function, or None.
        signature: its name.
        names: those of all signatures.
        wanted_inputs: names of the texts of an example; a single one may have another name.
        serves: names of outputs.
    """
    import tensorflow as tf

    shown = ", ".join(sorted(names)) or "none"
    if serve is None:
        return (
            f"The SavedModel must have a signature {signature!r}, which takes texts. Received: one "
            f"with the signatures {shown}. Export it with tokenizer= (and labels=), or name "
            "another by --signature."
        )
    inputs = list(serve.structured_input_signature[1].values())
    outputs = serve.structured_outputs
    texts = len(wanted_inputs)
    named = texts == 1 or set(serve.structured_input_signature[1]) == set(wanted_inputs)
    if (
        [spec.dtype for spec in inputs] != [tf.string] * texts
        or not named
        or set(serves) - set(outputs)
    ):
        kinds = f"the inputs {' and '.join(map(repr, wanted_inputs))}"
        kinds = "one input" if texts == 1 else kinds
        wanted = " and ".join(map(repr, sorted(serves)))
        return (
            f"A signature that takes texts must have {kinds} of strings, and the outputs {wanted}. "
            f"Received: {signature!r}, with the inputs {[spec.name for spec in inputs]} and the "
            f"outputs {sorted(outputs)}. Export the model with tokenizer=, or name another "
            f"signature (of {shown}) by --signature."
        )
    return None


if __name__ == "__main__":
    main(sys.argv[1])
