"""Tasks with Hugging Face's Trainer on PyTorch, for benchmarks/tasks.py --peer.

Run as `python tasks_peer.py FOLDER` by a Python with PyTorch, transformers and accelerate. FOLDER
holds `request.json`, with the model, the data and the settings; the script adds `result.json`: for
tagged words the classes of the labels and of the predictions, -100 where none counts; for questions
the answers; for labels of texts the logits.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers


def labelled(rows, tokenizer, max_length):
    """Return examples of texts, or of pairs of them, with a label."""
    examples = []
    for row in rows:
        tokens = tokenizer(*row["texts"], truncation=True, max_length=max_length)
        examples.append({**tokens, "labels": row["label"]})
    return examples


def tagged(rows, tokenizer, max_length):
    """Return examples with the label of a word at its first token, as Hugging Face's guide does."""
    examples = []
    for row in rows:
        tokens = tokenizer(
            row["tokens"], is_split_into_words=True, truncation=True, max_length=max_length
        )
        labels, before = [], None
        for word in tokens.word_ids():
            labels.append(-100 if word is None or word == before else row["tags"][word])
            before = word
        examples.append({**tokens, "labels": labels})
    return examples


def asked(rows, tokenizer, max_length):
    """Return examples with the first and the last token of the answer, as run_qa.py does."""
    examples = []
    for row in rows:
        tokens = tokenizer(row["question"], row["context"], return_offsets_mapping=True)
        assert len(tokens["input_ids"]) <= max_length, "these contexts fit into one window"
        offsets, parts = tokens.pop("offset_mapping"), tokens.sequence_ids()
        start = row["answers"]["answer_start"][0]
        end = start + len(row["answers"]["text"][0])
        inside = [i for i, (a, b) in enumerate(offsets) if parts[i] == 1 and a < end and b > start]
        examples.append({**tokens, "start_positions": inside[0], "end_positions": inside[-1]})
    return examples


def answers(rows, tokenizer, predictions):
    """Return the answer of the best start and end, of at most 30 tokens, as run_qa.py does."""
    found = []
    for row, start, end in zip(rows, *predictions, strict=True):
        tokens = tokenizer(row["question"], row["context"], return_offsets_mapping=True)
        context = [i for i, part in enumerate(tokens.sequence_ids()) if part == 1]
        pairs = [(i, j) for i in context for j in context if i <= j < i + 30]
        first, last = max(pairs, key=lambda pair: start[pair[0]] + end[pair[1]])
        offsets = tokens["offset_mapping"]
        found.append(row["context"][offsets[first][0] : offsets[last][1]])
    return found


def main(folder):
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    transformers.set_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(request["model"])
    kind, classes = request["kind"], len(request["label_names"])
    if kind == "question_answering":
        model = transformers.AutoModelForQuestionAnswering.from_pretrained(request["model"])
        encoded, collator = asked, transformers.DataCollatorWithPadding(tokenizer)
    elif kind == "token_classification":
        model = transformers.AutoModelForTokenClassification.from_pretrained(
            request["model"], num_labels=classes
        )
        encoded, collator = tagged, transformers.DataCollatorForTokenClassification(tokenizer)
    else:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            request["model"], num_labels=max(classes, 1), problem_type=kind
        )
        encoded, collator = labelled, transformers.DataCollatorWithPadding(tokenizer)
    train, validation = (
        encoded(request[name], tokenizer, request["max_length"]) for name in ("train", "validation")
    )
    settings = transformers.TrainingArguments(
        output_dir=str(folder / "run"),
        num_train_epochs=request["epochs"],
        learning_rate=request["learning_rate"],
        per_device_train_batch_size=request["batch_size"],
        per_device_eval_batch_size=64,
        warmup_ratio=0.1,
        weight_decay=0.01,
        group_by_length=True,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        logging_steps=50,
        seed=0,
    )
    trainer = transformers.Trainer(
        model=model, args=settings, train_dataset=train, data_collator=collator
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    # It groups what it evaluates by length, too, and the answers need the order of the questions.
    trainer.args.group_by_length = False
    found = trainer.predict(validation)
    result = {
        "library": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "seconds": seconds,
    }
    if kind == "question_answering":
        result["answers"] = answers(request["validation"], tokenizer, found.predictions[:2])
    elif kind == "token_classification":
        result["labels"] = found.label_ids.tolist()
        result["classes"] = np.argmax(found.predictions, -1).tolist()
    else:
        result["logits"] = found.predictions.tolist()
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
