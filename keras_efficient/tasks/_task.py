"""`Task`: what a text Transformer is trained for, as one definition that all other code reads."""

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._read_records import read_records
from keras_efficient.data._records import Records
from keras_efficient.data._tokenized_texts import TokenizedTexts
from keras_efficient.flavor._typing import Dataset, Model, Tensor
from keras_efficient.metrics._labelled_batches import scored_batches
from keras_efficient.metrics._scores import scores_of
from keras_efficient.metrics._task_report import TaskReport

#: Where heads have outputs: see `Task`.
HEADS = ("text", "token", "span", "masked_token", "next_token", "decoder", "embedding")


class Task(abc.ABC):
    """Base class of tasks: label format, size of the head, loss, metrics, decoding and signature.

    A task is a subclass in one file. `ke.tasks.register` makes it known by its name. Loading, data,
    the command line, export, `predict` and reports read it, and mention no task by name. Objects
    are cheap and hold nothing but `texts`.

    Args:
        texts: Number of texts per example, 2 for pairs of texts. Default: 1.

    Attributes:
        name: str, by which `ke.tasks.get` and `--task` find the task. A class attribute.
        choices: dict by metric of the names for readers and "max" or "min": by which validation
            metrics the best epoch may be chosen, the default first. A class attribute.
        serves: names of the outputs that `serve` adds to those of the model. A class attribute.
        head: where the head has outputs: "text" for each text; "token" for each token; "span" two
            rows for each pair of texts, which are logits of all tokens as the first and the last
            one of an answer; "masked_token" for each masked token, one for each word of the
            vocabulary; "next_token" likewise for each token, from those before it; "decoder"
            likewise for each token of another text; "embedding" the pooled hidden states of each
            text, without weights of a head. For "token", "span" and "masked_token" `serve`
            gets the tokens, too. A class attribute. Default: "text".
        generates: whether the signature of strings answers by `answer` in place of `serve`, because
            the outputs of one call of the model are not enough. A class attribute. Default: False.
        labelled: whether data has labels. A class attribute. Default: True.
        pretrains: whether a trained model is also a start for other tasks, which take its encoder.
            A class attribute. Default: False.
        finetunes: whether `keras-efficient finetune` can train models of the task, by a loss of
            single examples. A class attribute. Default: True.
        compresses: whether `keras-efficient compress` can make models of the task smaller, for
            which it must have `predicted_labels` or `pseudo_label`. A class attribute. Default:
            False.

    Raises:
        InputError: `texts` is neither 1 nor 2.

    Examples:
        >>> task = ke.tasks.get("classification")
        >>> task.name, task.head_size(None), task.serves
        ('classification', 2, ('probabilities', 'label'))

    Reference:
        The `pipeline` tasks of Hugging Face, https://huggingface.co/docs/transformers/tasks.
    """

    name: ClassVar[str]
    choices: ClassVar[Mapping[str, tuple[str, str]]] = {"loss": ("loss", "min")}
    serves: ClassVar[tuple[str, ...]]
    head: ClassVar[str] = "text"
    generates: ClassVar[bool] = False
    labelled: ClassVar[bool] = True
    pretrains: ClassVar[bool] = False
    finetunes: ClassVar[bool] = True
    compresses: ClassVar[bool] = False

    def __init__(self, texts: int = 1):
        if texts not in (1, 2):
            raise InputError(
                f"`texts` must be 1, or 2 for pairs of texts. Received: {texts!r}. Join further "
                "texts in one column."
            )
        self.texts = texts

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the names of the texts, which are those of the inputs of the signature."""
        return ("text", "second_text")[: self.texts]

    @property
    def window(self) -> tuple[int, int] | None:
        """Return the windows in which a `head` of spans reads long texts, or None.

        They are the number of tokens of a window, and how many of them two windows share. None
        means the length of the tokenizer and a third of it.
        """
        return None

    def __repr__(self) -> str:
        pairs = ", of pairs of texts" if self.texts == 2 else ""
        return f"<task {self.name}{pairs}>"

    # --- label format ------------------------------------------------------------------------

    @abc.abstractmethod
    def encode(
        self,
        values: Sequence[Any],
        label_names: Sequence[str] | None,
        where: Callable[[int], str],
    ) -> tuple[Any, tuple[str, ...]]:
        """Return the labels for `Records`, and the names of the classes.

        Args:
            values: labels as they stand in the data; a dict of values by column for labels in
                several columns.
            label_names: names of the classes; None for those that occur.
            where: function of i that names the origin of value i, for error messages.

        Raises:
            InputError: a value is not a label of this task.
        """

    def read(self, source: Any, **columns: Any) -> Records:
        """Read data with labels of this task; the arguments are those of `ke.data.read_records`."""
        return read_records(source, encode=self.encode, **columns)

    def tokenize_to_disk(
        self, source: Any, tokenizer: Any, directory: Any, **options: Any
    ) -> TokenizedTexts:
        """Tokenize data that is larger than memory, with labels of this task.

        Args:
            source: as for `ke.data.tokenize_to_disk`.
            tokenizer: likewise.
            directory: likewise.
            options: its further arguments, but for `encode`.

        Raises:
            InputError: the data cannot be used, or labels of this task cannot stand on a disk.
        """
        # TensorFlow is imported with it.
        from keras_efficient.data._tokenize_to_disk import tokenize_to_disk

        return tokenize_to_disk(source, tokenizer, directory, encode=self.encode, **options)

    @abc.abstractmethod
    def check(self, train: Records, validation: Records | None = None) -> None:
        """Require that records can be learned from.

        Args:
            train: records to train on.
            validation: records split off from them, or None if these are of another file.

        Raises:
            InputError: nothing can be learned, such as one class.
        """

    @abc.abstractmethod
    def describe(self, train: Records, validation: Records) -> tuple[str, str]:
        """Return in a few words the labels, and how good an answer without a model is.

        Args:
            train: records to train on.
            validation: records to evaluate on.
        """

    def batches(
        self, records: Any, tokenizer: Any, *, training: bool = True, **options: Any
    ) -> Dataset:
        """Return batches of texts for `fit` and `evaluate`: those of `ke.data.text`, the default.

        Args:
            records: as for `ke.data.text`.
            tokenizer: as for `ke.data.text`.
            training: whether the batches are for training, rather than for an evaluation that must
                be the same each time. Default: True.
            options: further arguments of `ke.data.text`.
        """
        # TensorFlow is imported with it.
        from keras_efficient.data._text import text

        return text(records, tokenizer, **options)

    def class_weights(self, train: Records) -> dict[int, float]:
        """Return `{class: weight}` such that all classes weigh the same in the loss.

        Raises:
            InputError: the task has no classes that exclude each other; the default.
        """
        raise InputError(
            "`class_weights` are for tasks with one class per text. Received: the task "
            f"{self.name!r}. Leave them out."
        )

    # --- head, loss and metrics --------------------------------------------------------------

    @abc.abstractmethod
    def head_size(self, num_labels: int | None) -> int:
        """Return the number of outputs of the head.

        Args:
            num_labels: number of classes, or None if it was not given.

        Raises:
            InputError: the task takes no such number.
        """

    def label_names(self, given: Sequence[str] | None, outputs: int) -> list[str]:
        """Return the names of the outputs of the head: those given, or their numbers.

        Raises:
            InputError: there are more or fewer names than outputs.
        """
        names = list(map(str, range(outputs) if given is None else given))
        if len(names) != outputs:
            raise InputError(
                f"`label_names` must name each class. Received: {len(names)} names for a model of "
                f"{outputs} classes. Give them in the order of the logits."
            )
        return names

    @abc.abstractmethod
    def loss(self, keras: Any) -> Any:
        """Return the loss for `compile`, from logits.

        Args:
            keras: the module `keras` or `tf_keras`.
        """

    def metrics(self, keras: Any, num_labels: int) -> list:
        """Return the metrics for `compile`. Default: none.

        Args:
            keras: the module `keras` or `tf_keras`.
            num_labels: size of the head.
        """
        return []

    # --- evaluation --------------------------------------------------------------------------

    def with_data(self, data: Any) -> "Task":
        """Return the task with what its report needs of the data besides labels; here itself.

        Args:
            data: The labelled batches that are evaluated.
        """
        return self

    @abc.abstractmethod
    def batch_labels(self, labels: Any, argument: str) -> np.ndarray:
        """Return the labels of a batch of `fit` as `report` takes them.

        Args:
            labels: labels as `fit` takes them.
            argument: name of the argument that they came by, for error messages.

        Raises:
            InputError: they are labels of another task.
        """

    def scores(self, outputs: Mapping[str, Any], labels: Any = None) -> np.ndarray:
        """Return a model's scores among its outputs: "logits", or the only float output.

        Args:
            outputs: arrays by name, of one batch.
            labels: what `batch_labels` returned for it, for tasks that only need scores of labels.
                Default: None.
        """
        return scores_of(outputs)

    def aligned(self, scores: np.ndarray, like: np.ndarray) -> np.ndarray:
        """Return an export's scores, so that they are read like those in memory, `like`."""
        return scores

    @abc.abstractmethod
    def report(
        self,
        labels: np.ndarray,
        scores: np.ndarray,
        label_names: Sequence[str] | None = None,
        *,
        sample_weight: Any = None,
    ) -> TaskReport:
        """Compare scores with labels, beside a baseline and with a confidence interval.

        Args:
            labels: array as `batch_labels` returns it.
            scores: float array `[examples, outputs]`, or `[examples, tokens, outputs]`, as
                `scores` returns it.
            label_names: name of each class. Default: None, their numbers.
            sample_weight: float array `[examples]`. Default: None, ones.
        """

    def evaluate(
        self,
        model: Model,
        data: Iterable[Any],
        label_names: Sequence[str] | None = None,
        *,
        tokenizer: Any = None,
    ) -> TaskReport:
        """Evaluate a model in memory on finite labelled batches, as `ke.data.text` makes them.

        Args:
            model: the model.
            data: the batches.
            label_names: name of each class. Default: None, their numbers.
            tokenizer: the model's `ke.data.Tokenizer`, for tasks whose answers are texts. Default:
                None.
        """
        task = self.with_data(data)
        labels, scores, weights = scored_batches(model, data, task.batch_labels, task.scores)
        return task.report(labels, scores, label_names, sample_weight=weights)

    def predicted_labels(self, scores: np.ndarray) -> np.ndarray:
        """Return what the scores of texts predict, as `Records` have labels.

        Tasks whose labels are no array have `pseudo_label` instead.

        Args:
            scores: float array `[examples, outputs]`.

        Raises:
            NotImplementedError: the task does not say; the default.
        """
        raise NotImplementedError

    def pseudo_label(
        self,
        records: Records,
        tokenizer: Any,
        predict: Callable[[Any], Any],
        label_names: Sequence[str] = (),
        **options: Any,
    ) -> Records:
        """Label texts with what a model predicts for them; by default with `predicted_labels`.

        Args:
            records: texts, or pairs of texts, without labels.
            tokenizer: the model's `ke.data.Tokenizer`.
            predict: function of the features of a batch that returns the model's logits.
            label_names: name of each class. Default: (), no classes.
            options: further arguments of `batches`, such as `batch_size` and `max_length`.

        Returns:
            The records with labels. Texts for which nothing can be predicted may be left out.

        Reference:
            Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for
            Deep Neural Networks".
        """
        data = self.batches(records, tokenizer, shuffle=False, **options)
        scores = np.concatenate([np.asarray(predict(features)) for features in data])
        names, source = tuple(label_names), records.source
        labels = self.predicted_labels(scores)
        return Records(records.texts, labels, names, source, records.second_texts)

    # --- signature and decoding --------------------------------------------------------------

    @abc.abstractmethod
    def serve(
        self,
        logits: Tensor,
        label_names: Sequence[str] | None,
        tokens: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the outputs that the signature of strings adds, `serves`, in TensorFlow ops.

        Args:
            logits: float32 `[batch, outputs]`, `[batch, tokens, outputs]`, or for a `head` of spans
                `[windows, 2, tokens]`.
            label_names: name of each class, or None.
            tokens: tensors by name, for a `head` of tokens alone. "token": "first", int32
                `[batch, tokens]`, 1 for the first token of a word, otherwise 0; "starts" and
                "ends", likewise, the first character of a token's word and the character after its
                last one, 0 for special tokens and padding. "span": "starts" and "ends", int32
                `[windows, tokens]`, 0 outside of the second text; "rows", int32 `[windows]`, the
                example of each window; and "texts", string `[batch]`, the second texts.
                "masked_token": "vocabulary", string `[vocabulary]`, the tokens by their ids; and
                "masked", int32 `[batch]`, the number of mask tokens. Default: None.

        Raises:
            InputError: the names are not those of the outputs.
        """

    def check_tokenizer(self, tokenizer: Any) -> None:  # noqa: B027 - often nothing
        """Require what the signature of strings needs of a tokenizer; the default is nothing.

        Raises:
            InputError: it has no such tokens, or no space for them.
        """

    def answer(
        self, model: Model, features: Mapping[str, Tensor], tokenizer: Any
    ) -> dict[str, Tensor]:
        """Return the outputs of the signature of strings, `serves`, if the task `generates`.

        Args:
            model: the model, in memory; this runs in an exported graph, too.
            features: int32 `[batch, tokens]`, the inputs that the texts make.
            tokenizer: the model's `ke.data.Tokenizer`.

        Raises:
            NotImplementedError: the task does not generate; the default.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def decode(
        self, outputs: Mapping[str, list], label_names: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """Return the answer for each text, of the outputs of a served model.

        Args:
            outputs: lists of numbers or strings by the names in `serves`, and the texts by those in
                `inputs`.
            label_names: name of each class as it was exported, or None.

        Raises:
            KeyError, TypeError, ValueError: the outputs are not those of this task.
        """
