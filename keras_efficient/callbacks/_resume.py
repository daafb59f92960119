"""Let a training run survive: save where it is, and go on from there when started again."""

import json
import warnings

import numpy as np
import tensorflow as tf

import keras_efficient
from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.checkpoint import _callback_state as callback_state
from keras_efficient.checkpoint import _snapshot as snapshot
from keras_efficient.checkpoint import _variables as variables_module
from keras_efficient.checkpoint._preemption import EXIT_PREEMPTED, Preemption
from keras_efficient.checkpoint._store import (
    CheckpointStore,
    CorruptCheckpointError,
    check_dtypes,
    check_settings,
)
from keras_efficient.distribute._multi_worker_strategy import MultiWorkerStrategy
from keras_efficient.flavor import Callback
from keras_efficient.training import _train_step_hook as train_step_hook
from keras_efficient.training._data_checksum import DataChecksum
from keras_efficient.training._stop_signal import StopSignal


class _Preempted(BaseException):
    """Ends a validation, on the way to the end of the process."""


class Resume(Callback):
    """Save the whole state of a run as it trains; the same script, started again, goes on there.

        model.fit(dataset, epochs=3, callbacks=[ke.callbacks.Resume("runs/a", every_steps=100)])

    Killed at any moment and started again, this goes on at the last save, within an epoch too, and
    every later loss is that of the uninterrupted run to the last bit (as far as the operations are
    deterministic). Saved are weights, optimizer, metrics, seeds of dropout, loss scale, moving
    averages, batches that wait for their update, and what EarlyStopping and others remember. The
    data is not saved: `fit` runs through it again without training, up to where it was, and a
    checksum tells whether it is the same. So whatever shuffles the data must be seeded.

    A save is there whole or not at all; a damaged one is passed over, with a warning. If the disk
    is full, training goes on, with a warning. A run that was complete is not trained again, unless
    `fit` is given more epochs.

    On SIGTERM, which schedulers send before they take a machine away, the run is saved after the
    batch at hand and the process exits with code 143 (`EXIT_PREEMPTED`); a second one kills. A
    keyboard interrupt is left to Python: the last save stands.

    In tf_keras, dropout draws from other random numbers than it does without this callback:
    TensorFlow's own state of them cannot be saved.

    Args:
        directory: a folder of the run's own.
        every_steps: int, train steps (batches) between saves within an epoch; None (default) saves
            at epoch ends only.
        keep: int >= 1, how many saves stay; 2 (default).
        settings: dict of JSON values that a resumed run must share (data, batch size, rate).
        check_data: whether to check that the data drawn again is the same.

    Attributes:
        epoch, step: int, whole epochs done, and steps done of the next one, as of the last save or
            of what was resumed.

    Raises:
        ValueError: a number out of range, or settings that are not JSON.
        InputError: in `fit`: the folder or its disk will not do; no save is whole; the run was
            started with another model, other settings or other data.

    Example:
        >>> resume = ke.callbacks.Resume("runs/a", every_steps=100)
        >>> model.fit(dataset, epochs=2, callbacks=[resume])
        >>> resume.exists(), resume.epoch
        (True, 2)
    """

    # The logs of a step may stay on their device.
    _supports_tf_logs = True

    def __init__(self, directory, *, every_steps=None, keep=2, settings=None, check_data=True):
        for name, value in (("every_steps", every_steps), ("keep", keep)):
            if name == "every_steps" and value is None:
                continue
            if type(value) is not int or value < 1:
                raise ValueError(f"`{name}` must be an int >= 1. Received: {value!r}.")
        try:
            self.settings = json.loads(json.dumps(settings or {}))
        except (TypeError, ValueError) as error:
            raise ValueError(
                "`settings` must be a dict of numbers, strings, lists and dicts. Received: "
                f"{settings!r} ({error})."
            ) from error
        self.saved_runs = CheckpointStore(directory)
        self.every_steps, self.keep, self.check_data = every_steps, keep, check_data
        self.epoch = self.step = 0
        self._training, self._list, self._complained = False, None, set()

    def exists(self):
        """Whether there is something to go on from."""
        return bool(self.saved_runs.names())

    # --- what `fit` calls ----------------------------------------------------------------------

    def set_model(self, model):
        self.model, self._flavor = model, flavors.of(model)
        self._list = callback_state.list_of(self)
        step = train_step_hook.attach(model)
        step.join(
            self, step.train_function_wrappers, *([step.observers] if self.check_data else [])
        )
        self._workers = _workers_of(model)
        if self._workers is not None:
            # Workers tell each other to stop in this package's step.
            step.join(self, step.wanted_by)
            step.signal = StopSignal(model)
        self._check, self._draw = DataChecksum(model), None
        self._writes = self._workers is None or self._workers.cluster.index == 0
        self._preemption = Preemption(model, self._takes_part)

    def on_train_begin(self, logs=None):
        self._training, self._ready = True, False
        self._first, self._logs, self._evaluate, self._cut_short = None, {}, None, False
        self._epoch = self._step = self._total = 0
        if self._writes:
            self.saved_runs.check()
        self._target = self._newest()
        self._compare()
        members = self._list.callbacks if self._list is not None else [self]
        self._others = [callback for callback in members if callback is not self]
        if self._target is not None:
            self._plan()
        # Last: when this one saves, the others have seen the batch or the epoch. While data is
        # drawn again: alone. (The list that is being gone through is another.)
        self._let(self._others if self._target is None else [])
        self._due = self.every_steps
        self._preemption.listen()

    def on_epoch_begin(self, epoch, logs=None):
        if self._first is None:
            self._first = epoch
            self._watch_evaluate()
            if self._target is not None and self._target.state["first_epoch"] != epoch:
                raise InputError(
                    "A run resumes with the `initial_epoch` it was started with; what was done "
                    f"since is not done again. Received: initial_epoch={epoch}, where it was "
                    f"{self._target.state['first_epoch']}. Leave it as it was."
                )
        self._epoch, self._step = epoch, 0
        if self._arrived() and not self._finished:
            self._arrive()
            # (`fit` has just done this, before there were the last epoch's to forget.)
            with self.model.distribute_strategy.scope():
                self.model.reset_metrics()
            for callback in self._others:
                callback.on_epoch_begin(epoch, logs)

    def wrap_train_function(self, function):
        """Return a train function that redraws skipped batches and counts steps."""

        def train_function(iterator):
            if not self._ready:
                self._get_ready(getattr(iterator, "element_spec", None))
            if self._target is None:
                steps = self._flavor.steps_per_execution(self.model)
                self._logs = function(iterator)
                self._step, self._total = self._step + steps, self._total + steps
                return self._logs
            if self._finished:
                snapshot.put(self.model, self._others, self._target)
                self.model.stop_training = True
            else:
                self._draw_again(iterator)
            return self._target.state["logs"] if self._finished or self._arrived() else {}

        return train_function

    def __call__(self, data):
        """In the graph of every step: sum up the batch."""
        self._check(data)

    @property
    def variables(self):
        """What a step that is done again has to put back."""
        return self._check.variables

    def on_train_batch_end(self, batch, logs=None):
        if self._target is not None:
            if self._should_stop():
                # Nothing was trained since the save.
                self._stop()
            if self._arrived() and not self._finished:
                # What an epoch's beginning sets up, and then what was remembered since.
                for callback in self._others:
                    callback.on_epoch_begin(self._epoch)
                self._arrive()
            return
        self._cut_short = bool(self.model.stop_training)
        if self._should_stop():
            self._stop(self._save(self._epoch, self._step))
        if self.every_steps and self._total >= self._due:
            self._save(self._epoch, self._step)
            self._due = (self._total // self.every_steps + 1) * self.every_steps

    def on_test_begin(self, logs=None):
        self._only_in_fit("evaluate")

    def on_predict_begin(self, logs=None):
        self._only_in_fit("predict")

    def on_test_batch_end(self, batch, logs=None):
        # (Several workers stop at a step of training, at which all of them hear of it.)
        if self._workers is None and self._should_stop():
            # Whatever has been swapped for the validation (EMA's averages) is swapped back first.
            raise _Preempted

    def on_epoch_end(self, epoch, logs=None):
        if self._target is not None:
            if self._finished:
                self._target = None
                self._let(self._others)
            elif epoch >= self._target.state["epoch"]:
                self._data_ended()
            return
        ends = epoch + 1 >= self.params["epochs"] or self.model.stop_training
        # An epoch that was cut short goes on where it was, should `fit` be given more of them.
        place = (epoch, self._step) if self._cut_short else (epoch + 1, 0)
        done = self._save(*place, complete=bool(ends))
        if self._should_stop():
            self._stop(done)

    def on_train_end(self, logs=None):
        others = []
        if self._target is not None:
            # Data that ends early ends `fit` too, before the epoch in which the run was to go on.
            self._epoch, self._step, others = self._epoch + 1, 0, self._others
            if not self._finished and not self._arrived():
                self._data_ended()
            if not self._ready:
                self._get_ready(None)
            self._arrive()
        for callback in others:
            callback.on_train_end(logs)
        stop = self._preemption.received
        if self._workers is not None:
            # After the last update there is no other for them to hear it with.
            stop = self._workers.agree(stop, any)
        self._close()
        if stop:
            self._stop()

    # --- resuming ------------------------------------------------------------------------------

    def _newest(self):
        """The last checkpoint that is whole, or None if there is none at all."""
        names = self.saved_runs.names()
        for name in reversed(names):
            try:
                return self.saved_runs.load(name)
            except CorruptCheckpointError as error:
                path = self.saved_runs.directory / name
                warnings.warn(
                    f"The saved run {str(path)!r} is damaged ({error}) and passed over: an earlier "
                    "save is looked for.",
                    stacklevel=3,
                )
        if names:
            raise InputError(
                "A run resumes from a save that is whole. Received: "
                f"{str(self.saved_runs.directory)!r}, where {', '.join(names)} are damaged. Look "
                "at the disk; delete the folder to start anew."
            )
        return None

    def _compare(self):
        """See to it that all workers go on from the same checkpoint."""
        if self._workers is None:
            return
        state = self._target.state if self._target is not None else {"total": -1, "epoch": -1}
        own = np.array([state["total"], state["epoch"]], np.int64)
        (found,) = self._workers.gather_arrays([own])
        if (found != own).any():
            listed = ", ".join("none" if total < 0 else f"step {total}" for total, _ in found)
            raise InputError(
                "All workers must see the same saved runs, those that the first one writes. "
                f"Received: {str(self.saved_runs.directory)!r}, in which they see: {listed}. "
                "Give a folder on a file system they share."
            )

    def _plan(self):
        """Find out what there is to do after the checkpoint that was found."""
        state, epochs = self._target.state, self.params["epochs"]
        check_settings(state["settings"], self.settings)
        if self._list is None:
            raise InputError(
                "Resume must find the list in which `fit` keeps its callbacks, to let the others "
                "sleep while it draws data again. Received: a `fit` that keeps none. Give it to "
                "the `fit` of Keras or tf_keras."
            )
        complete = state["complete"] and epochs <= state["epochs"]
        self._finished = complete or state["epoch"] >= epochs
        self.epoch, self.step = state["epoch"], state["step"]
        where = f"{self.saved_runs.directory}"
        if self._finished:
            _say(f"{where} is complete after {state['epoch']} epochs: nothing to train.")
            return
        of = f" of {self.params['steps']}" if self.params.get("steps") else ""
        _say(
            f"Resuming {where} at epoch {state['epoch'] + 1}, step {state['step']}{of}; drawing "
            f"{state['total']} batches again."
        )

    def _get_ready(self, spec):
        """Create the variables there are to save or restore, before the first step."""
        self._ready, model = True, self.model
        with model.distribute_strategy.scope():
            if self._target is not None or not model.built:
                variables_module.prepare(model, spec)
            else:
                variables_module.build_optimizer(model)
                self._flavor.random_state(model)
        held = variables_module.Variables(model.distribute_strategy, variables_module.of_run(model))
        check_dtypes(held.specs())
        # (A run that is complete is not saved again.)
        if self._writes and not (self._target is not None and self._finished):
            self.saved_runs.check_room(held.bytes, self.keep)

    def _draw_again(self, iterator):
        """Draw what a call of the train function draws, and train nothing."""
        for drawn in range(steps := self._flavor.steps_per_execution(self.model)):
            try:
                data = next(iterator)
            except StopIteration:
                if not drawn:
                    raise
                break
            if self.check_data:
                self._sum_up(data)
        self._step, self._total = self._step + steps, self._total + steps
        state = self._target.state
        if self._epoch == state["epoch"] and self._step > state["step"]:
            raise InputError(
                "A run resumes with the `steps_per_execution` it was started with. Received: "
                f"{steps}, in which step {state['step']} is no boundary. Compile as before."
            )

    def _sum_up(self, data):
        if self._draw is None:
            strategy = self.model.distribute_strategy
            self._draw = tf.function(
                lambda data: strategy.run(self._check, (data,)),
                reduce_retracing=True,
                autograph=False,
            )
        # (Keras 3 has a missing part of a batch as an Optional.)
        optional = tf.experimental.Optional
        self._draw(
            tf.nest.map_structure(lambda leaf: None if isinstance(leaf, optional) else leaf, data)
        )

    def _arrived(self):
        """Whether the data has been drawn up to where the run was saved."""
        if self._target is None:
            return False
        state = self._target.state
        return (self._epoch, self._step) == (state["epoch"], state["step"])

    def _arrive(self):
        """Be where the run was saved."""
        state = self._target.state
        checks = self.check_data and state["data"] is not None and not self._finished
        if checks and self._check.read() != state["data"]:
            raise InputError(
                "A resumed run must see the data it was started with. Received: batches whose "
                f"checksum after {state['total']} steps is {self._check.read()}, where it was "
                f"{state['data']}. Seed the shuffling: keras.utils.set_random_seed(...) before "
                "the dataset is made, or shuffle(seed=...); or, if you mean it, "
                "Resume(..., check_data=False)."
            )
        snapshot.put(self.model, self._others, self._target)
        self._total, self._logs = state["total"], state["logs"]
        if self.every_steps:
            self._due = (self._total // self.every_steps + 1) * self.every_steps
        self._target = None
        self._let(self._others)

    def _data_ended(self):
        state = self._target.state
        raise InputError(
            "A resumed run must see the data it was started with. Received: data that ended at "
            f"step {self._step} of epoch {self._epoch + 1}, where the run was saved at step "
            f"{state['step']} of epoch {state['epoch'] + 1}. Give `fit` the same data."
        )

    # --- saving --------------------------------------------------------------------------------

    def _save(self, epoch, step, complete=False, metrics=None):
        """Write a checkpoint; whether that worked."""
        taken = snapshot.take(self.model, self._others, metrics)
        self._complain_of(taken.unsavable)
        state = {
            "epoch": epoch,
            "step": step,
            "total": self._total,
            "first_epoch": self._first,
            "epochs": self.params["epochs"],
            "complete": complete,
            "settings": self.settings,
            "data": self._check.read() if self.check_data else None,
            "logs": _plain(self._logs),
            "versions": {m.__name__: m.__version__ for m in self._libraries()},
            **taken.state,
        }
        name = f"step-{self._total:08d}" + (f"-epoch-{epoch:04d}" if step == 0 else "")
        try:
            if self._writes:
                self.saved_runs.write(name, taken.specs, taken.read, state)
                self.saved_runs.prune(name, self.keep)
        except OSError as error:
            if error.errno not in self._complained:
                self._complained.add(error.errno)
                warnings.warn(
                    f"The run could not be saved after {self._total} steps: {error}. Training goes "
                    "on, and the next save tries again; until then a killed run goes back to "
                    f"{(self.saved_runs.names() or ['the start'])[-1]}.",
                    stacklevel=2,
                )
            return False
        self.epoch, self.step = epoch, step
        return True

    def _libraries(self):
        return keras_efficient, tf, self._flavor.keras

    def _complain_of(self, attributes):
        new = [name for name in attributes if name not in self._complained]
        if new:
            self._complained |= {*new}
            warnings.warn(
                f"What callbacks remember must be numbers, strings, arrays, lists or dicts to be "
                f"saved. Received others in {', '.join(new)}: they are left out.",
                stacklevel=3,
            )

    # --- ending --------------------------------------------------------------------------------

    def _should_stop(self):
        """Whether the run is to save itself and end: all workers or none."""
        if self._workers is None:
            return self._preemption.received
        signal = train_step_hook.of(self.model).signal
        if self._preemption.received:
            signal.say()
        return signal.heard

    def _stop(self, saved=True):
        """End the process."""
        if self._workers is not None:
            # All with one code, and at one time: who goes first lets the others fail.
            saved = self._workers.agree(saved, all)
        self._close()
        if not saved:
            raise SystemExit(
                f"Stopped by SIGTERM, and {self.saved_runs.directory} could not be written: what "
                "was trained since the last save is lost."
            )
        _say(f"Stopped by SIGTERM. {self.saved_runs.directory} is saved: start again to go on.")
        raise SystemExit(EXIT_PREEMPTED)

    def _close(self):
        model, self._training, self._list = self.model, False, None
        self._preemption.ignore()
        if self._evaluate is not None and vars(model).get("evaluate") is self._evaluate:
            del vars(model)["evaluate"]
            if self._evaluate.before is not None:
                vars(model)["evaluate"] = self._evaluate.before
        train_step_hook.attach(model).leave(self)
        train_step_hook.of(model).signal = None
        self._flavor.forget_random_state(model)
        train_step_hook.detach_if_idle(model)

    # --- what `fit` does beside training -------------------------------------------------------

    def _let(self, others):
        """Let `fit` call these callbacks, and this one after them."""
        if self._list is not None:
            self._list.callbacks = [*others, self]

    def _watch_evaluate(self):
        """Validate nothing while data is drawn again; save before a validation is given up."""
        model = self.model
        before = vars(model).get("evaluate")
        plain = before or type(model).evaluate.__get__(model)

        def evaluate(*args, **kwargs):
            step = train_step_hook.of(model)
            # A callback is not told when `fit` fails, and this may be left behind.
            here = step is not None and step.train_function_wrappers.count(self) and self._training
            if not here or not kwargs.get("_use_cached_eval_dataset"):
                return plain(*args, **kwargs)
            if self._target is not None:
                return {}
            if self._workers is not None:
                return plain(*args, **kwargs)
            # The epoch's, which a validation resets.
            metrics = snapshot.metrics_of(model)
            try:
                return plain(*args, **kwargs)
            except _Preempted:
                self._stop(self._save(self._epoch, self._step, metrics=metrics))

        evaluate.before = before
        self._evaluate = vars(model)["evaluate"] = evaluate

    def _takes_part(self):
        """Whether the `fit` that runs is one with this callback."""
        step = train_step_hook.of(self.model)
        return step is not None and self in step.train_function_wrappers

    def _only_in_fit(self, name):
        if not self._training:
            train_step_hook.attach(self.model).leave(self)
            train_step_hook.detach_if_idle(self.model)
            raise InputError(
                f"Resume is a callback of `fit`. Received: {name}(callbacks=[Resume]). Leave it "
                "out there."
            )


def _workers_of(model):
    """The strategy of several workers that a model trains under, or None."""
    strategy = model.distribute_strategy
    several = getattr(strategy.extended, "_in_multi_worker_mode", lambda: False)()
    if several and not isinstance(strategy, MultiWorkerStrategy):
        raise InputError(
            "Resume on several workers needs a strategy that knows their cluster. Received: "
            f"{type(strategy).__name__}. Make the model in the scope of ke.strategy('auto')."
        )
    return strategy if several else None


def _say(line):
    print(line, flush=True)


def _plain(logs):
    """A step's logs as JSON: numbers as they are, to the last bit."""
    if isinstance(logs, dict):
        return {name: _plain(value) for name, value in logs.items()}
    return np.asarray(logs).tolist()
