"""Small functions of the command line: names of options in messages, and the plan of `finetune`."""

import functools
from types import SimpleNamespace

import pytest
import typer

import keras_efficient as ke
from keras_efficient._errors import listed, shortened
from keras_efficient.cli import _app
from keras_efficient.cli._finetune import Settings, _best_epoch
from keras_efficient.cli._finetune_display import Plan
from keras_efficient.cli._option_names import option_names, with_option_names

COMMAND = typer.main.get_command(_app.app)


@pytest.mark.parametrize(
    ("command", "message", "shown"),
    [
        ("finetune", "`max_length` must be 3", "--max-length must be 3"),
        ("finetune", "Use quantize='int8-weights', which", "Use --quantize int8-weights, which"),
        ("finetune", "try library='tf_keras'.", "try --library tf_keras."),
        ("finetune", "validation=0.5 of 4 records", "--validation 0.5 of 4 records"),
        (
            "finetune",
            "are `text_column` and `label_column`",
            "are --text-column and --label-column",
        ),
        ("bench", "`batches` must be, `lengths` too", "--batch must be, --length too"),
        ("bench", "`targets` must hold", "DIR must hold"),
        ("predict", "`texts` must be", "--text must be"),
        ("serve", "`directory` must be", "DIRECTORY must be"),
        # What is no argument of this command stays.
        ("predict", "`max_length` and `ke.export`", "`max_length` and `ke.export`"),
        ("finetune", "a file in /a/library=b/data=c", "a file in /a/library=b/data=c"),
        ("finetune", "in Python, label_column=None reads", "in Python, label_column=None reads"),
        ("no_command", "`data` must", "`data` must"),
    ],
)
def test_messages_name_options_in_place_of_arguments(command, message, shown):
    assert with_option_names(message, option_names(COMMAND, [command, "x"])) == shown


def test_messages_are_cut_between_sentences_only():
    """Errors of KerasHub were cut after 400 characters, in the middle of a word."""
    sentences = [f"Sentence number {i} has an end." for i in range(200)]
    cut = shortened(" ".join(sentences), 400)
    kept, _, rest = cut.partition(" … (")
    assert kept.endswith("end.") and 300 < len(kept) <= 400
    assert rest == f"{len(' '.join(sentences)) - len(kept):,} more characters)"
    assert shortened("word " * 100, 400).split(" … ")[0].split() == ["word"] * 80
    assert shortened("x" * 500, 400).startswith("x" * 200)
    assert shortened(" short ") == "short"


def test_long_lists_are_capped():
    assert listed(["a", "b"]) == "'a', 'b'"
    assert listed(range(12), 2) == "'0', '1' and 10 more"
    assert len(listed(["x" * 1000] * 1000)) < 700


def settings(**options):
    defaults = {
        **dict.fromkeys(("data", "model", "output", "text_column", "label_column"), "x"),
        **dict.fromkeys(("validation_data", "microbatch_size")),
        "validation": 0.1,
        "library": "keras",
        "epochs": 5,
        "batch_size": 8,
        "seed": 0,
        "learning_rate": 1e-3,
        "precision": "auto",
        "max_length": 128,
        "dry_run": False,
        "resume": False,
    }
    return Settings(**{**defaults, **options})


def plan(truncated=0, names=("ham", "spam"), **options):
    labels = [0] * 9 + [len(names) - 1]
    records = ke.data.Records(("text",) * 10, labels, names)
    stats = ke.data.TextStats(10, 2, 8, 30, 40, ((8, 16, 1), (2, 16, 1)), truncated, 733, 128)
    whole = ke.data.TextStats(10, 2, 8, 30, 40, ((8, 16, 1), (2, 16, 1)))
    return Plan(settings(**options), records, records, stats, whole, 512, "6 blocks").rows()


def test_plan_tells_of_cut_texts():
    """Texts cut at --max-length were not mentioned."""
    assert plan(3)["cut texts"] == (
        "to train on: 3 of 10 texts (30.0%) are cut at 128 tokens, the longest has 733 "
        "(--max-length may be up to 512)"
    )
    assert "may be" not in plan(3, max_length=512)["cut texts"]
    assert "cut texts" not in plan()


def test_plan_names_the_baseline_and_what_is_kept():
    rows = plan(metric="accuracy", patience=1, quantize="int8-weights")
    assert rows["baseline"] == "always answering 'ham' is right on 90.0%"
    assert rows["weights"] == (
        "of the epoch with the best accuracy; stops after 1 epoch without a better one"
    )
    assert rows["export"] == "int8-weights"
    assert plan(quantize="int8", target="avx2")["export"] == "int8 for CPUs with AVX2"
    assert plan(patience=2)["weights"].startswith("of the epoch with the best macro-F1; stops")
    assert not {"weights", "export", "cut texts"} & set(plan())
    many = plan(names=tuple(f"class {i}" for i in range(20_000)))
    assert "and 19,990 more" in many["data"] and len(many["data"]) < 300


def test_class_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = [0] * 30 + [1] * 3 + [2] * 7
    train = ke.data.Records.of(["a"] * 40, labels)
    found = ke.tasks.get().class_weights(train)
    expected = compute_class_weight("balanced", classes=train.labels[[0, 30, 33]], y=labels)
    assert [found[i] for i in range(3)] == pytest.approx(expected)


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_best_epoch_is_restored_and_stops_early(library):
    flavor = ke.flavor.get(library)
    assert _best_epoch(flavor, settings()) is None
    for options, values, stopped, best in (
        ({"patience": 2}, [0.1, 0.5, 0.4, 0.3, 0.9], 3, 1),
        ({"metric": "macro_f1"}, [0.1, 0.5, 0.4, 0.3, 0.2], None, 1),
        ({"metric": "loss"}, [0.3, 0.1, 0.4, 0.3, 0.2], None, 1),
    ):
        callback = _best_epoch(flavor, settings(**options))
        model = SimpleNamespace(stop_training=False, epoch=0)
        model.get_weights = functools.partial(getattr, model, "epoch")
        model.set_weights = lambda weights: None
        callback.set_model(model)
        callback.on_train_begin()
        for epoch, value in enumerate(values):
            model.epoch = epoch
            callback.on_epoch_end(epoch, {f"val_{options.get('metric', 'macro_f1')}": value})
            if model.stop_training:
                break
        assert (epoch if model.stop_training else None) == stopped
        assert callback.best_weights == callback.best_epoch == best
