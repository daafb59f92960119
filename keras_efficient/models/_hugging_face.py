"""Load tf_keras models with transformers 4.x, the last version with TensorFlow classes."""

import copy
import functools
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_efficient._errors import InputError, shortened
from keras_efficient.data._read_json import read_json
from keras_efficient.data._tokenizer import HUGGING_FACE, MASK_POSITIONS, Tokenizer, as_tokenizer
from keras_efficient.data._tokenizer_limits import check_tokenizer
from keras_efficient.dtype_policies._keep_float32 import keep_float32
from keras_efficient.flavor._quiet_logger import quiet_logger
from keras_efficient.flavor._typing import Model
from keras_efficient.models._check_weights import safetensors_files
from keras_efficient.models._checkpoint_folder import check_ids, describe, load_tokenizer
from keras_efficient.models._classification_head import head_weights, span_head
from keras_efficient.models._hugging_face_masked_lm import at_mask_positions, head_variables
from keras_efficient.models._initial_weights import initial_weights
from keras_efficient.models._masked_lm_head import new_head, read_head, warn_new_head
from keras_efficient.models._trained_folder import WEIGHTS

#: Suffix of the classes of transformers by where their head is: on a text, on each token, on the
#: masked ones, or on all tokens as the beginning and the end of an answer.
_KINDS = {
    "text": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "masked_token": "ForMaskedLM",
    "next_token": "ForCausalLM",
    "decoder": "ForSeq2SeqLM",
    "embedding": "",
}
#: Suffixes of all classes that can be saved; those of decoders have others than the `TFAutoModel`s.
_SUFFIXES = (*filter(None, _KINDS.values()), "LMHeadModel", "ForConditionalGeneration")
#: Names of the inputs of a decoder by content.
_DECODER_INPUTS = {"target_ids": "decoder_input_ids", "target_mask": "decoder_attention_mask"}


def load_classifier(
    source: Path | str, num_labels: int, seed: int, head: str = "text"
) -> tuple[Model, Tokenizer]:
    """Load a transformers `TF...ForSequenceClassification` from a checked folder or a hub name.

    With `head="token"` it is a `TF...ForTokenClassification`, with "span" a
    `TF...ForQuestionAnswering` whose output is that of `span_model`, and with "masked_token" a
    `TF...ForMaskedLM` of `at_mask_positions`; with "next_token" what `TFAutoModelForCausalLM`
    makes, such as `TFGPT2LMHeadModel`, and with "decoder" what `TFAutoModelForSeq2SeqLM` makes.
    With "embedding" it is what `TFAutoModel` makes, with the output of `embedding_model`.
    """
    import transformers

    auto: Any = getattr(transformers, f"TFAutoModel{_KINDS[head]}")
    tokenizer: Any = None
    if isinstance(source, Path):
        # Before the model, which takes longer and more memory.
        tokenizer = load_tokenizer(source, read_json(source / "config.json", "the configuration"))
    separator = _separator(source, tokenizer) if head == "span" else None
    model: Any
    config: Any
    try:
        # The warnings are about the new head, which is intended.
        with quiet_logger("transformers"):
            config = transformers.AutoConfig.from_pretrained(
                str(source), trust_remote_code=False, **_settings(head, num_labels)
            )
            if isinstance(source, Path) and safetensors_files(source):
                model = _from_config(auto, config, head)
                _load_safetensors(model, source)
            else:
                model = auto.from_pretrained(str(source), config=config, trust_remote_code=False)
                if head == "masked_token":
                    model.__class__ = at_mask_positions(type(model))
    except InputError:
        raise
    # A folder can make transformers fail anywhere.
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                "A model must be of an architecture that transformers contains, since the Python "
                f"code of a model is never run. Received: {describe(source)}, whose `auto_map` "
                "names code of its own. Choose another model, or read that code, build the model "
                "with transformers yourself, and pass it to the functions of this package."
            ) from None
        raise InputError(
            f"The model must be one for which transformers has a TensorFlow classifier. Received: "
            f"{describe(source)}, for which it reports: {shortened(str(error)).rstrip('.')}. "
            "Check the spelling of a hub name and the network, or try library='keras'."
        ) from error
    files = safetensors_files(source) if isinstance(source, Path) else []
    if head != "masked_token":
        _set_new_head(model, num_labels, seed)
    elif files and read_head(files) is None:
        warn_new_head(source)
        _set_new_head(model, num_labels, seed)
    if head == "span" and (trained := span_head(source)) is not None:
        for dense in _heads(model):
            dense.set_weights(trained)
    keep_float32(model, *_heads(model))
    if head == "span":
        model.config.sep_token_id = separator
        span_model(model)
    if head == "embedding":
        embedding_model(model)
    inputs = _inputs(model, head)
    if isinstance(source, Path):
        return model, as_tokenizer(tokenizer, inputs=inputs)
    limit = getattr(config, "max_position_embeddings", None) or 512
    fast: Any = transformers.AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    tokenizer = Tokenizer(
        fast.backend_tokenizer,
        inputs=inputs,
        pad_id=fast.pad_token_id or 0,
        max_length=limit,
        decoder_start_id=getattr(config, "decoder_start_token_id", None),
    )
    check_tokenizer(json.loads(tokenizer.serialized or "{}"), describe(source))
    check_ids(tokenizer.largest_id, getattr(config, "vocab_size", None), describe(source))
    return model, tokenizer


def _settings(head, num_labels):
    """Return what a configuration must say for a head."""
    if head in ("next_token", "decoder"):
        # Cached keys and values would be outputs, in training too.
        return {"use_cache": False}
    return {} if head in ("masked_token", "embedding") else {"num_labels": num_labels}


def _inputs(model, head):
    """Return the names of the model's inputs by content."""
    takes = inspect.signature(model.call).parameters
    names = HUGGING_FACE | MASK_POSITIONS | _DECODER_INPUTS
    # Decoders add the rows of segments in the table of tokens, for dialogues.
    left_out = ("segments",) if head == "next_token" else ()
    return {r: name for r, name in names.items() if name in takes and r not in left_out}


def _from_config(auto, config, head):
    """Return a model of transformers' class for a configuration, with random weights."""
    if head != "masked_token":
        return auto.from_config(config, trust_remote_code=False)
    for known, cls in auto._model_mapping.items():
        if known is type(config):
            return at_mask_positions(cls)(config)
    raise ValueError(f"transformers has no TF...ForMaskedLM for {type(config).__name__}")


def _set_new_head(model, num_labels, seed):
    """Set new weights of the head."""
    if "mask_positions" in inspect.signature(model.call).parameters:
        variables = head_variables(model)
        arrays = new_head(variables[0].shape[1], variables[-1].shape[0], seed)
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        return
    for dense in _heads(model) if _classifies(model) else ():
        arrays = head_weights(dense.kernel.shape[0], num_labels, seed)
        dense.set_weights(arrays[: len(dense.weights)])


#: Attributes of the heads that classify texts or tokens.
_CLASSIFIERS = ("classifier", "qa_outputs", "score")


def _classifies(model):
    return any(hasattr(model, name) for name in _CLASSIFIERS)


def _heads(model):
    """Return the layer whose outputs enter the loss, if there is one for that alone."""
    if hasattr(model, "mlm"):
        return [model.mlm.predictions]
    for name in ("lm_head", "vocab_projector"):
        if hasattr(model, name):
            return [getattr(model, name)]
    if not _classifies(model):
        return []
    head = next(getattr(model, name) for name in _CLASSIFIERS if hasattr(model, name))
    return [getattr(head, "out_proj", head)]


def _separator(source, tokenizer):
    if tokenizer is None:
        raise InputError(
            "A model for questions about texts is loaded from a folder, whose tokenizer tells "
            f"which words an answer consists of. Received: {describe(source)}. Save the model and "
            "its tokenizer into a folder with save_pretrained."
        )
    return tokenizer.separator


# --- heads of spans ------------------------------------------------------------------------------


def span_model(model: Any) -> None:
    """Make the output of a `TF...ForQuestionAnswering` one tensor, masked by `span_logits`.

    Its `logits` are `[batch, 2, tokens]`, so that losses, metrics and distillation find a softmax
    over the tokens along the last axis. The separator is `config.sep_token_id`.
    """
    model.__class__ = _span_class(type(model))


@functools.cache
def _span_class(base):
    import tensorflow as tf
    from transformers.modeling_tf_outputs import TFTokenClassifierOutput

    from keras_efficient.models._span_logits import span_logits

    # The signature of `call` tells the library of the inputs.
    @functools.wraps(base.call)
    def call(self, *args, **kwargs):
        found = base.call(self, *args, **kwargs)
        inputs = args[0] if args else kwargs["input_ids"]
        named = inputs if isinstance(inputs, Mapping) else {**kwargs, "input_ids": inputs}
        ids, mask = named["input_ids"], named.get("attention_mask")
        mask = tf.ones_like(ids) if mask is None else mask
        logits = tf.stack([found.start_logits, found.end_logits], -1)
        return TFTokenClassifierOutput(
            logits=span_logits(logits, ids, mask, self.config.sep_token_id),
            hidden_states=found.hidden_states,
            attentions=found.attentions,
        )

    return type(base.__name__, (base,), {"call": call, "__module__": base.__module__})


# --- embeddings ----------------------------------------------------------------------------------


def embedding_model(model: Any) -> None:
    """Make the output of a transformers encoder one embedding per text, by `mean_pooled`.

    It is called `logits`, by which exports and training find it.
    """
    encoder = getattr(model, model.base_model_prefix)
    # Nothing reads the pooler, so it has no gradients.
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler.trainable = False
    model.__class__ = _embedding_class(type(model))


@functools.cache
def _embedding_class(base):
    import tensorflow as tf
    from transformers.modeling_tf_outputs import TFSequenceClassifierOutput

    from keras_efficient.models._mean_pooling import mean_pooled

    # The signature of `call` tells the library of the inputs.
    @functools.wraps(base.call)
    def call(self, *args, **kwargs):
        found = base.call(self, *args, **kwargs)
        inputs = args[0] if args else kwargs["input_ids"]
        named = inputs if isinstance(inputs, Mapping) else {**kwargs, "input_ids": inputs}
        mask = named.get("attention_mask")
        mask = tf.ones_like(named["input_ids"]) if mask is None else mask
        return TFSequenceClassifierOutput(
            logits=mean_pooled(found.last_hidden_state, mask),
            hidden_states=found.hidden_states,
            attentions=found.attentions,
        )

    own = {"call": call, "embeds_texts": True, "__module__": base.__module__}
    return type(base.__name__, (base,), own)


def describe_classifier(model: Any) -> tuple[dict, int, bool]:
    """Return the configuration of a classifier, its number of classes, and `exact_gelu`.

    The last one is for KerasHub alone: the configuration names the activation.

    Raises:
        InputError: the model is no classifier of sequences or tokens of Hugging Face.
    """
    config = getattr(model, "config", None)
    named = any(c.__name__.endswith(_SUFFIXES) for c in type(model).__mro__)
    named |= any(getattr(c, "embeds_texts", False) for c in type(model).__mro__)
    if config is None or not named or not hasattr(config, "to_json_string"):
        raise InputError(
            "A trained model is a text classifier of KerasHub or Hugging Face. Received: "
            f"{type(model).__name__} {model.name!r}. Save others with model.save('model.keras')."
        )
    embeds = getattr(type(model), "embeds_texts", False)
    others = config.hidden_size if embeds else config.vocab_size
    outputs = config.num_labels if _classifies(model) else others
    return json.loads(config.to_json_string(use_diff=True)), outputs, False


def restore_classifier(folder: Path, config: dict, info: Any) -> Model:
    """Build a saved classifier, and load its weights."""
    import transformers

    model: Any
    try:
        with quiet_logger("transformers"):
            settings = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
            auto: Any = getattr(transformers, f"TFAutoModel{_KINDS[info.head]}")
            model = _from_config(auto, settings, info.head)
            model(model.dummy_inputs)
            model.load_weights(str(folder / WEIGHTS))
            if info.head == "span":
                span_model(model)
            if info.head == "embedding":
                embedding_model(model)
    # A folder can make transformers fail anywhere.
    except Exception as error:
        raise InputError(
            f"The configuration and weights of a trained model must fit. Received: {str(folder)!r},"
            f" for which transformers reports: {shortened(str(error)).rstrip('.')}. Install the "
            "version of transformers that saved it, or copy the folder again."
        ) from error
    keep_float32(model, *_heads(model))
    return model


def new_model(config: dict, num_labels: int, seed: int, head: str) -> tuple[Model, dict[str, str]]:
    """Return a model of a configuration with random weights, and its inputs."""
    import transformers

    auto: Any = getattr(transformers, f"TFAutoModel{_KINDS[head]}")
    options: Any = config | _settings(head, num_labels)
    settings = transformers.AutoConfig.for_model(**options)
    with quiet_logger("transformers"):
        model = _from_config(auto, settings, head)
        model(model.dummy_inputs)
    for variable, array in initial_weights(model.weights, lambda v: v.name, seed):
        variable.assign(array)
    keep_float32(model, *_heads(model))
    if head == "span":
        span_model(model)
    if head == "embedding":
        embedding_model(model)
    return model, _inputs(model, head)


def with_new_head(
    model: Any, num_labels: int, seed: int, head: str, separator: int | None
) -> Model:
    """Return a model of the encoder of a restored one and a new head."""
    import transformers

    settings = copy.deepcopy(model.config)
    for name, value in _settings(head, num_labels).items():
        setattr(settings, name, value)
    auto: Any = getattr(transformers, f"TFAutoModel{_KINDS[head]}")
    with quiet_logger("transformers"):
        found = _from_config(auto, settings, head)
        found(found.dummy_inputs)
    encoder = {_own_name(model, v): v for v in getattr(model, model.base_model_prefix).weights}
    for variable in getattr(found, found.base_model_prefix).weights:
        # A pooler is not part of every model.
        if (known := encoder.get(_own_name(found, variable))) is not None:
            variable.assign(known)
    _set_new_head(found, num_labels, seed)
    keep_float32(found, *_heads(found))
    if head == "span":
        found.config.sep_token_id = separator
        span_model(found)
    if head == "embedding":
        embedding_model(found)
    return found


def _own_name(model, variable):
    """Return the name of a variable without that of its model."""
    return variable.name.partition(f"/{model.base_model_prefix}/")[2]


def vocabulary_size(model: Any) -> int | None:
    """Return the number of rows of the table of tokens, if the model tells."""
    return getattr(model.config, "vocab_size", None)


def _load_safetensors(model, path):
    """Load the weights of a folder's safetensors files, of PyTorch or TensorFlow, into `model`.

    `from_pretrained` of transformers 4.54 to 4.57 fails with "'builtins.safe_open' object is not
    iterable" (trap 35). Its converter still renames and transposes the weights if it is given a
    dict.
    """
    from transformers.modeling_tf_pytorch_utils import load_pytorch_state_dict_in_tf2_model

    model(model.dummy_inputs)
    arrays = {}
    for shard in safetensors_files(path):
        arrays.update(_read(shard))
    _, info = load_pytorch_state_dict_in_tf2_model(
        model,
        arrays,
        tf_inputs=model.dummy_inputs,
        allow_missing_keys=True,
        output_loading_info=True,
    )
    # The head is new, and the layer before it may be; other missing weights would stay random.
    # That of masked language modelling is the checkpoint's if it has one.
    fresh = ("classifier", "pre_classifier", "score", "pooler", "qa_outputs", "cls", "lm_head")
    fresh += ("vocab_transform", "vocab_layer_norm", "vocab_projector")
    missing = [name for name in info["missing_keys"] if not set(name.split(".")) & set(fresh)]
    if missing:
        raise InputError(
            f"A weights file must hold every weight of the model. Received: {describe(path)} "
            f"without {missing[0]!r} and {len(missing) - 1} others. Download it again."
        )


def _read(shard):
    """Yield the names and arrays of a safetensors file, floats as float32."""
    import tensorflow as tf
    from safetensors import safe_open

    # TensorFlow, unlike NumPy, reads bfloat16.
    with safe_open(shard, framework="tf") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            yield (
                name,
                (tf.cast(tensor, tf.float32) if tensor.dtype.is_floating else tensor).numpy(),
            )
