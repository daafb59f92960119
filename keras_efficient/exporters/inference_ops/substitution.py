"""Substitute the layers of a model by inference-only implementations during an export."""

import functools
import warnings
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture._dense_layer import kernel_of
from keras_efficient.architecture._layer_class import has_library_call, original_class
from keras_efficient.architecture._layer_paths import layer_paths
from keras_efficient.architecture._run_block import run_block
from keras_efficient.architecture._self_attention import attention_heads, self_attention_projections
from keras_efficient.architecture._weights import EMBEDDING, KERNEL, all_weights
from keras_efficient.compression._activation_quantization import rounds_inputs
from keras_efficient.compression._fake_quant import FakeQuant
from keras_efficient.compression._observers import attach_quantizers, observe
from keras_efficient.exporters.inference_ops.attention import SelfAttention
from keras_efficient.exporters.inference_ops.bfloat16_block import BFloat16Block
from keras_efficient.exporters.inference_ops.dense import DenseOp, matrix_of
from keras_efficient.exporters.inference_ops.embedding import (
    EmbeddingOp,
    LazyEmbeddingOp,
    PositionEmbeddingOp,
)
from keras_efficient.exporters.inference_ops.encoding import Plain
from keras_efficient.exporters.inference_ops.int8_block import Int8Block
from keras_efficient.exporters.inference_ops.layer_norm import LayerNormOp, is_last_axis
from keras_efficient.exporters.inference_ops.loaded_tensor import LoadedTensor
from keras_efficient.exporters.inference_ops.matmul import joined
from keras_efficient.exporters.inference_ops.packed_weights import (
    BFloat16Weight,
    EncodedWeight,
    Int8Weight,
    written,
)
from keras_efficient.exporters.inference_ops.smallest_encoding import smallest_encoding
from keras_efficient.parametrize._attach import attach, detach, detach_call_wrappers
from keras_efficient.parametrize._checks import check_weights
from keras_efficient.parametrize._parametrized_layer import (
    parametrize_layer,
    parametrized_layer,
    transform_chain,
    transforms,
)
from keras_efficient.parametrize._plain_model import restore_save_methods
from keras_efficient.parametrize._transform import QUANTIZE, Transform

#: Whole blocks by `quantize`.
_BLOCKS = {"int8": Int8Block, "bfloat16": BFloat16Block}
#: Calls of layers that look up rows of a table.
_TABLES = ("Embedding.call", "ReversibleEmbedding.call", "OnDeviceEmbedding.call")


class _Identity(Transform):
    """Change nothing; gives weights that are exported in another form a transform chain."""

    name, place = "identity", QUANTIZE + 1

    def __call__(self, value):
        return value


@contextmanager
def rounded(model, quantize, features, reduce_range=False):
    """Attach the transforms that an export needs to a model's weights, for the time of the block.

    The weights of a model that was neither trained nor calibrated with quantization are quantized
    per output, by the largest magnitude, and its activations in the ranges that they have on the
    sample. Afterwards the model is unchanged.

    Args:
        model: the model.
        quantize: as for `ke.export`.
        features: the `Features` of the sample.
        reduce_range: whether kernels of 8 bits are rounded to 7, whose products do not overflow
            on CPUs that add two of them in 16 bits. Those that have `reduce_range` stay as they
            are. Default: False.
    """
    saved = any(vars(model).get(name) is not None for name in ("save", "save_pretrained"))
    weights = [w for w in all_weights(model) if w.kind in (KERNEL, EMBEDDING)]
    if quantize == "bfloat16":
        pairs = [(w, _Identity()) for w in weights]
    elif quantize is None:
        plain = [w for w in weights if transform_chain(w) is None and _is_unmodified(w)]
        pairs = [(w, _Identity()) for w in plain if _encoded(w.value) is not None]
    elif transforms(model, FakeQuant):
        pairs = []
    else:
        pairs = [(w, FakeQuant(8)) for w in weights]
    measures = quantize == "int8" and not rounds_inputs(model)
    if not pairs and not measures and not reduce_range:
        yield
        return
    narrowed, quantizers = [], {}
    # Functions that `fit` has traced remain valid afterwards.
    with flavors.of(model).untraced(model):
        try:
            attach(model, pairs)
            if measures:
                quantizers = attach_quantizers(model, weights, None, 8)
                _measure(model, quantizers, features)
            for transform in transforms(model, FakeQuant) if reduce_range else ():
                reducible = transform.bits == 8 and transform.weight.kind == KERNEL
                if reducible and not transform.reduce_range:
                    narrowed.append(transform)
                    transform.reduce_range = True
            yield
        finally:
            for transform in narrowed:
                transform.reduce_range = False
            detach_call_wrappers(model, quantizers.values())
            detach(model, [transform for _, transform in pairs])
            if not saved:
                restore_save_methods(model)


def _measure(model, quantizers, features):
    """Set the ranges of quantizers to those of the sample."""
    measured = observe(model, quantizers.values(), [features.inputs()])
    for quantizer, found in zip(quantizers.values(), measured, strict=True):
        if found.calls:
            quantizer.set_range(found.low, found.high)
    examples = len(next(iter(features.arrays.values())))
    warnings.warn(
        "quantize='int8' rounds the inputs of layers in fixed ranges. Received: a model without "
        f"ranges. Those of the sample's {examples} examples are used; ke.calibrate on a few "
        "hundred examples before the export may give a better accuracy.",
        stacklevel=6,
    )


@contextmanager
def substituted_layers(model, quantize, form):
    """Make a model compute with its exported weights, for the time of the block.

    Args:
        model: a model inside the context manager `rounded`.
        quantize: None: floats, stored in fewer bytes where that is possible. "int8-weights":
            integers that are converted to floats. "int8": integers that are multiplied as such.
            "bfloat16": multiplied in bfloat16.
        form: the `FlatForm` of the model.

    Yields:
        List of the base variables that are not read in the block. It grows while a graph is traced
        that reads others instead.
    """
    with flavors.of(model).untraced(model):
        substitution = _Substitution(model, quantize, form)
        try:
            substitution.begin()
            yield substitution.unread
        finally:
            substitution.end()


class _Substitution:
    def __init__(self, model, quantize, form):
        self.model, self.flavor, self.quantize = model, flavors.of(model), quantize
        self.form = form
        self.packs, self.parts, self.chains = {}, [], []
        self.unread: list[Any] = []
        self._joined: dict[tuple[int, ...], Any] = {}

    def begin(self):
        weights = all_weights(self.model)
        for weight in weights:
            pack = self._pack(weight)
            if pack is not None:
                self.packs[id(weight.variable)] = pack
        # {id of a layer: its weights}
        self.owned = {}
        for weight in weights:
            for layer, attribute in weight.owners:
                self.owned.setdefault(id(layer), []).append((weight, attribute))
        self.unread += [pack.weight.value for pack in self.packs.values()]
        done = self._blocks() if self.quantize in _BLOCKS else set()
        if self.quantize not in _BLOCKS:
            self.form.join = self._join
        for path, layer in layer_paths(self.model):
            for part in self._parts(layer) if id(layer) not in done else ():
                parametrize_layer(layer, self.flavor, path).attach(part)
                self.parts.append(part)
        for pack in self.packs.values():
            chain = transform_chain(pack.weight)
            vars(chain)["value"] = self._reader(pack)
            self.chains.append(chain)

    def _blocks(self):
        """Compute whole blocks in the format; return the ids of the layers inside of them."""
        done = set()
        for block in self.form.blocks:
            make = _BLOCKS[self.quantize]
            try:
                block.run = make(block.block, lambda *args: self._matrix(*args)[0]).run
            except ValueError as error:
                self.form.unchanged[block.block.path] = f"in floats between its products: {error}"
            else:
                for layer in (block.layer, *block.block.chain):
                    done |= set(map(id, layer._flatten_layers()))
        if done:
            self.form.model.whole = True
        return done

    def _join(self, layers, inputs):
        """Return the kernels of layers side by side, made once, outside of the graph."""
        key = tuple(map(id, layers))
        if key not in self._joined:
            with tf.init_scope():
                self._joined[key] = self._joined_kernel(layers, inputs)
        return self._joined[key]

    def _joined_kernel(self, layers, inputs):
        found = [
            weight
            for layer in layers
            for weight, attribute in self.owned.get(id(layer), ())
            if attribute == "kernel" and not _changed(layer)
        ]
        if len(found) < max(2, len(layers)):
            return None
        packs: list[Any] = [self.packs.get(id(weight.variable)) for weight in found]
        if self.quantize is not None:
            if None in packs:
                return None
            encodings = [encoding for pack in packs for encoding in pack.encodings]
            values = [pack.value for pack in packs]
            return LoadedTensor(
                lambda: tf.concat([tf.reshape(value(), [inputs, -1]) for value in values], 1),
                encodings,
            )
        self.unread += [weight.value for weight in found]
        arrays = [
            tf.reshape(tf.convert_to_tensor(kernel_of(layer)), [inputs, -1]) for layer in layers
        ]
        return written(tf.concat(arrays, 1).numpy(), f"{found[0].path}.joined", "values")

    def end(self):
        self.form.join = None
        for block in self.form.blocks:
            block.run = run_block
        for chain in self.chains:
            vars(chain).pop("value", None)
        for part in self.parts:
            part.parametrized.detach(part)

    def _pack(self, weight):
        chain = transform_chain(weight)
        if chain is None:
            return None
        if self.quantize is None:
            encoding = _encoded(chain.value()) if weight.kind in (KERNEL, EMBEDDING) else None
            return None if encoding is None else EncodedWeight(weight, encoding)
        if self.quantize == "bfloat16":
            return BFloat16Weight(weight, tf.cast(chain.value(), tf.bfloat16).numpy())
        quantize = [t for t in chain.transforms if isinstance(t, FakeQuant)]
        return Int8Weight(weight, quantize[0]) if quantize else None

    def _reader(self, pack):
        foreign = pack.weight.attribute == "weight" and pack.weight.kind == EMBEDDING
        if foreign and isinstance(pack, Int8Weight) and pack.scales.shape[0] == 1:
            return lambda: LazyEmbeddingOp(tf.convert_to_tensor(pack.integers), pack.row_scales)
        if not isinstance(pack, Int8Weight):
            return pack.value

        # Only what is read is made.
        @functools.cache
        def floats():
            return LoadedTensor(pack.value, pack.encodings)

        return lambda: floats().value()

    def _parts(self, layer):
        """Return the call wrappers that substitute a layer, at most one."""
        if _changed(layer) or self.quantize is None:
            return []
        if self.quantize != "int8-weights":
            part = self._attention(layer) or self._intermediate(layer) or self._product(layer)
            if part is None and self.quantize == "int8" and is_last_axis(layer):
                part = LayerNormOp()
            if part is not None:
                return [part]
        return self._table(layer)

    def _matrix(self, layer, activation=None) -> tuple[Any, Any]:
        if _changed(layer):
            return None, None
        for weight, attribute in self.owned.get(id(layer), ()):
            pack = self.packs.get(id(weight.variable))
            if pack is not None and attribute in ("kernel", "weight"):
                matrix = matrix_of(layer, weight, pack, activation)
                if matrix is not None:
                    return matrix, weight
        return None, None

    def _product(self, layer):
        matrix, weight = self._matrix(layer)
        if matrix is None:
            return None
        outputs = tuple(weight.shape[axis] for axis in weight.outputs)
        return DenseOp(matrix, len(weight.inputs), outputs)

    def _intermediate(self, layer):
        """Return the product of a Hugging Face intermediate layer with its activation."""
        function = getattr(layer, "intermediate_act_fn", None)
        if function is None or getattr(layer, "dense", None) is None:
            return None
        matrix, weight = self._matrix(layer.dense, function)
        return None if matrix is None else DenseOp(matrix, 1, (weight.shape[1],))

    def _attention(self, layer):
        inner = self_attention_projections(layer)
        if inner is None:
            return None
        matrices = [self._matrix(projection)[0] for projection in inner]
        if None in matrices or len({m.bias.size for m in matrices}) > 1:
            return None
        heads, factor = attention_heads(layer)
        matrix = joined([matrices[0].times(factor), *matrices[1:]])
        return None if matrix is None else SelfAttention(matrix, heads)

    def _table(self, layer):
        for weight, attribute in self.owned.get(id(layer), ()):
            pack = self.packs.get(id(weight.variable))
            if pack is None or weight.kind != EMBEDDING:
                continue
            scaled = getattr(layer, "_scale_factor", None)
            looks_up = has_library_call(layer, *_TABLES) and not scaled
            if attribute == "embeddings" and len(weight.shape) == 2 and looks_up:
                return [EmbeddingOp(pack)]
            if type(layer).__name__ == "PositionEmbedding" and attribute == "position_embeddings":
                # The layer of this name in Model Garden computes something else.
                keras_hub = original_class(layer).__module__.startswith("keras_hub.")
                return [PositionEmbeddingOp(pack)] if keras_hub else []
        return []


def _encoded(value):
    """Return the smallest `Encoding` of a value, or None if that is the value itself."""
    encoding = smallest_encoding(tf.convert_to_tensor(value).numpy())
    return None if isinstance(encoding, Plain) else encoding


def _is_unmodified(weight):
    try:
        check_weights([weight], "ke.export")
    except ValueError:
        return False
    return True


def _changed(layer):
    """Return whether adapters or a prefix change a layer; such layers are not substituted."""
    view = parametrized_layer(layer)
    return view is not None and any(not part.droppable for part in view.call_wrappers)
