"""Fixtures for tests of the command line: tiny BERT folders and a small file of reviews."""

import shutil

import pytest
from command_line import (
    Exported,
    finetune_arguments,
    keras_efficient,
    review_rows,
    write_bert,
    write_reviews,
)

import keras_efficient as ke


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """Return a tiny Hugging Face BERT folder, with dropout."""
    return write_bert(tmp_path_factory.mktemp("models") / "bert", dropout=0.1)


@pytest.fixture(scope="session")
def bert_without_dropout(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("models") / "bert", dropout=0.0)


@pytest.fixture
def bert_copy(bert, tmp_path):
    """Return a copy of the folder that the test may change."""
    return shutil.copytree(bert, tmp_path / "bert_copy")


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    """Return a CSV file of 60 reviews."""
    return write_reviews(tmp_path_factory.mktemp("data") / "reviews.csv", review_rows(60))


@pytest.fixture(scope="session")
def run():
    return keras_efficient


@pytest.fixture(scope="session")
def finetune():
    """Return a function of (data, model, output, **options) that runs the command."""
    return lambda *args, **options: keras_efficient(*finetune_arguments(*args, **options))


@pytest.fixture
def exported(monkeypatch):
    """Replace the export by one that writes an empty version; return the list of what it was given.

    Tests of training use it: the real export takes seconds, and has its own tests.
    """
    runs = []

    def export(
        model, directory, *, sample, tokenizer, labels, task, quantize, target, evaluate, facts
    ):
        version = ke.exporters.check_destination(directory)
        version.mkdir(parents=True)
        runs.append(Exported(model.get_weights(), facts))
        return ke.exporters.ExportReport(
            version, 0, 0, 0.0, 0.0, {}, {}, "", accuracy=facts.get("accuracy")
        )

    monkeypatch.setattr(ke, "export", export)
    return runs
