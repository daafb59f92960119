import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from keras_efficient.data import KERASHUB, Tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [f"w{i}" for i in range(200)]


def word_piece(**model) -> tokenizers.Tokenizer:
    """Make a BERT-like tokenizer whose words are w0 to w199, each one token."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL + WORDS)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", **model))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


@pytest.fixture
def backend():
    return word_piece()


@pytest.fixture
def tokenizer(backend):
    return Tokenizer(backend, inputs=KERASHUB, max_length=128)


@pytest.fixture
def vocabulary():
    return SPECIAL + WORDS
