"""Export a model of either flavour as a SavedModel, checked before it appears."""

import contextlib
import dataclasses
import datetime
import math
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

import keras_efficient
from keras_efficient import flavor as flavors
from keras_efficient.distribute.cluster import cluster_of
from keras_efficient.errors import InputError, VerificationError
from keras_efficient.parametrize.finding import views
from keras_efficient.parametrize.plain import folded
from keras_efficient.serving.destination import check_destination, staged
from keras_efficient.serving.packing import packed
from keras_efficient.serving.report import ExportReport, check_facts
from keras_efficient.serving.signature import Features, flat_outputs, trace
from keras_efficient.serving.verify import check_reference, compare, run_bare

#: Allowed difference, relative to the largest output or 1, by whether the model computes in less
#: than float32.
_TOLERANCE = {False: 1e-5, True: 2e-2}


def export(
    model, directory, *, sample, quantize=None, facts=None, tolerance=None, latency=True
) -> ExportReport:
    """Write `model` as a SavedModel that plain TensorFlow serves, checked in a bare process.

    The SavedModel has one signature, "serving_default", in inference mode, with any batch size and
    any length, and holds each variable once (Keras 3's own `model.export` writes every variable
    twice). It is written to a hidden folder beside its destination, loaded and run by a new
    process that has no Keras, compared with the model in memory, and only then renamed into place:
    a version is there whole and checked, or not at all. No version is ever overwritten.

    Inputs: the keys of a dict sample; "inputs" for a single tensor; "input_0", "input_1", ... for
    a list. The batch dimension is free, and so is the second dimension of integer features, unless
    the model declares a fixed length. Outputs: a dict's keys; for a single tensor "logits" if the
    model has `num_classes` or `num_labels`, else "outputs"; "output_0", ... for a list; a Hugging
    Face output's entries without its loss. Floats go in and come out as float32.

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
        quantize: None (default), weights as floats; or "int8-weights": those that
            `ke.quantize_aware` or `ke.calibrate` rounds as int8 (also those of 4 bits) with their
            scales. They are multiplied by floats, on any device: smaller, not faster. What rounds
            activations is written too.
        facts: dict or None (default), what the report should know of the training: `accuracy`,
            `examples_per_second`, `seed`, `data_fingerprint`, and anything else that JSON holds.
        tolerance: float or None (default): 1e-5, and 2e-2 for a model with layers that compute in
            bfloat16 or float16, whose rounding differs between two graphs of the same model.
        latency: bool, whether to time the SavedModel at batch 1 and 8. Default True.

    Returns:
        An `ExportReport`, also written to `report.json` inside the version.

    Raises:
        InputError: the destination, model, sample, facts or tolerance will not do; found before
            anything is written, except where the model reads state that cannot be written.
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
    cluster = cluster_of(model)
    if cluster is not None and cluster.index > 0:
        # Several workers train one model: the first one's export is the one that stays.
        with tempfile.TemporaryDirectory() as folder:
            return _export(
                model, Path(folder) / "model", sample, quantize, facts, tolerance, latency
            )
    return _export(model, directory, sample, quantize, facts, tolerance, latency)


def _export(model, directory, sample, quantize, facts, tolerance, latency):
    flavor = _check_model(model)
    if quantize not in (None, "int8-weights"):
        raise InputError(f"`quantize` must be None or 'int8-weights'. Received: {quantize!r}.")
    # A server gets the weights as they are seen: pruned, clustered, rounded, with their deltas.
    with contextlib.ExitStack() as stack:
        unread = stack.enter_context(packed(model)) if quantize else []
        stack.enter_context(folded(model))
        return _write(flavor, model, unread, directory, sample, facts, tolerance, latency)


def _write(flavor, model, unread, directory, sample, facts, tolerance, latency):
    weights = _served(flavor, model, unread)
    weight_bytes = sum(_bytes(variable) for variable in weights)
    version = check_destination(directory, needed_bytes=weight_bytes)
    facts = check_facts(facts)
    tolerance = _check_tolerance(tolerance, model)
    features = Features(model, sample)
    reference = _reference(flavor, model, features)

    def serve(**tensors):
        return flat_outputs(model, flavor.call(model, features.restore(tensors), training=False))

    # tf_keras leaves a choice on a tensor's value to AutoGraph; Keras 3 does not use it.
    function = trace(serve, features, autograph=flavor.name == "tf_keras")
    module = tf.Module()
    module.weights = weights = weights + _other_state(function, weights)

    with staged(directory, version) as staging:
        tf.saved_model.save(
            module,
            str(staging.path),
            signatures={"serving_default": function},
            # Gradients of custom ops, for training on: a server has no use for them.
            options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
        )
        try:
            outputs, measured = run_bare(staging.path, features.arrays, latency=latency)
            difference = compare(reference, outputs, tolerance)
        except VerificationError as error:
            aside = staging.keep_aside()
            raise VerificationError(f"{error} Nothing was exported; see {aside}.") from error
        report = ExportReport(
            directory=version,
            bytes=sum(file.stat().st_size for file in staging.path.rglob("*") if file.is_file()),
            weight_bytes=sum(map(_bytes, weights)),
            max_abs_difference=difference,
            tolerance=tolerance,
            signature={
                "inputs": _describe(function.structured_input_signature[1]),
                "outputs": _describe(function.structured_outputs),
            },
            versions=_versions(flavor, model),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **measured,
            **{name: facts.pop(name) for name in _KNOWN_FACTS if name in facts},
            facts=facts,
        )
        (staging.path / "report.json").write_text(report.to_json(), encoding="utf-8")
        # A lost race moves it on to the next version.
        return dataclasses.replace(report, directory=staging.publish())


_KNOWN_FACTS = ("accuracy", "examples_per_second", "seed", "data_fingerprint")


def _check_model(model):
    try:
        flavor = flavors.of(model)
    except TypeError as error:
        raise InputError(str(error)) from error
    if not model.built:
        raise InputError(
            "A model must be built before it is exported: it has no weights yet. Received: "
            f"{type(model).__name__} {model.name!r}, not built. Train it, or call it on a batch."
        )
    return flavor


def _check_tolerance(tolerance, model):
    if tolerance is None:
        layers = model._flatten_layers()
        low = any(getattr(x, "compute_dtype", None) in ("bfloat16", "float16") for x in layers)
        return _TOLERANCE[low]
    number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    if not number or not 0 <= tolerance < math.inf:
        raise InputError(
            "`tolerance` must be a finite number, at least 0, or None for 1e-5 (2e-2 where the "
            f"model computes in bfloat16 or float16). Received: {tolerance!r}."
        )
    return float(tolerance)


def _served(flavor, model, unread):
    """The model's weights without what transforms of weights keep: those are folded in.

    (What adapters and prefixes keep is read by the graph, and written with it.)
    """
    kept = {id(flavor.value(v)) for view in views(model) if view.store for v in view.store.weights}
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


def _describe(specs):
    return {
        name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
        for name, spec in specs.items()
    }


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
