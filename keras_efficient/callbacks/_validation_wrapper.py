"""Wrap the validation that `fit` runs, by an attribute `evaluate` of the model."""

import functools
from collections.abc import Callable
from typing import Any


class ValidationWrapper:
    """Runs a function in place of each validation of `fit`; other calls of `evaluate` are plain.

    A callback is not told when validation or `fit` fails, so that `on_test_begin` and
    `on_test_end` cannot enclose it reliably. Several callbacks may wrap the validation of one
    model; the one that was installed last is the outermost.

    Args:
        model: the model that `fit` trains.
        run: function called with the validation, a function without arguments; returns its logs.
        is_active: function that returns whether the running `fit` is the one to be wrapped. A
            wrapper left behind by a `fit` that failed is not.
    """

    def __init__(
        self, model: Any, run: Callable[[Callable[[], Any]], Any], is_active: Callable[[], bool]
    ):
        self.model, self.run, self.is_active = model, run, is_active

    def install(self):
        """Wrap the validations to come."""
        evaluate = vars(self.model).get("evaluate")
        if not isinstance(evaluate, _Evaluate):
            # Past Keras' own __setattr__, which would track the attribute.
            vars(self.model)["evaluate"] = evaluate = _Evaluate(self.model, evaluate)
        evaluate.drop_inactive()
        evaluate.wrappers.append(self)

    def remove(self):
        """Undo `install`."""
        evaluate = vars(self.model).get("evaluate")
        if isinstance(evaluate, _Evaluate):
            evaluate.wrappers = [w for w in evaluate.wrappers if w is not self]
            evaluate.drop_inactive()
            if not evaluate.wrappers:
                evaluate.uninstall()


class _Evaluate:
    """The `evaluate` of a model whose validation is wrapped."""

    def __init__(self, model: Any, previous: Any):
        self.model, self.previous = model, previous
        self.plain = previous or type(model).evaluate.__get__(model)
        self.wrappers = []

    def __call__(self, *args, **kwargs):
        call = functools.partial(self.plain, *args, **kwargs)
        # Both libraries pass this argument in `fit` only.
        if kwargs.get("_use_cached_eval_dataset"):
            for wrapper in self.wrappers:
                if wrapper.is_active():
                    call = functools.partial(wrapper.run, call)
        return call()

    def drop_inactive(self):
        self.wrappers = [wrapper for wrapper in self.wrappers if wrapper.is_active()]

    def uninstall(self):
        attributes: dict[str, Any] = vars(self.model)
        del attributes["evaluate"]
        if self.previous is not None:
            attributes["evaluate"] = self.previous
