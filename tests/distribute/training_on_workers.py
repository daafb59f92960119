"""What the worker processes of the tests do."""

import numpy as np


def train(name, k=None, jit=False, optimizer=None, epochs=2, n=21, folder=None):
    """Fit a model of the zoo; returns weights, history, evaluation and predictions."""
    import zoo

    import keras_efficient as ke

    strategy = ke.strategy("auto", seed=0, start_timeout=120)
    specimen = next(each for each in zoo.ZOO if each.name == name)
    keras = zoo.keras_of(specimen.library)
    import training

    x, y = specimen.batch(n)
    with strategy.scope():
        model = specimen.make()
        training.compiled(specimen.library, model, jit_compile=jit)
        if k:
            ke.accumulate(model, k)
    data = training.batches(x, y, batch_size=10)
    fitted = model.fit(
        data,
        epochs=epochs,
        verbose=0,
        validation_data=training.batches(x, y, batch_size=8),
        shuffle=False,
    )
    result = {
        "weights": model.get_weights(),
        "history": fitted.history,
        "evaluation": model.evaluate(
            training.batches(x, y, batch_size=8), return_dict=True, verbose=0
        ),
        "predictions": np.asarray(
            model.predict(training.batches(x, y, batch_size=8), verbose=0)["logits"]
            if name.startswith("hugging")
            else model.predict(training.batches(x, y, batch_size=8), verbose=0)
        ),
    }
    if folder:
        model.save(folder + "/model.keras") if specimen.library == "keras" else None
        model.save_weights(folder + "/all.weights.h5")
    return result
