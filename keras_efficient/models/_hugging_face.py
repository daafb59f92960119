"""tf_keras models through transformers (4.x, the last with TensorFlow classes)."""

import inspect
import logging
from contextlib import contextmanager
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.data._tokenizer import HUGGING_FACE, Tokenizer
from keras_efficient.dtype_policies._keep_float32 import keep_float32
from keras_efficient.models import _checkpoint_folder as checkpoint_folder
from keras_efficient.models._load import head_weights, name_of


def classifier(source, num_labels, seed):
    """A transformers `TF…ForSequenceClassification` from a checked folder or a hub name."""
    import transformers

    try:
        with _quiet("transformers"):
            config = transformers.AutoConfig.from_pretrained(str(source), num_labels=num_labels)
            if isinstance(source, Path) and checkpoint_folder.shards(source):
                model = transformers.TFAutoModelForSequenceClassification.from_config(config)
                _load_safetensors(model, source)
            else:
                model = transformers.TFAutoModelForSequenceClassification.from_pretrained(
                    str(source), config=config
                )
    except (ValueError, KeyError, OSError) as error:
        raise InputError(
            f"The model must be one for which transformers has a TensorFlow classifier. Received: "
            f"{name_of(source)}, on which it said: {str(error).strip()[:400]}. Check the spelling "
            "of a hub name and the network, or try library='keras'."
        ) from error
    head = model.classifier if hasattr(model, "classifier") else model.score
    head = getattr(head, "out_proj", head)
    width = head.kernel.shape[0]
    head.set_weights(head_weights(width, num_labels, seed)[: len(head.weights)])
    keep_float32(model, head)
    takes = inspect.signature(model.call).parameters
    inputs = {role: name for role, name in HUGGING_FACE.items() if name in takes}
    limit = getattr(config, "max_position_embeddings", None) or 512
    if isinstance(source, Path):
        return model, Tokenizer.from_directory(source, inputs=inputs, max_length=limit)
    fast = transformers.AutoTokenizer.from_pretrained(str(source))
    return model, Tokenizer(
        fast.backend_tokenizer, inputs=inputs, pad_id=fast.pad_token_id or 0, max_length=limit
    )


def _load_safetensors(model, path):
    """Give `model` the weights of a folder's safetensors, PyTorch's or TensorFlow's.

    transformers 4.54 to 4.57 cannot: `from_pretrained` dies of "'builtins.safe_open' object is
    not iterable" (traps 35). Its own converter does the renaming and transposing all the same,
    when it gets a plain dict.
    """
    from transformers.modeling_tf_pytorch_utils import load_pytorch_state_dict_in_tf2_model

    model(model.dummy_inputs)
    arrays = {}
    for shard in checkpoint_folder.shards(path):
        arrays.update(_read(shard))
    _, info = load_pytorch_state_dict_in_tf2_model(
        model,
        arrays,
        tf_inputs=model.dummy_inputs,
        allow_missing_keys=True,
        output_loading_info=True,
    )
    # The head is new, and so may be what feeds it; anything else missing would stay random.
    fresh = ("classifier", "pre_classifier", "score", "pooler")
    missing = [name for name in info["missing_keys"] if not set(name.split(".")) & set(fresh)]
    if missing:
        raise InputError(
            f"A weights file must hold every weight of the model. Received: {name_of(path)} "
            f"without {missing[0]!r} and {len(missing) - 1} others. Download it again."
        )


def _read(shard):
    """The arrays of a safetensors file, as float32 where they are floats."""
    import tensorflow as tf
    from safetensors import safe_open

    # TensorFlow, unlike NumPy, has a bfloat16 to read.
    with safe_open(shard, framework="tf") as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            tensor = file.get_tensor(name)
            yield (
                name,
                (tf.cast(tensor, tf.float32) if tensor.dtype.is_floating else tensor).numpy(),
            )


@contextmanager
def _quiet(name):
    """Hold back a logger's warnings: a fresh head is what the caller asked for."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
