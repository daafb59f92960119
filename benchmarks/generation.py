"""Tokens per second of an encoder-decoder's generation, beside KerasHub's own `generate`.

    python benchmarks/generation.py [--batch 1 8 64] [--tokens 32] [--rounds 7] [--threads 1]

A BART with random weights, of the size of examples/seq2seq.py, generates as many tokens as asked
for, of texts of 12 tokens: greedily in memory and by the exported signature of strings, by beam
search, and by `keras_hub.models.BartSeq2SeqLM.generate`, which keeps keys and values too, without
XLA and compiled by it. They take turns; the figures are medians over the rounds, by wall time and
by processor time. Texts that are generated greedily must be equal.
"""

import argparse
import os
import statistics
import tempfile
import time

from optimizer_step import cpu

LETTERS, OTHERS = "abcdefghijklmnopqrstuvwxyz", 70


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(arguments.threads)
        os.environ["TF_NUM_INTEROP_THREADS"] = str(arguments.threads)

    import numpy as np
    import tensorflow as tf
    from tokenizers import BertWordPieceTokenizer

    import keras_efficient as ke

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokens = [*special, *LETTERS, *(f"##{x}" for x in LETTERS), *(f"P{i}" for i in range(OTHERS))]
    words = BertWordPieceTokenizer({x: i for i, x in enumerate(tokens)}, lowercase=False)
    model, tokenizer = ke.models.create(
        ke.data.Tokenizer(words, inputs=ke.data.HUGGING_FACE, max_length=64),
        task="seq2seq",
        num_layers=3,
        intermediate_dim=512,
    )
    rng = np.random.default_rng(0)
    for weight in model.weights:
        array = weight.numpy() + 0.02 * rng.normal(size=weight.shape)
        if len(array) == len(tokens):
            # Never the most probable tokens: nothing ends before its time.
            array[:4] = 0.0
        weight.assign(array)
    begin, _ = tokenizer.ends
    records = ke.data.Records.of(["abc"] * 2, ["P1", "P2"], encode=ke.tasks.Seq2Seq().encode)
    sample = next(iter(ke.data.text(records, tokenizer, batch_size=2)))

    def task(strategy):
        return ke.tasks.Seq2Seq(max_tokens=arguments.tokens, strategy=strategy)

    def in_memory(strategy):
        run = tf.function(
            lambda features: task(strategy).answer(model, features, tokenizer)["generated_text"],
            autograph=False,
        )
        return lambda texts, features: run(features).numpy()

    with tempfile.TemporaryDirectory() as folder:
        report = ke.export(
            model,
            f"{folder}/model",
            sample=sample,
            tokenizer=tokenizer,
            task=task(ke.generation.Greedy()),
            latency=False,
        )
        exported = tf.saved_model.load(str(report.directory)).signatures["text"]
    detokenize = ke.data.Detokenizer(tokenizer)

    def keras_hub(jit):
        model.compile(sampler="greedy", jit_compile=jit)
        function = model.make_generate_function()

        def run(texts, features):
            ids = tf.pad(tf.fill([len(texts), 1], begin), [[0, 0], [0, arguments.tokens]])
            given = {"decoder_token_ids": ids, "decoder_padding_mask": tf.cast(ids > 0, tf.int32)}
            found = function(features | given, stop_token_ids=None)
            return detokenize(found["decoder_token_ids"]).numpy()

        model.generate_function = None
        return run

    ways = {
        "in memory": in_memory(ke.generation.Greedy()),
        "exported": lambda texts, features: exported(text=tf.constant(texts))[
            "generated_text"
        ].numpy(),
        "beam of 4": in_memory(ke.generation.Beam(4)),
        "KerasHub": keras_hub(False),
        "KerasHub, XLA": keras_hub(True),
    }
    print(f"{cpu()}, {arguments.threads or 'all'} threads, {arguments.tokens} tokens")
    for batch in arguments.batch:
        texts = ["".join(rng.choice(list(LETTERS), 10)) for _ in range(batch)]
        ids = tf.constant(np.stack(tokenizer.encode(texts)))
        features = {"encoder_token_ids": ids, "encoder_padding_mask": tf.ones_like(ids)}
        found = {name: way(texts, features) for name, way in ways.items()}
        for name, generated in found.items():
            if name != "beam of 4" and generated.tolist() != found["in memory"].tolist():
                raise SystemExit(f"{name} generates other texts")
        times = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                wall, processor = time.perf_counter(), time.process_time()
                way(texts, features)
                times[name].append((time.perf_counter() - wall, time.process_time() - processor))
        print(f"batch {batch}")
        for name, pairs in times.items():
            wall, processor = (statistics.median(column) for column in zip(*pairs, strict=True))
            count = batch * arguments.tokens
            print(
                f"  {name:<14} {count / wall:10,.0f} tokens/s   {count / processor:10,.0f} per "
                "processor second"
            )


if __name__ == "__main__":
    main()
