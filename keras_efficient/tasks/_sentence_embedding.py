"""`SentenceEmbedding`: one vector per text, close to those of similar texts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._records import Records
from keras_efficient.flavor._typing import Dataset, Model, Tensor
from keras_efficient.metrics._embedding_report import EmbeddingReport, embedding_report
from keras_efficient.metrics._scores import scores_of
from keras_efficient.tasks._regression import Regression
from keras_efficient.tasks._task import Task


class SentenceEmbedding(Task):
    """Sentence embeddings: each text gets a vector, and similar texts similar vectors.

    The model's output is the mean of the hidden states of the tokens, `[batch, width]`, of unit
    length, so that the product of two embeddings is their cosine similarity. It is trained by
    `ke.contrastive`, without a compiled loss: on single texts by "simcse", and on pairs of texts
    that belong together, such as questions and answers, by "multiple_negatives". The report is a
    `ke.metrics.EmbeddingReport` of pairs: with a score for each pair it tells how well similarities
    agree with the scores, and without scores how often the second text is found.

    The signature of strings takes single texts, and answers with "embedding", float32
    `[batch, width]`. The trained encoder is also a start for other tasks:
    `ke.models.load(folder, task="classification", num_labels=2)`.

    Args:
        texts: Number of texts per example, 2 for pairs of texts. Default: 1.

    Examples:
        >>> task = ke.tasks.SentenceEmbedding(texts=2)
        >>> model, tokenizer = ke.models.load("models/all-MiniLM-L6-v2", task=task)
        >>> pairs = ke.data.Records.of(["who left?", "where?"], second_texts=["Anna", "in Rome"])
        >>> batches = task.batches(pairs, tokenizer, batch_size=2)
        >>> next(iter(batches))["token_ids"].shape[:2]
        TensorShape([2, 2])
        >>> sorted(task.evaluate(model, batches).recall)
        [1, 5, 10]

    Reference:
        Reimers & Gurevych 2019, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks";
        `sentence_transformers.SentenceTransformer`.
    """

    name = "sentence_embedding"
    choices: ClassVar = {"loss": ("loss", "min")}
    serves = ("embedding",)
    head = "embedding"
    labelled = False
    pretrains = True
    finetunes = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return "text": each text has its own embedding."""
        return ("text",)

    def encode(
        self,
        values: Sequence[Any],
        label_names: Sequence[str] | None,
        where: Callable[[int], str],
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the scores of pairs, float32 numbers, and no names."""
        return Regression().encode(values, label_names, where)

    def read(self, source: Any, **columns: Any) -> Records:
        """Read texts, or pairs of texts; scores of pairs only if `label_column` is given."""
        return super().read(source, **{"label_column": None, **columns})

    def check(self, train: Records, validation: Records | None = None) -> None:
        """Require two examples, each of as many texts as the task has."""
        given = 1 if train.second_texts is None else 2
        if len(train) < 2 or given != self.texts:
            raise InputError(
                f"Embeddings are learned from two or more examples of {self.texts} texts, the "
                f"`texts` of the task. Received: {len(train)} of {given} ({train.source}). Read "
                "pairs with two text columns, or change `texts`."
            )

    def describe(self, train: Records, validation: Records) -> tuple[str, str]:
        """Return how many examples there are, and how good an answer by chance is."""
        if validation.labels is not None:
            return f"{len(train):,} examples", "chance has a correlation of 0"
        number = len(set(validation.second_texts or validation.texts))
        return f"{len(train):,} examples", f"chance finds 1 of {number:,} texts"

    def batches(
        self, records: Any, tokenizer: Any, *, training: bool = True, **options: Any
    ) -> Dataset:
        """Return batches of texts, or of pairs with the features `[batch, 2, length]`."""
        pairs = {"separate": True} if self.texts == 2 else {}
        return super().batches(records, tokenizer, training=training, **options, **pairs)

    def head_size(self, num_labels: int | None) -> int:
        """Return 0: the width of the embeddings is that of the model."""
        if num_labels is not None:
            raise InputError(
                "Embeddings have the width of the model. Received: "
                f"num_labels={num_labels!r}. Leave `num_labels` out."
            )
        return 0

    def label_names(self, given: Sequence[str] | None, outputs: int) -> list[str]:
        """Return no names."""
        if given:
            raise InputError(
                "The numbers of an embedding have no names. Received: "
                f"{len(given)} label_names. Leave them out."
            )
        return []

    def loss(self, keras: Any) -> None:
        """Return None: `ke.contrastive` sets the loss."""
        return

    def batch_labels(self, labels: Any, argument: str) -> np.ndarray:
        """Return the scores of pairs, float64 `[batch]`."""
        return Regression().batch_labels(labels, argument)

    def scores(self, outputs: Mapping[str, Any], labels: Any = None) -> np.ndarray:
        """Return the embeddings, float32 `[batch, width]`."""
        return scores_of(outputs).astype("float32")

    def report(
        self,
        labels: np.ndarray | None,
        scores: np.ndarray,
        label_names: Sequence[str] | None = None,
        *,
        sample_weight: Any = None,
    ) -> EmbeddingReport:
        """Return how well embeddings of pairs, `[pairs, 2, width]`, agree with their scores."""
        return embedding_report(scores, labels)

    def evaluate(
        self,
        model: Model,
        data: Iterable[Any],
        label_names: Sequence[str] | None = None,
        *,
        tokenizer: Any = None,
    ) -> EmbeddingReport:
        """Evaluate a model on batches of pairs, with scores or without, as `batches` makes them.

        Raises:
            InputError: the batches are not of pairs.
        """
        found, labels, keys = [], [], {}
        numbers = []
        for batch in data:
            features, *scores = batch if isinstance(batch, tuple) else (batch,)
            arrays = {name: np.asarray(value) for name, value in features.items()}
            if any(array.ndim != 3 for array in arrays.values()):
                shapes = {name: array.shape for name, array in arrays.items()}
                raise InputError(
                    "Embeddings are evaluated on pairs of texts, features [batch, 2, length]. "
                    f"Received: {shapes}. Make batches of pairs with "
                    'ke.tasks.get("sentence_embedding", texts=2).'
                )
            labels += [self.batch_labels(score, "data") for score in scores[:1]]
            rows = {name: array.reshape(-1, array.shape[-1]) for name, array in arrays.items()}
            outputs = model.predict_on_batch(rows)
            named = outputs if isinstance(outputs, Mapping) else {"": outputs}
            embeddings = self.scores(named)
            found.append(embeddings.reshape(-1, 2, embeddings.shape[-1]))
            # Equal texts are one candidate, however they are padded.
            for row in zip(*(array[:, 1] for array in arrays.values()), strict=True):
                key = b"|".join(np.trim_zeros(part, "b").tobytes() for part in row)
                numbers.append(keys.setdefault(key, len(keys)))
        return embedding_report(
            np.concatenate(found), np.concatenate(labels) if labels else None, keys=numbers
        )

    def serve(self, logits: Tensor, label_names: Sequence[str] | None) -> dict[str, Tensor]:
        """Return "embedding", the only output."""
        return {"embedding": logits}

    def decode(
        self, outputs: Mapping[str, list], label_names: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """Return "embedding", a list of floats, of each text."""
        rows = [list(map(float, row)) for row in outputs["embedding"]]
        if not all(row and np.isfinite(row).all() for row in rows):
            raise ValueError("not finite numbers for each text")
        return [{"embedding": row} for row in rows]
