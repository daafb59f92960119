"""The tokenizer of pairs in the graph gives the ids and segments of the one in Python."""

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from keras_efficient._errors import InputError
from keras_efficient.data import HUGGING_FACE, Tokenizer
from keras_efficient.exporters.tokenizer_ops.pair_tokenizer import PairTokenizer
from keras_efficient.serving._allowed_ops import ALLOWED_OPS

SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
WORDS = {f"w{i}": 4 + i for i in range(60)}
PROCESSORS = {
    "bert": processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
    "roberta": processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), False, False),
    "template": processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $B:1 [SEP] [SEP] $A:0 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    ),
}


def tokenizer(processor="bert", direction="right"):
    backend = tokenizers.Tokenizer(models.WordPiece({**SPECIAL, **WORDS}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = PROCESSORS.get(processor)
    backend.add_special_tokens(list(SPECIAL))
    backend.enable_truncation(32, direction=direction)
    return Tokenizer(backend, inputs=HUGGING_FACE, max_length=32)


def words(count):
    return " ".join(f"w{i}" for i in range(count))


@pytest.mark.parametrize("direction", ["right", "left"])
@pytest.mark.parametrize("processor", PROCESSORS)
def test_equals_the_python_tokenizer(processor, direction):
    """Every combination of lengths around the limits at which one or both texts are truncated."""
    mine = tokenizer(processor, direction)
    counts = (0, 1, 3, 4, 5, 6, 7, 20)
    firsts = [words(n) for n in counts for _ in counts]
    seconds = [words(n) for _ in counts for n in counts]
    for length in (8, 9, 32):
        tokenize = PairTokenizer(mine, length)
        tensors = tokenize(tf.constant(firsts), tf.constant(seconds))
        found = {name: tensor.numpy() for name, tensor in tensors.items()}
        ids, segments, *_ = mine.encode_pairs(firsts, seconds, length)
        assert found["input_ids"].shape[1] == max(map(len, ids))
        for row, (expected, segment) in enumerate(zip(ids, segments, strict=True)):
            padding = found["input_ids"].shape[1] - len(expected)
            for name, values in (
                ("input_ids", expected),
                ("token_type_ids", segment),
                ("attention_mask", np.ones_like(expected)),
            ):
                np.testing.assert_array_equal(found[name][row], np.pad(values, (0, padding)), name)


def test_the_graph_has_ops_that_predict_allows():
    tokenize = PairTokenizer(tokenizer())
    spec = tf.TensorSpec([None], tf.string)
    graph = tf.function(tokenize, autograph=False).get_concrete_function(spec, spec).graph
    definition = graph.as_graph_def()
    ops = {node.op for node in definition.node}
    ops |= {node.op for function in definition.library.function for node in function.node_def}
    assert not ops - set(ALLOWED_OPS)


def test_an_empty_batch():
    found = PairTokenizer(tokenizer())(tf.constant([], tf.string), tf.constant([], tf.string))
    assert found["input_ids"].shape[0] == 0


def test_what_cannot_be_joined():
    with pytest.raises(InputError, match="a post_processor of type None"):
        PairTokenizer(tokenizer(None))
    with pytest.raises(InputError, match="must allow two tokens"):
        PairTokenizer(tokenizer(), 4)
