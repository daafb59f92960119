"""Token classification with Hugging Face's Trainer on PyTorch, for benchmarks/tasks.py --peer.

Run as `python tasks_peer.py FOLDER` by a Python with PyTorch, transformers and accelerate. FOLDER
holds `request.json`, with the model, the tagged words and the settings; the script adds
`result.json`, with the classes of the labels and of the predictions, -100 where none counts.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers


def encoded(rows, tokenizer, max_length):
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


def main(folder):
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    transformers.set_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(request["model"])
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        request["model"], num_labels=len(request["label_names"])
    )
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
        model=model,
        args=settings,
        train_dataset=train,
        data_collator=transformers.DataCollatorForTokenClassification(tokenizer),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    found = trainer.predict(validation)
    result = {
        "library": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "seconds": seconds,
        "labels": found.label_ids.tolist(),
        "classes": np.argmax(found.predictions, -1).tolist(),
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
