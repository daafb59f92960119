"""Helpers for tests of the command line: tiny inputs, and a runner in this process."""

import contextlib
import csv
import io
import json
import os
import sys
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest

HIDDEN, INTERMEDIATE, POSITIONS = 16, 32, 32
GOOD = ("good", "great", "fine", "lovely", "bright")
BAD = ("bad", "awful", "dull", "weak", "poor")
COMMON = ("the", "film", "was", "a", "plot", "and", "very", "actor", "scene", "but", ".")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *COMMON)


def bert_arrays(layers=1):
    """Return the weights of a small BERT under their PyTorch names."""
    rng = np.random.default_rng(7)
    shapes = {
        "embeddings.word_embeddings.weight": (len(VOCABULARY), HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    dense, norms = {}, ["embeddings"]
    for number in range(layers):
        layer = f"encoder.layer.{number}."
        dense |= {
            f"{layer}attention.self.query": (HIDDEN, HIDDEN),
            f"{layer}attention.self.key": (HIDDEN, HIDDEN),
            f"{layer}attention.self.value": (HIDDEN, HIDDEN),
            f"{layer}attention.output.dense": (HIDDEN, HIDDEN),
            f"{layer}intermediate.dense": (INTERMEDIATE, HIDDEN),
            f"{layer}output.dense": (HIDDEN, INTERMEDIATE),
        }
        norms += [f"{layer}attention.output", f"{layer}output"]
    dense["pooler.dense"] = (HIDDEN, HIDDEN)
    for name, shape in dense.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    arrays = {name: rng.normal(0, 0.3, shape).astype("float32") for name, shape in shapes.items()}
    for name in norms:
        arrays[f"{name}.LayerNorm.weight"] = np.ones(HIDDEN, "float32")
        arrays[f"{name}.LayerNorm.bias"] = np.zeros(HIDDEN, "float32")
    return arrays


def write_bert(folder, dropout, layers=1):
    from safetensors.numpy import save_file
    from tokenizers import BertWordPieceTokenizer

    folder.mkdir(parents=True)
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_act": "gelu",
        "hidden_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": INTERMEDIATE,
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    BertWordPieceTokenizer(str(folder / "vocab.txt")).save(str(folder / "tokenizer.json"))
    save_file(bert_arrays(layers), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def review_rows(count, seed=0):
    """Return (text, label) pairs of various lengths; the words of a text determine its label."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        label, words = [("negative", BAD), ("positive", GOOD)][number % 2]
        text = [*rng.choice(COMMON[:-1], rng.integers(2, 16)), *rng.choice(words, 2)]
        rows.append((" ".join(rng.permutation(text)) + " .", label))
    return rows


def write_reviews(path, rows):
    """Write the pairs in the format that the suffix names."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows)
        else:
            tabs = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
            writer = csv.writer(file, **(tabs if path.suffix == ".tsv" else {}))
            writer.writerows([("text", "label"), *rows])
    return path


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a run of the command line."""

    code: int
    out: str
    err: str

    def refused(self, *parts):
        """Assert exit code 2 and a message, without a traceback, that has all of `parts`."""
        assert self.code == 2, self
        assert "Traceback" not in self.err and not self.out, self
        for part in map(str, parts):
            assert part in self.err, f"{part!r} is not in: {self.err}"


def keras_efficient(*arguments):
    """Run `keras-efficient ARGUMENTS` in this process; an exception that escapes fails the test."""
    from keras_efficient.cli import main

    out, err = io.StringIO(), io.StringIO()
    argv = ["keras-efficient", *map(str, arguments)]
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", argv),
        # A wide terminal, so that paths are not broken over lines.
        mock.patch.dict(os.environ, COLUMNS="400"),
        pytest.raises(SystemExit) as stopped,
    ):
        main()
    return Outcome(stopped.value.code, out.getvalue(), err.getvalue())


def finetune_arguments(data, model, output, **options):
    """Return the arguments of a quick `finetune`; None leaves an option out, True is a flag."""
    defaults = {"epochs": 1, "batch_size": 8, "precision": "float32", "max_length": 32}
    options = {**defaults, "learning_rate": 1e-2, **options}
    words = ["finetune", str(data), "--model", str(model), "--output", str(output)]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is not None:
            words += [flag, str(value)]
    return words


def versions(output):
    """Return the published versions in a folder, which need not exist."""
    return sorted(p.name for p in output.iterdir() if p.name.isdecimal()) if output.is_dir() else []


@dataclass(frozen=True)
class Exported:
    """Weights and facts that would have been exported."""

    weights: list
    facts: dict

    def largest_difference(self, other):
        pairs = zip(self.weights, other.weights, strict=True)
        return max(float(np.abs(a - b).max()) for a, b in pairs)
