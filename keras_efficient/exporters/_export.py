"""`export`: write a model as a SavedModel, LiteRT or ONNX file, verified before it is published."""

import collections
import contextlib
import dataclasses
import datetime
import errno
import functools
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import keras_efficient
from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError, VerificationError
from keras_efficient.compression._activation_quantization import unrounded_inputs
from keras_efficient.distribute._cluster import cluster_of
from keras_efficient.exporters._archive import write_archive
from keras_efficient.exporters._arguments import validate_arguments
from keras_efficient.exporters._destination import check_destination, is_full, staged
from keras_efficient.exporters._evaluation import check_drop, scores_in_memory
from keras_efficient.exporters._export_report import ExportReport
from keras_efficient.exporters._flat_form import flat_form
from keras_efficient.exporters._generate_signature import GenerateSignature
from keras_efficient.exporters._manifest import write_manifest
from keras_efficient.exporters._signature import Features, describe_specs, flat_outputs, trace
from keras_efficient.exporters._storage import storage_of
from keras_efficient.exporters._verification import check_reference, compare, run_without_keras
from keras_efficient.exporters._warmup import write_warmup
from keras_efficient.exporters.inference_ops.cpu_check import CpuCheck
from keras_efficient.exporters.inference_ops.loaded_tensor import (
    LoadedTensorInitializer,
    encodings_of,
    loaded_tensors,
)
from keras_efficient.exporters.inference_ops.substitution import rounded, substituted_layers
from keras_efficient.exporters.litert.export import export_litert
from keras_efficient.exporters.litert.interpreter import run_litert
from keras_efficient.exporters.onnx.export import export_onnx
from keras_efficient.exporters.onnx.session import run_onnx
from keras_efficient.exporters.tokenizer_ops.text_signature import TextSignature
from keras_efficient.flavor import Model
from keras_efficient.parametrize._parametrized_layer import parametrized_layers, transform_chains
from keras_efficient.parametrize._plain_model import folded_weights


def export(
    model: Model,
    directory: str | os.PathLike,
    *,
    sample: Any,
    quantize: str | None = None,
    format: str = "saved_model",
    signatures: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    labels: Sequence[str] | None = None,
    task: Any = None,
    evaluate: Any = None,
    compress: bool = False,
    facts: Mapping[str, Any] | None = None,
    tolerance: float | None = None,
    latency: bool = True,
    target: str | None = None,
) -> ExportReport:
    """Write a model as a SavedModel that TensorFlow serves without Keras, and verify it.

    The SavedModel runs in inference mode, for any batch size and any length, and holds each
    variable once; Keras 3's own `model.export` writes every variable twice. It is written to a
    hidden folder beside its destination, loaded and run by a separate process that has no Keras,
    compared with the model in memory, and only then renamed. So a version is complete and verified,
    or it does not exist. Versions are never overwritten.

    The signature "tokens" takes the model's features, the signature "text" takes strings, and
    "serving_default" is the first of those exported. Inputs of "tokens" are called like the keys of
    a dict sample; "inputs" for a single tensor; "input_0", "input_1" and so on for a list. The
    batch size is free, and so is the second dimension of integer and bool features, unless the
    model declares a fixed length. Outputs are called like the keys of a dict; "logits" for the
    single output of a model with `num_classes` or `num_labels`, "outputs" for that of others;
    "output_0" and so on for a list; and like the entries of a Hugging Face output, without its
    loss. Float inputs and outputs are float32. "text" takes "text", string [batch], and for pairs
    of texts "second_text", and adds the outputs of the task: for classification "probabilities",
    float32 [batch, classes], and "label", string [batch]. "generate" is for tasks that generate
    texts: it takes token ids and their mask, int32 [batch, tokens], and answers as "text" does.

    Transforms of weights (`ke.prune`, `ke.lora` and so on) are folded into the written weights. The
    model in memory keeps its transforms. A SavedModel stores kernels and embeddings of at most 256
    different numbers (`ke.cluster`, 4 bits) as indices of as few bits as possible, and those with
    many zeros (`ke.prune`) as a bitmap and the other numbers, if that saves a fifth of the bytes.
    They are decoded once, when the SavedModel is loaded, to the same numbers.

    Verification requires of each float output `max|served - in memory| <= tolerance * max(1, max|in
    memory|)`. Both run on the CPU, on at most 32 examples of the sample.

    Args:
        model: a built Keras 3 or tf_keras model: functional, Sequential, subclassed, KerasHub,
            Hugging Face TF or Model Garden.
        directory: str or path. ".../NAME" writes the next free version, ".../NAME/3" writes version
            3, which must not exist.
        sample: a batch as `fit` takes it, with at least 1 example: features (tensor, dict or list
            of tensors) or a tuple (features, labels[, sample_weight]).
        quantize: None: weights as floats. "int8": kernels and embeddings as integers, multiplied as
            integers on x86 CPUs. "int8-weights": as integers that are converted to floats when the
            SavedModel is loaded, once, on any device. "bfloat16": stored and multiplied in
            bfloat16. The integers are those of `ke.quantize_aware` or `ke.calibrate`, stored in 8
            or 4 bits. Other models are quantized as they are; "int8" then rounds inputs of layers
            in the ranges that they have on the sample, and warns. Default: None.
        format: "saved_model"; "litert": one file, `model.tflite`, written by TensorFlow's
            converter and verified with ai-edge-litert; or "onnx": one file, `model.onnx`, written
            by tf2onnx and verified with ONNX Runtime. In files "int8-weights" means dynamic range
            quantization, and "int8" fixed ranges measured on the sample. "auto": all of them, in
            ".../NAME/FORMAT/1", timed on this machine; see `ke.exporters.export_fastest`. Default:
            "saved_model".
        signatures: "tokens", "text", "generate" or a tuple of some. Default: None, which is
            "tokens", and with a tokenizer "text" too; for a task that generates texts with a
            tokenizer that no graph can hold, "generate" in its place.
        tokenizer: the model's `data.Tokenizer`, as `ke.models.load` returns it, for the signature
            "text". Default: None.
        labels: names of the classes, in the order of the logits. They are written into the version,
            the signature "text" answers with them, and reports show them. Default: None, which is
            `facts["labels"]` if given, otherwise the numbers of the classes.
        task: name of the task of the model, or a `ke.tasks.Task`: it answers in the signature
            "text", and `evaluate` compares its score. Default: None, "classification".
        evaluate: labelled batches `(features, labels)`, or a `ke.exporters.Evaluation` of them: the
            served accuracy, or other score of the task, may be at most 0.005 below that in memory.
            Default: None, it is not measured.
        compress: bool, whether to also pack the version into an archive beside it. Default: False.
        facts: dict of facts about the training for the report: `accuracy`, `examples_per_second`,
            `seed`, `data_fingerprint`, `quality` (the report of an evaluation, such as a
            `ke.metrics.ClassificationReport`), and any other JSON values. Default: None.
        tolerance: float. Default: None, which is 1e-5; 2e-2 for a model with layers that compute in
            bfloat16 or float16, which round differently in two graphs of the same model; 5e-2 for
            "bfloat16"; 1e-1 for "int8" and for any model that quantizes its activations, where a
            rounding error beside a tie becomes a whole quantization step; for "int8" twice the
            difference that rounding the inputs of layers makes in memory, if that is more. For
            LiteRT, whose products round more: 1e-4 in float32, 0.25 for "int8-weights" and 0.75 for
            "int8". For ONNX: 1e-4, 0.25 and 0.5.
        latency: bool, whether to time the SavedModel at batch sizes 1 and 8. Default: True.
        target: the CPUs that will run an export with quantize="int8": "vnni" or "amx", which add
            products of 8 bits in 32; or "avx2", which adds two of them in 16, so that kernels of 8
            bits are rounded to 7. What is exported for "avx2" runs on all of them. What is exported
            for the others checks the CPU when it is loaded, and fails where sums saturate. Default:
            None, which is this machine's, or "avx2" if the kernels have fewer than 8 bits already
            (`reduce_range=True`).

    Returns:
        An `ExportReport`, also written to `report.json` in the version; with format="auto" that of
        the fastest format.

    Raises:
        InputError: an argument is invalid, or this machine cannot run what it asks for. Nothing has
            been written then, except if the model reads state that cannot be saved.
        VerificationError: the SavedModel failed or its outputs differ; the message says by how much
            and where the refused files are kept.

    Examples:
        >>> import tempfile, keras, numpy as np
        >>> import keras_efficient as ke
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> report = ke.export(
        ...     model, tempfile.mkdtemp() + "/tiny", sample=np.ones((1, 3)), latency=False
        ... )
        >>> report.directory.name, list(report.signature["outputs"])
        ('1', ['outputs'])

    Reference:
        TensorFlow, "Using the SavedModel format": https://www.tensorflow.org/guide/saved_model
    """
    if format == "auto":
        # It exports by this function.
        from keras_efficient.exporters._export_fastest import export_fastest

        return export_fastest(
            model,
            directory,
            sample=sample,
            quantize=quantize,
            signatures=signatures,
            tokenizer=tokenizer,
            labels=labels,
            task=task,
            evaluate=evaluate,
            compress=compress,
            facts=facts,
            tolerance=tolerance,
            latency=latency,
            target=target,
        )
    arguments = validate_arguments(
        model,
        directory,
        quantize=quantize,
        format=format,
        signatures=signatures,
        tokenizer=tokenizer,
        labels=labels,
        task=task,
        evaluate=evaluate,
        compress=compress,
        facts=facts,
        tolerance=tolerance,
        latency=latency,
        target=target,
    )
    flavor = flavors.of(model)
    write = _write if format == "saved_model" else functools.partial(_write_file, format)
    cluster = cluster_of(model)
    if cluster is not None and cluster.index > 0:
        # Several workers train one model: only the export of the first is kept.
        with tempfile.TemporaryDirectory() as folder:
            return write(flavor, model, Path(folder) / "model", sample, arguments)
    report = write(flavor, model, directory, sample, arguments)
    if compress:
        write_archive(report.directory)
    return report


def prepare(flavor, model, directory, sample, arguments, quantize):
    """Check what an export needs, in the order in which it needs it.

    The space on the disk is estimated for weights stored by `quantize`.

    Returns:
        `(version, features, batches, answering)`: the directory to write, the `Features` of the
        sample, the labelled batches, and a dict of the signatures that answer, "text" and
        "generate", by their names.

    Raises:
        InputError: the destination, the sample, a batch or the tokenizer is refused.
    """
    needed = _estimated_bytes(flavor, model, quantize)
    version = check_destination(directory, needed_bytes=needed)
    features = Features(model, sample)
    task = arguments.task
    batches = [] if arguments.evaluate is None else arguments.evaluate.batches(model, task)
    answering: dict[str, Any] = {}
    if "text" in arguments.signatures:
        labels = arguments.facts.get("labels")
        answering["text"] = TextSignature(task, arguments.tokenizer, labels, features)
    if "generate" in arguments.signatures:
        answering["generate"] = GenerateSignature(task, arguments.tokenizer)
    return version, features, batches, answering


def _write(flavor, model, directory, sample, arguments):
    version, features, batches, answering = prepare(
        flavor, model, directory, sample, arguments, arguments.quantize
    )
    with contextlib.ExitStack() as stack:
        in_memory = scores_in_memory(flavor, model, batches, arguments.task)
        transforms = _describe_transforms(model)
        form = stack.enter_context(flat_form(model, features))
        if answering and arguments.task.generates:
            form.leave_out("generation calls the layers of a block for one token at a time")
        # The export is compared with a model in memory that has the same integer weights.
        stack.enter_context(rounded(model, arguments.quantize, features, arguments.reduce_range))
        reference = {"tokens": _reference(flavor, model, features)}
        for name, signature in answering.items():
            reference[name] = signature.reference(flavor, model)
        if arguments.widens:
            tolerance = _rounding_tolerance(flavor, model, features, reference["tokens"])
            tolerance = max(tolerance, arguments.tolerance)
            arguments = dataclasses.replace(arguments, tolerance=tolerance)
        unread = stack.enter_context(substituted_layers(model, arguments.quantize, form))
        stack.enter_context(folded_weights(model))
        with form.on():
            module, functions, tokens = _module(
                flavor, model, unread, features, answering, arguments
            )
        if arguments.target not in (None, "avx2"):
            module.cpu_check = CpuCheck()
        with staged(directory, version) as staging:
            tf.saved_model.save(
                module,
                str(staging.path),
                signatures=functions,
                # Gradients of custom ops are needed for training only.
                options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
            )
            with _keep_refused_files(staging):
                served, measured = run_without_keras(
                    staging.path,
                    features.arrays if "tokens" in arguments.signatures else None,
                    answering={name: found.samples() for name, found in answering.items()},
                    batches=[batch.arrays for batch, _, _ in batches],
                    latency=arguments.latency,
                )
                difference = max(
                    compare(
                        reference[name],
                        {output: served[name][output] for output in reference[name]}
                        if name in answering
                        else served[name],
                        arguments.tolerance,
                    )
                    for name in arguments.signatures
                )
                evaluation = None
                if arguments.evaluate is not None:
                    evaluation = _check_drop(arguments, in_memory, served["batches"], batches)
            _write_extra_files(staging.path, features, answering, arguments)
            serving = functions["serving_default"]
            storage = storage_of(module, tokens)
            measurements = {
                "weight_bytes": sum(storage.values()),
                "storage": storage,
                "max_abs_difference": difference,
                "tolerance": arguments.tolerance,
                "signature": {
                    "inputs": describe_specs(serving.structured_input_signature[1]),
                    "outputs": describe_specs(serving.structured_outputs),
                },
                **measured,
            }
            recipe = {
                "signatures": list(arguments.signatures),
                "transforms": transforms,
                "transformer": form.facts(),
            }
            if arguments.target is not None:
                recipe["target"] = arguments.target
            return _publish(flavor, model, staging, arguments, measurements, evaluation, recipe)


def check_graph_export(flavor, model, features, answering, arguments) -> None:
    """Run a model on the sample and trace the graph of its export, without writing anything.

    Raises:
        InputError: it does not run, does not run as a graph, or reads state that is not saved.
    """
    _reference(flavor, model, features)
    # Weights in floats, since quantization is often attached or calibrated later.
    arguments = dataclasses.replace(arguments, quantize=None)
    with folded_weights(model):
        _module(flavor, model, [], features, answering, arguments)


def _write_file(format, flavor, model, directory, sample, arguments):
    # A file has no signature "text".
    version, features, batches, _ = prepare(
        flavor, model, directory, sample, arguments, arguments.quantize
    )
    options = {"quantize": arguments.quantize, "tolerance": arguments.tolerance}
    write, run = export_litert, run_litert
    recipe = {"format": format, "transforms": _describe_transforms(model)}
    if format == "onnx":
        write, run = export_onnx, run_onnx
        options["reduce_range"] = arguments.reduce_range
        if arguments.target is not None:
            recipe["target"] = arguments.target
    in_memory = scores_in_memory(flavor, model, batches, arguments.task)
    with staged(directory, version) as staging:
        with _keep_refused_files(staging):
            written = write(model, flavor, features, staging.path, **options)
            evaluation = None
            if arguments.evaluate is not None:
                served = run(written.file, *(batch.arrays for batch, _, _ in batches))
                evaluation = _check_drop(arguments, in_memory, served, batches)
        measurements = {
            "weight_bytes": written.bytes,
            "max_abs_difference": written.max_abs_difference,
            "tolerance": written.tolerance,
            "signature": written.signature,
        }
        recipe |= written.recipe
        return _publish(flavor, model, staging, arguments, measurements, evaluation, recipe)


def _check_drop(arguments, in_memory, served, batches):
    drop, labels = arguments.evaluate.max_drop, arguments.facts.get("labels")
    return check_drop(in_memory, served, batches, drop, arguments.task, labels)


@contextlib.contextmanager
def _keep_refused_files(staging):
    """On a VerificationError, keep the refused files beside the destination and name them."""
    try:
        yield
    except VerificationError as error:
        if is_full(error) or staging.disk_is_full():
            # What does not fit on the disk is not worth keeping there.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        aside = staging.keep_aside()
        raise VerificationError(f"{error} Nothing was exported; see {aside}.") from error


def _publish(flavor, model, staging, arguments, measurements, evaluation, recipe):
    """Write the report and the manifest, and rename the folder to its version."""
    facts = dict(arguments.facts)
    if evaluation is not None:
        evaluation, served = evaluation
        # The caller's own figures come first, then those of what is served.
        own = {name: value for name, value in facts.items() if value is not None}
        facts |= {"quality": served, **served.measures(), **own}
    report = ExportReport(
        directory=staging.version,
        bytes=sum(f.stat().st_size for f in staging.path.rglob("*") if f.is_file()),
        quantize=arguments.quantize,
        evaluation=evaluation,
        versions=_versions(flavor, model),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **measurements,
        **{name: facts.pop(name) for name in _KNOWN_FACTS if name in facts},
        facts=facts,
    )
    (staging.path / "report.json").write_text(report.to_json(), encoding="utf-8")
    recipe = {"format": "saved_model", "quantize": arguments.quantize} | recipe
    write_manifest(staging.path, report=report, recipe=recipe)
    # The version changes if another export took its number meanwhile.
    return dataclasses.replace(report, directory=staging.publish())


def _module(flavor, model, unread, features, answering, arguments):
    """Return the module to save, its functions by signature, and the function of the tokens.

    The module holds all variables that the functions and initializers read.
    """

    def serve(**tensors):
        return flat_outputs(model, flavor.call(model, features.restore(tensors), training=False))

    tokens = trace(serve, features, autograph=flavor.uses_autograph)
    functions = {"tokens": tokens}
    module: Any = tf.Module()
    for name, signature in answering.items():
        function = signature.function(tokens, model)
        setattr(module, name, function)
        functions[name] = function.get_concrete_function()
    # Of a quantized model only the variables that the graph reads are written.
    weights = [] if arguments.quantize else _served_weights(flavor, model, unread)
    module.loaded = loaded_tensors(functions.values())
    weights += [v for encoding in encodings_of(module.loaded) for v in encoding.variables]
    if module.loaded:
        module.initializer = LoadedTensorInitializer(module.loaded)
    for function in functions.values():
        weights += _other_state(function, [*weights, *module.loaded])
    module.weights = weights
    functions = {name: functions[name] for name in arguments.signatures}
    functions = {"serving_default": functions[arguments.signatures[0]]} | functions
    return module, functions, tokens


def _write_extra_files(folder, features, answering, arguments):
    """Write warm-up requests, the labels and the task beside the SavedModel."""
    for name in ("serving_default", *arguments.signatures):
        name_of = arguments.signatures[0] if name == "serving_default" else name
        arrays = answering[name_of].samples() if name_of in answering else features.arrays
        write_warmup(folder, name, arrays)
    labels = arguments.facts.get("labels")
    task = {"task": arguments.task.name, "texts": len(arguments.task.inputs)}
    for name, value in (("labels", labels), ("task", answering and task)):
        if value:
            assets = folder / "assets.extra"
            assets.mkdir(exist_ok=True)
            (assets / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


def _describe_transforms(model):
    """Count the transforms and call wrappers of a model by description, for the recipe."""
    found = collections.Counter(
        t.describe() for chain in transform_chains(model) for t in chain.transforms
    )
    found.update(
        part.describe() for view in parametrized_layers(model) for part in view.call_wrappers
    )
    return dict(sorted(found.items()))


def _estimated_bytes(flavor, model, quantize):
    share = {"int8": 0.3, "int8-weights": 0.3, "bfloat16": 0.6}.get(quantize, 1.0)
    return int(share * sum(map(_bytes, flavor.weights(model))))


_KNOWN_FACTS = (
    "accuracy",
    "quality",
    "examples_per_second",
    "seed",
    "data_fingerprint",
)


def _served_weights(flavor, model, unread):
    """Return the model's weights without the variables of weight transforms, which are folded in.

    Variables of call wrappers, such as adapters and prefixes, are read by the graph and written.
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
    """Return the outputs of the model in memory on the sample, computed eagerly on the CPU."""
    with tf.device("CPU:0"):
        try:
            outputs = flavor.call(model, features.inputs(), training=False)
        except Exception as error:
            shapes = {name: (str(x.dtype), x.shape) for name, x in features.arrays.items()}
            raise InputError(
                "The model must run on the sample's features. Received (dtype and shape by "
                f"feature): {shapes}, on which it raised {type(error).__name__}: {error}. Give a "
                "batch as `fit` takes it: features, or a tuple (features, labels)."
            ) from error
        reference = {name: value.numpy() for name, value in flat_outputs(model, outputs).items()}
    check_reference(reference)
    return reference


def _rounding_tolerance(flavor, model, features, reference):
    """Return the tolerance for two models that round the same numbers differently beside ties.

    A rounding error of float32 decides beside a tie, and every later layer multiplies what differs.
    In the end the two differ by no more than each differs from the model that does not round the
    inputs of its layers, times √2 or so.
    """
    with unrounded_inputs(model):
        exact = _reference(flavor, model, features)
    shares = [
        float(np.max(np.abs(value - exact[name]), initial=0.0))
        / max(1.0, float(np.max(np.abs(value), initial=0.0)))
        for name, value in reference.items()
        if value.dtype.kind == "f" and np.isfinite(value).all() and np.isfinite(exact[name]).all()
    ]
    return 2 * max(shares, default=0.0)


def _other_state(function, weights):
    """Return the variables that `function` reads besides `weights`.

    Raises:
        InputError: it reads a resource that is not a variable, such as a look-up table, which a
            module of variables does not save.
    """
    # A mirrored variable is read through one of its replicas, and saved once, as itself.
    known = {id(x) for variable in weights for x in (variable, *_replicas(variable))}
    others = [variable for variable in function.graph.variables if id(variable) not in known]
    written = [
        replica.handle for variable in (*weights, *others) for replica in _replicas(variable)
    ]
    handles = set(map(id, written))
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
    # A mirrored variable has no handle of its own outside of a replica.
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
