"""Write a Hugging Face folder of a tiny BERT, with PyTorch's names and layout."""

import json

import numpy as np
from tokenizers import BertWordPieceTokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "film", "was", "very", "good", "bad", "and", "not", "a", "plot", "with", "great")
VOCABULARY = [*SPECIAL, *WORDS, "actors", "##s", "##ly", "."]
HIDDEN, LAYERS, INNER, POSITIONS = 16, 2, 32, 32
TEXTS = ["the film was good .", "bad", "a very great plot and great actors , not bad films"]


def arrays(seed=0):
    """Return `{PyTorch's name: array}`."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(0, 0.3, shape).astype("float32")

    found = {
        "embeddings.word_embeddings.weight": normal(len(VOCABULARY), HIDDEN),
        "embeddings.position_embeddings.weight": normal(POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": normal(2, HIDDEN),
    }

    def norm(name):
        found[f"{name}.weight"], found[f"{name}.bias"] = 1 + normal(HIDDEN), normal(HIDDEN)

    def dense(name, inputs, outputs):
        found[f"{name}.weight"], found[f"{name}.bias"] = normal(outputs, inputs), normal(outputs)

    norm("embeddings.LayerNorm")
    for index in range(LAYERS):
        layer = f"encoder.layer.{index}"
        for part in ("query", "key", "value"):
            dense(f"{layer}.attention.self.{part}", HIDDEN, HIDDEN)
        dense(f"{layer}.attention.output.dense", HIDDEN, HIDDEN)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", HIDDEN, INNER)
        dense(f"{layer}.output.dense", INNER, HIDDEN)
        norm(f"{layer}.output.LayerNorm")
    dense("pooler.dense", HIDDEN, HIDDEN)
    return found


def config():
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "vocab_size": len(VOCABULARY),
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0,
    }


def write(folder, *, tensors=None, tokenizer=True):
    """Write the folder; returns its path."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config()))
    tensors = arrays() if tensors is None else tensors
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if tokenizer:
        (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
        word_piece = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
        word_piece.save(str(folder / "tokenizer.json"))
    return folder


def features(tokenizer, texts=TEXTS):
    """Return a padded batch of features for the model."""
    ids = tokenizer.encode(texts)
    length = max(map(len, ids))
    batch = {role: np.zeros((len(ids), length), "int32") for role in tokenizer.inputs}
    for row, text in enumerate(ids):
        batch["ids"][row, : len(text)] = text
        if "mask" in batch:
            batch["mask"][row, : len(text)] = 1
    return {tokenizer.inputs[role]: values for role, values in batch.items()}


def logits(model, tokenizer):
    """Return the logits of `TEXTS` by a model of either library."""
    output = model(features(tokenizer))
    return np.asarray(getattr(output, "logits", output))
