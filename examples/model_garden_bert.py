"""Train a TF Model Garden encoder with `fit` instead of Model Garden's own training loop.

    python examples/model_garden_bert.py [--layers 2] [--limit 400]
    keras-efficient launch --workers 2 examples/model_garden_bert.py

The encoder starts from random weights, because its checkpoints need a network connection. This
shows how the parts fit together; the reviews are too little text to reach a good accuracy. Model
Garden's own optimizer and schedule are used. The lines with `ke.` are the additions.

Ran on a 2-core CPU, 400 reviews, one process and two workers. Not run: GPU, TPU, pretrained
checkpoints.
"""

import argparse

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--limit", type=int, help="use this many records [all]")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--run", default="runs/model_garden_bert", help="where the run is kept")
arguments = parser.parse_args()

strategy = ke.strategy("auto", seed=0)  # one device, many, or many workers: the rest is the same

import tf_keras  # noqa: E402
from official.modeling import optimization  # noqa: E402
from official.nlp.configs import encoders  # noqa: E402
from official.nlp.modeling.models import BertClassifier  # noqa: E402

records = ke.data.read_records(ke.data.demo_reviews())
if arguments.limit:
    _, records = ke.data.split(records, validation=arguments.limit)
train, test = ke.data.split(records, validation=0.1)
tokenizer = ke.data.Tokenizer.from_directory(
    ke.data.demo_model(),
    inputs={"ids": "input_word_ids", "mask": "input_mask", "segments": "input_type_ids"},
)
batches = ke.data.text(train, tokenizer, batch_size=arguments.batch_size, max_length=64)
held_out = ke.data.text(test, tokenizer, batch_size=64, max_length=64, shuffle=False)
updates = batches.stats.batches * arguments.epochs

with strategy.scope():
    encoder = encoders.build_encoder(
        encoders.EncoderConfig(
            type="bert",
            bert=encoders.BertEncoderConfig(
                num_layers=arguments.layers,
                hidden_size=128,
                num_attention_heads=2,
                intermediate_size=512,
            ),
        )
    )
    model = BertClassifier(encoder, num_classes=len(train.label_names))
    factory = optimization.OptimizerFactory(
        optimization.OptimizationConfig(
            {
                "optimizer": {"type": "adamw", "adamw": {"weight_decay_rate": 0.01}},
                "learning_rate": {
                    "type": "polynomial",
                    "polynomial": {"initial_learning_rate": 1e-3, "decay_steps": updates},
                },
            }
        )
    )
    model.compile(
        factory.build_optimizer(factory.build_learning_rate()),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
ke.accumulate(model, microbatch_size=8)
model.fit(
    batches,
    validation_data=held_out,
    epochs=arguments.epochs,
    verbose=2 if ke.distribute.is_chief() else 0,
    callbacks=[ke.callbacks.Resume(arguments.run, every_steps=100)],
)
