"""Learn to pronounce words with an encoder-decoder from scratch, and export it with generation.

    python examples/seq2seq.py [--limit 2000] [--epochs 1] [--library tf_keras]

The words and their phonemes are those of the CMU Pronouncing Dictionary. Ran on a 2-core CPU as it
is, in 71 minutes of processor time, and with `--limit 2000 --epochs 1`, tf_keras, float32, which is
too short to learn much. Not run: GPU, TPU, several devices.
"""

import argparse

from tokenizers import BertWordPieceTokenizer

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", help="CSV file with `text` and `phonemes` [CMU dictionary]")
parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
parser.add_argument("--limit", type=int, help="use this many words [all]")
parser.add_argument("--epochs", type=int, default=13)
parser.add_argument("--batch-size", type=int, default=256)
parser.add_argument("--layers", type=int, default=3)
parser.add_argument("--hidden-dim", type=int, default=256)
parser.add_argument("--beam", type=int, default=4, help="width of the beam; 1 is greedy")
parser.add_argument("--output", default="saved_models/pronunciation")
arguments = parser.parse_args()

# Data: a text to generate for each text.
beam = arguments.beam
strategy = ke.generation.Beam(beam) if beam > 1 else ke.generation.Greedy()
task = ke.tasks.Seq2Seq(max_tokens=32, strategy=strategy)
data = arguments.data or ke.data.demo_pronunciations()
records = task.read(data, label_column="phonemes")
if arguments.limit:
    _, records = ke.data.split(records, validation=arguments.limit)
train, test = ke.data.split(records, validation=0.1)
task.check(train)
print(*task.describe(train, test), sep="\n")

# Tokenizer: the letters of a word, and whole phonemes.
letters = sorted(set("".join(records.texts)))
phonemes = sorted({phoneme for text in records.labels.texts for phoneme in text.split()})
tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{x}" for x in letters), *phonemes]
words = BertWordPieceTokenizer({x: i for i, x in enumerate(tokens)}, lowercase=False)
tokenizer = ke.data.Tokenizer(words, inputs=ke.data.HUGGING_FACE, max_length=64)

# Model: BART of this size, with random weights, in bfloat16 where the machine computes it.
print("precision:", ke.mixed_precision("auto", library=arguments.library))
model, tokenizer = ke.models.create(
    tokenizer,
    task=task,
    num_layers=arguments.layers,
    hidden_dim=arguments.hidden_dim,
    intermediate_dim=2 * arguments.hidden_dim,
    library=arguments.library,
)
ke.unpad(model, ignore_padding_outputs=True)
batches = ke.data.text(train, tokenizer, batch_size=arguments.batch_size, group_by_length=True)
held_out = ke.data.text(test, tokenizer, batch_size=512, shuffle=False)
print(f"{model.count_params():,} weights", batches.stats, sep="\n")

# Training: your own compile and fit.
updates = batches.stats.batches * arguments.epochs
rate = ke.schedules.warmup_cosine(peak=1e-3, warmup_steps=updates // 10, total_steps=updates)
model.compile(
    ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY, library=model),
    task.loss(ke.flavor.of(model).keras),
    weighted_metrics=[],
    jit_compile=False,
)
model.fit(batches, epochs=arguments.epochs, shuffle=False, verbose=2)
print(found := task.evaluate(model, held_out, tokenizer=tokenizer))

# Export: words in, phonemes out. The loop that generates them is part of the graph.
report = ke.export(
    model,
    arguments.output,
    sample=next(iter(held_out)),
    tokenizer=tokenizer,
    task=task,
    facts={**found.measures(), "quality": found},
)
print(report)
for answer in ke.serving.predict(arguments.output, ["keras", "transformer", "efficient"]):
    print(answer["text"], answer["generated_text"], f"{answer['log_probability']:.2f}")
