"""Export a model of either flavour as a SavedModel, checked before it appears."""

import collections
import contextlib
import dataclasses
import datetime
import json
import math
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

import keras_efficient
from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError, VerificationError
from keras_efficient.distribute._cluster import cluster_of
from keras_efficient.exporters._archive import write_archive
from keras_efficient.exporters._arguments import validate_arguments
from keras_efficient.exporters._destination import check_destination, staged
from keras_efficient.exporters._evaluation import check_drop, scores_in_memory, scores_of
from keras_efficient.exporters._export_report import ExportReport
from keras_efficient.exporters._manifest import write_manifest
from keras_efficient.exporters._signature import Features, described, flat_outputs, trace
from keras_efficient.exporters._verification import check_reference, compare, run_without_keras
from keras_efficient.exporters._warmup import write_warmup
from keras_efficient.exporters.inference_ops.substitution import rounded, substituted_layers
from keras_efficient.exporters.litert.export import export_litert
from keras_efficient.exporters.litert.interpreter import run_litert
from keras_efficient.exporters.tokenizer_ops.text_signature import TEXTS, TextSignature
from keras_efficient.parametrize._parametrized_layer import parametrized_layers, transform_chains
from keras_efficient.parametrize._plain_model import folded_weights


def export(
    model,
    directory,
    *,
    sample,
    quantize=None,
    format="saved_model",
    signatures=None,
    tokenizer=None,
    evaluate=None,
    compress=False,
    facts=None,
    tolerance=None,
    latency=True,
) -> ExportReport:
    """Write `model` as a SavedModel that plain TensorFlow serves, checked in a bare process.

    The SavedModel runs in inference mode, with any batch size and any length, and holds each
    variable once (Keras 3's own `model.export` writes every variable twice). It is written to a
    hidden folder beside its destination, loaded and run by a new process that has no Keras,
    compared with the model in memory, and only then renamed into place: a version is there whole
    and checked, or not at all. No version is ever overwritten.

    Signatures: "tokens" takes what the model takes, "text" strings; "serving_default" is the first
    of them. Inputs of "tokens": the keys of a dict sample; "inputs" for a single tensor; "input_0",
    "input_1", ... for a list. The batch dimension is free, and so is the second dimension of
    integer features, unless the model declares a fixed length. Outputs: a dict's keys; for a single
    tensor "logits" if the model has `num_classes` or `num_labels`, else "outputs"; "output_0", ...
    for a list; a Hugging Face output's entries without its loss. Floats go in and come out as
    float32. "text" takes "text", a string [batch], and gives "probabilities" [batch, classes] and
    "label" [batch] besides.

    Of a model with transforms (`ke.prune`, `ke.lora` and so on) the weights are written as they are
    seen; the model in memory keeps its transforms.

    The served outputs must satisfy, for each float output, `max|served - in memory| <= tolerance *
    max(1, max|in memory|)`. Both sides run on the CPU, on at most 32 examples of the sample.

    Args:
        model: a built Keras 3 or tf_keras model: functional, Sequential, subclassed, KerasHub,
            Hugging Face TF or Model Garden.
        directory: str or path: ".../NAME" writes the next free version, ".../NAME/3" exactly
            version 3, which must not exist.
        sample: a batch as `fit` yields it, at least 1 example: features (tensor, dict or list of
            tensors) or a tuple (features, labels[, sample_weight]).
        quantize: None (default): weights as floats. "int8": kernels and embeddings as integers
            that x86 CPUs multiply as such. "int8-weights": as integers that are multiplied as
            floats, on any device: smaller, not faster. "bfloat16": half the bytes, and multiplied
            in that. Integers are those of `ke.quantize_aware` or `ke.calibrate`, also of 4 bits;
            of a model without, they are made of its weights as they are, and "int8" rounds its
            activations by the range of each batch.
        format: "saved_model" (default), or "litert": one file, `model.tflite`, by TensorFlow's
            converter, checked with ai-edge-litert; "int8-weights" is its dynamic range, "int8" has
            ranges that stay, measured on the sample.
        signatures: tuple of "tokens" and "text". Default: "tokens", and "text" with a tokenizer.
        tokenizer: the model's `data.Tokenizer` (as `ke.models.load` gives it), for "text". Labels
            are those of `facts["labels"]`.
        evaluate: labelled batches `(features, labels)`, or a `ke.exporters.Evaluation` of them: the
            served accuracy may be at most 0.005 below that in memory. Default: none.
        compress: bool, whether to write the version as one file beside it, too. Default False.
        facts: dict or None (default), what the report should know of the training: `accuracy`,
            `examples_per_second`, `seed`, `data_fingerprint`, `labels`, and anything else that JSON
            holds.
        tolerance: float or None (default): 1e-5, and 2e-2 for a model with layers that compute in
            bfloat16 or float16, whose rounding differs between two graphs of the same model.
            "bfloat16": 5e-2. "int8", and any export of a model that rounds its activations: 1e-1,
            since a rounding error next to a tie becomes a whole step. LiteRT: 1e-4, 0.25 and 0.75,
            since its products round more.
        latency: bool, whether to time the SavedModel at batch 1 and 8. Default True.

    Returns:
        An `ExportReport`, also written to `report.json` inside the version.

    Raises:
        InputError: the destination, model, sample, facts or another argument will not do, or this
            machine has no int8 products; found before anything is written, except where the model
            reads state that cannot be written.
        VerificationError: the SavedModel failed or computed something else; the message says by
            how much, and where the refused files are kept.

    Example:
        >>> import tempfile, keras, numpy as np
        >>> import keras_efficient as ke
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> report = ke.export(
        ...     model, tempfile.mkdtemp() + "/tiny", sample=np.ones((1, 3)), latency=False
        ... )
        >>> report.directory.name, list(report.signature["outputs"])
        ('1', ['outputs'])
    """
    asked = validate_arguments(
        model,
        directory,
        quantize=quantize,
        format=format,
        signatures=signatures,
        tokenizer=tokenizer,
        evaluate=evaluate,
        compress=compress,
        facts=facts,
        tolerance=tolerance,
        latency=latency,
    )
    flavor = flavors.of(model)
    write = _write if format == "saved_model" else _write_litert
    cluster = cluster_of(model)
    if cluster is not None and cluster.index > 0:
        # Several workers train one model: the first one's export is the one that stays.
        with tempfile.TemporaryDirectory() as folder:
            return write(flavor, model, Path(folder) / "model", sample, asked)
    report = write(flavor, model, directory, sample, asked)
    if compress:
        write_archive(report.directory)
    return report


def _write(flavor, model, directory, sample, asked):
    version = check_destination(directory, needed_bytes=_needed(flavor, model, asked.quantize))
    features = Features(model, sample)
    batches = asked.evaluate.batches(model) if asked.evaluate is not None else []
    text = None
    if "text" in asked.signatures:
        text = TextSignature(asked.tokenizer, asked.facts.get("labels"), features)
    with contextlib.ExitStack() as stack:
        in_memory = scores_in_memory(flavor, model, batches) if batches else None
        seen_through = _transforms(model)
        # What is written is compared with a model of the same integers.
        stack.enter_context(rounded(model, asked.quantize))
        reference = {"tokens": _reference(flavor, model, features)}
        if text is not None:
            reference["text"] = text.reference(flavor, model)
        # A server gets the weights as they are seen: pruned, clustered, rounded, with their deltas.
        unread = stack.enter_context(substituted_layers(model, asked.quantize))
        stack.enter_context(folded_weights(model))
        module, functions, tokens = _module(flavor, model, unread, features, text, asked)
        with staged(directory, version) as staging:
            tf.saved_model.save(
                module,
                str(staging.path),
                signatures=functions,
                # Gradients of custom ops, for training on: a server has no use for them.
                options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
            )
            with _kept_aside(staging):
                served, measured = run_without_keras(
                    staging.path,
                    features.arrays if "tokens" in asked.signatures else None,
                    texts=TEXTS if text is not None else None,
                    batches=[batch.arrays for batch, _, _ in batches],
                    latency=asked.latency,
                )
                difference = max(
                    compare(
                        reference[name],
                        {output: served[name][output] for output in reference[name]}
                        if name == "text"
                        else served[name],
                        asked.tolerance,
                    )
                    for name in asked.signatures
                )
                evaluation = None
                if batches:
                    evaluation = check_drop(
                        in_memory, served["scores"], batches, asked.evaluate.max_drop
                    )
            _write_beside(staging.path, features, asked)
            serving = functions["serving_default"]
            made = {
                "weight_bytes": sum(map(_bytes, module.weights)) + _constants(tokens),
                "max_abs_difference": difference,
                "tolerance": asked.tolerance,
                "signature": {
                    "inputs": described(serving.structured_input_signature[1]),
                    "outputs": described(serving.structured_outputs),
                },
                **measured,
            }
            recipe = {"signatures": list(asked.signatures), "transforms": seen_through}
            return _published(flavor, model, staging, asked, made, evaluation, recipe)


def _write_litert(flavor, model, directory, sample, asked):
    version = check_destination(directory, needed_bytes=_needed(flavor, model, asked.quantize))
    features = Features(model, sample)
    batches = asked.evaluate.batches(model) if asked.evaluate is not None else []
    in_memory = scores_in_memory(flavor, model, batches) if batches else None
    with staged(directory, version) as staging:
        with _kept_aside(staging):
            written = export_litert(
                model,
                flavor,
                features,
                staging.path,
                quantize=asked.quantize,
                tolerance=asked.tolerance,
            )
            evaluation = None
            if batches:
                served = run_litert(written.file, *(batch.arrays for batch, _, _ in batches))
                found = list(map(scores_of, served))
                evaluation = check_drop(in_memory, found, batches, asked.evaluate.max_drop)
        made = {
            "weight_bytes": written.bytes,
            "max_abs_difference": written.max_abs_difference,
            "tolerance": written.tolerance,
            "signature": written.signature,
        }
        recipe = {"format": "litert", "transforms": _transforms(model)}
        return _published(flavor, model, staging, asked, made, evaluation, recipe)


@contextlib.contextmanager
def _kept_aside(staging):
    """A context after which files that were refused are kept beside the destination."""
    try:
        yield
    except VerificationError as error:
        aside = staging.keep_aside()
        raise VerificationError(f"{error} Nothing was exported; see {aside}.") from error


def _published(flavor, model, staging, asked, made, evaluation, recipe):
    """Write what tells of the version, and let it appear."""
    facts = dict(asked.facts)
    if evaluation is not None and facts.get("accuracy") is None:
        facts["accuracy"] = evaluation["served"]
    report = ExportReport(
        directory=staging.version,
        bytes=sum(f.stat().st_size for f in staging.path.rglob("*") if f.is_file()),
        quantize=asked.quantize,
        evaluation=evaluation,
        versions=_versions(flavor, model),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **made,
        **{name: facts.pop(name) for name in _KNOWN_FACTS if name in facts},
        facts=facts,
    )
    (staging.path / "report.json").write_text(report.to_json(), encoding="utf-8")
    recipe = {"format": "saved_model", "quantize": asked.quantize} | recipe
    write_manifest(staging.path, report=report, recipe=recipe)
    # A lost race moves it on to the next version.
    return dataclasses.replace(report, directory=staging.publish())


def _module(flavor, model, unread, features, text, asked):
    """What is saved: a module with all that is read, its functions by signature, and the one of
    tokens."""

    def serve(**tensors):
        return flat_outputs(model, flavor.call(model, features.restore(tensors), training=False))

    # tf_keras leaves a choice on a tensor's value to AutoGraph; Keras 3 does not use it.
    tokens = trace(serve, features, autograph=flavor.uses_autograph)
    # (Of what stands in, only what is read.)
    weights = [] if asked.quantize else _served(flavor, model, unread)
    module = tf.Module()
    module.weights = weights + _other_state(tokens, weights)
    functions = {"tokens": tokens}
    if text is not None:
        module.text = text.function(tokens)
        functions["text"] = module.text.get_concrete_function()
    functions = {name: functions[name] for name in asked.signatures}
    functions = {"serving_default": functions[asked.signatures[0]]} | functions
    return module, functions, tokens


def _constants(function):
    """Bytes of the arrays in a graph: scales, biases. (Small ones are shapes and the like.)"""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    sizes = [len(n.attr["value"].tensor.tensor_content) for n in nodes if n.op == "Const"]
    return sum(size for size in sizes if size >= 256)


def _write_beside(folder, features, asked):
    """The files that travel with the SavedModel."""
    for name in ("serving_default", *asked.signatures):
        name_of = asked.signatures[0] if name == "serving_default" else name
        arrays = {"text": list(TEXTS)} if name_of == "text" else features.arrays
        write_warmup(folder, name, arrays)
    labels = asked.facts.get("labels")
    if labels:
        assets = folder / "assets.extra"
        assets.mkdir(exist_ok=True)
        (assets / "labels.json").write_text(json.dumps(labels), encoding="utf-8")


def _transforms(model):
    """What is on the model's weights and layers, for the recipe."""
    found = collections.Counter(
        t.describe() for chain in transform_chains(model) for t in chain.transforms
    )
    found.update(
        part.describe() for view in parametrized_layers(model) for part in view.call_wrappers
    )
    return dict(sorted(found.items()))


def _needed(flavor, model, quantize):
    share = {"int8": 0.3, "int8-weights": 0.3, "bfloat16": 0.6}.get(quantize, 1.0)
    return int(share * sum(map(_bytes, flavor.weights(model))))


_KNOWN_FACTS = ("accuracy", "examples_per_second", "seed", "data_fingerprint")


def _served(flavor, model, unread):
    """The model's weights without what transforms of weights keep: those are folded in.

    (What adapters and prefixes keep is read by the graph, and written with it.)
    """
    kept = {
        id(flavor.value(v))
        for view in parametrized_layers(model)
        if view.store
        for v in view.store.weights
    }
    kept |= set(map(id, unread))
    return [weight for weight in flavor.weights(model) if id(weight) not in kept]


def _bytes(variable):
    return variable.dtype.size * math.prod(variable.shape)


def _reference(flavor, model, features):
    """What the model in memory computes on the sample, eagerly, on the CPU."""
    with tf.device("CPU:0"):
        tensors = {name: tf.constant(array) for name, array in features.arrays.items()}
        try:
            outputs = flavor.call(model, features.restore(tensors), training=False)
        except Exception as error:
            shapes = {name: (str(x.dtype), x.shape) for name, x in features.arrays.items()}
            raise InputError(
                "The model must run on the sample's features. Received (dtype and shape by "
                f"feature): {shapes}, on which it raised {type(error).__name__}: {error}. Give a "
                "batch as `fit` yields it: features, or a tuple (features, labels)."
            ) from error
        reference = {name: value.numpy() for name, value in flat_outputs(model, outputs).items()}
    check_reference(reference)
    return reference


def _other_state(function, weights):
    """The variables, other than weights, that `function` reads.

    Raises:
        InputError: it reads something that is no variable, such as a look-up table, which a
            module of variables does not write.
    """
    # A mirrored variable is read as one of its replicas, and written as itself, once.
    known = {id(x) for variable in weights for x in (variable, *_replicas(variable))}
    others = [variable for variable in function.graph.variables if id(variable) not in known]
    written = [
        replica.handle for variable in (*weights, *others) for replica in _replicas(variable)
    ]
    handles = {id(handle) for handle in written}
    lost = [
        inner.name
        for outer, inner in function.graph.captures
        if outer.dtype == tf.resource and id(outer) not in handles
    ]
    if lost:
        raise InputError(
            "An exported model may read nothing but variables and constants. Received: "
            f"a model that reads {lost} (a look-up table, an iterator or the like). Do that "
            "step before the model, or build it from variables."
        )
    return others


def _replicas(variable):
    # A mirrored variable has no handle of its own outside a replica.
    return getattr(variable, "values", (variable,))


def _versions(flavor, model):
    roots = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    libraries = {flavor.name: flavor.keras}
    libraries |= {
        name: sys.modules[name] for name in ("keras_hub", "transformers") if name in roots
    }
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        **{name: library.__version__ for name, library in libraries.items()},
        "keras_efficient": keras_efficient.__version__,
    }
