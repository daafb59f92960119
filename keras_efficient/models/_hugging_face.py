"""Load tf_keras models with transformers 4.x, the last version with TensorFlow classes."""

import functools
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_efficient._errors import InputError, shortened
from keras_efficient.data._read_json import read_json
from keras_efficient.data._tokenizer import HUGGING_FACE, Tokenizer, as_tokenizer
from keras_efficient.data._tokenizer_limits import check_tokenizer
from keras_efficient.dtype_policies._keep_float32 import keep_float32
from keras_efficient.flavor._quiet_logger import quiet_logger
from keras_efficient.flavor._typing import Model
from keras_efficient.models._check_weights import safetensors_files
from keras_efficient.models._checkpoint_folder import check_ids, describe, load_tokenizer
from keras_efficient.models._classification_head import head_weights, span_head
from keras_efficient.models._trained_folder import WEIGHTS

#: Suffix of the classes of transformers by where their head is: on a text, on each token, or on
#: all tokens as the beginning and the end of an answer.
_KINDS = {
    "text": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "span": "ForQuestionAnswering",
}


def load_classifier(
    source: Path | str, num_labels: int, seed: int, head: str = "text"
) -> tuple[Model, Tokenizer]:
    """Load a transformers `TF...ForSequenceClassification` from a checked folder or a hub name.

    With `head="token"` it is a `TF...ForTokenClassification`, with "span" a
    `TF...ForQuestionAnswering` whose output is that of `span_model`.
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
                str(source), num_labels=num_labels, trust_remote_code=False
            )
            if isinstance(source, Path) and safetensors_files(source):
                model = auto.from_config(config, trust_remote_code=False)
                _load_safetensors(model, source)
            else:
                model = auto.from_pretrained(str(source), config=config, trust_remote_code=False)
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
    dense = _head(model)
    width = dense.kernel.shape[0]
    trained = span_head(source) if head == "span" else None
    dense.set_weights((trained or head_weights(width, num_labels, seed))[: len(dense.weights)])
    keep_float32(model, dense)
    if head == "span":
        model.config.sep_token_id = separator
        span_model(model)
    takes = inspect.signature(model.call).parameters
    inputs = {role: name for role, name in HUGGING_FACE.items() if name in takes}
    if isinstance(source, Path):
        return model, as_tokenizer(tokenizer, inputs=inputs)
    limit = getattr(config, "max_position_embeddings", None) or 512
    fast: Any = transformers.AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    tokenizer = Tokenizer(
        fast.backend_tokenizer, inputs=inputs, pad_id=fast.pad_token_id or 0, max_length=limit
    )
    check_tokenizer(json.loads(tokenizer.serialized or "{}"), describe(source))
    check_ids(tokenizer.largest_id, getattr(config, "vocab_size", None), describe(source))
    return model, tokenizer


def _head(model):
    head = next(
        getattr(model, name)
        for name in ("classifier", "qa_outputs", "score")
        if hasattr(model, name)
    )
    return getattr(head, "out_proj", head)


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


def describe_classifier(model: Any) -> tuple[dict, int, bool]:
    """Return the configuration of a classifier, its number of classes, and `exact_gelu`.

    The last one is for KerasHub alone: the configuration names the activation.

    Raises:
        InputError: the model is no classifier of sequences or tokens of Hugging Face.
    """
    config = getattr(model, "config", None)
    named = any(c.__name__.endswith((*_KINDS.values(),)) for c in type(model).__mro__)
    if config is None or not named or not hasattr(config, "to_json_string"):
        raise InputError(
            "A trained model is a text classifier of KerasHub or Hugging Face. Received: "
            f"{type(model).__name__} {model.name!r}. Save others with model.save('model.keras')."
        )
    return json.loads(config.to_json_string(use_diff=True)), config.num_labels, False


def restore_classifier(folder: Path, config: dict, info: Any) -> Model:
    """Build a saved classifier, and load its weights."""
    import transformers

    model: Any
    try:
        with quiet_logger("transformers"):
            settings = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
            auto: Any = getattr(transformers, f"TFAutoModel{_KINDS[info.head]}")
            model = auto.from_config(settings, trust_remote_code=False)
            model(model.dummy_inputs)
            model.load_weights(str(folder / WEIGHTS))
            if info.head == "span":
                span_model(model)
    # A folder can make transformers fail anywhere.
    except Exception as error:
        raise InputError(
            f"The configuration and weights of a trained model must fit. Received: {str(folder)!r},"
            f" for which transformers reports: {shortened(str(error)).rstrip('.')}. Install the "
            "version of transformers that saved it, or copy the folder again."
        ) from error
    keep_float32(model, _head(model))
    return model


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
    fresh = ("classifier", "pre_classifier", "score", "pooler", "qa_outputs")
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
