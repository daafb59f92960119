"""Save a training run, and resume it at the exact batch when the script starts again."""

import signal
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from os import PathLike
from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.callbacks._validation_wrapper import ValidationWrapper
from keras_efficient.checkpoint._callback_list import OtherCallbacks
from keras_efficient.checkpoint._compile_settings import compile_settings, warn_of_changes
from keras_efficient.checkpoint._position import Position
from keras_efficient.checkpoint._preemption import Preemption, StopValidation
from keras_efficient.checkpoint._replay import Replay
from keras_efficient.checkpoint._run_saver import RunSaver, plain_logs
from keras_efficient.checkpoint._settings import check_settings, json_settings
from keras_efficient.checkpoint._snapshot import read_metrics, take_snapshot
from keras_efficient.checkpoint._store import CheckpointStore
from keras_efficient.flavor import Callback
from keras_efficient.training import _train_step_hook as train_step_hook
from keras_efficient.training._data_checksum import DataChecksum


class Resume(Callback):
    """Save the entire state of a run while it trains, and resume it when the script starts again.

        model.fit(dataset, epochs=3, callbacks=[ke.callbacks.Resume("runs/a", every_steps=100)])

    A script that is killed at any moment and started again continues at the last save, also in
    the middle of an epoch, and every later loss equals that of an uninterrupted run to the last
    bit, as far as the operations are deterministic. Saved are weights, optimizer, metrics, seeds
    of dropout, loss scale, moving averages, gradients accumulated for the next update, and the
    state of EarlyStopping and other callbacks. The data is not saved: `fit` draws it again up to
    the save, without training, and a checksum verifies that it is the same. So seed whatever
    shuffles the data.

    A save is written completely or not at all. A corrupt one is skipped with a warning. If the
    disk is full, training continues with a warning. A complete run is not trained again, unless
    `fit` is given more epochs. A run whose data ends early is not complete.

    One process at a time uses the folder, also on a file system that machines share: a second one
    waits for the first to end, for 90 seconds at most. Saves of other runs are deleted only with
    `overwrite=True`.

    If weights become NaN or infinite, the last save before that is kept and resumed. A change of
    optimizer or loss since the last start is named in a warning.

    On SIGTERM, which schedulers send before they reclaim a machine, the run is saved after the
    current batch and the process exits with code 143 (`ke.checkpoint.EXIT_PREEMPTED`); a second
    SIGTERM kills it. Ctrl-C ends `fit` as usual, so that the last save counts.

    In tf_keras, dropout draws other random numbers than without this callback, because
    TensorFlow's own state of them cannot be saved.

    Args:
        directory: path of a folder for this run alone.
        every_steps: int >= 1, train steps (batches) between saves within an epoch. Default: None,
            saves at the end of epochs only.
        keep: int >= 1, number of saves that stay. Default: 2.
        settings: dict of JSON values that a resumed run must share, such as data, batch size and
            learning rate. Default: None.
        check_data: bool, whether to verify that the data drawn again is the same. Default: True.
        overwrite: bool, whether to start a new run even if there is one to resume; its first
            save replaces those in the folder. Default: False.
        stop_on_nan: bool, whether `fit` ends with an error at the first save whose weights are NaN
            or infinite, instead of a warning. Default: False.
        signals: numbers of the signals on which the run is saved and the process exits, with
            code 128 + number. SIGINT (Ctrl-C) raises KeyboardInterrupt after the save instead.
            Default: `(signal.SIGTERM,)`.
        verbose: int, 1 prints a line when the run resumes or is stopped, 0 prints nothing.
            Default: 1.

    Attributes:
        epoch: int, number of whole epochs trained, as of the last save or of the resumed one.
        step: int, number of steps of the next epoch trained, likewise.

    Raises:
        ValueError: a number is out of range, or the settings are not JSON values.
        InputError: in `fit`, if the folder or its disk cannot be used, another process uses it,
            no save is complete, the data has no batch, or the run was started with another model,
            other settings or other data.
        FloatingPointError: in `fit` with `stop_on_nan`, if weights are NaN or infinite.

    Examples:
        >>> resume = ke.callbacks.Resume("runs/a", every_steps=100)
        >>> model.fit(dataset, epochs=2, callbacks=[resume])
        >>> resume.exists(), resume.epoch
        (True, 2)

    Reference:
        `keras.callbacks.BackupAndRestore`, which repeats the interrupted epoch from its start.
    """

    # Logs of a step may stay on their device.
    _supports_tf_logs = True

    def __init__(
        self,
        directory: str | PathLike,
        *,
        every_steps: int | None = None,
        keep: int = 2,
        settings: dict[str, Any] | None = None,
        check_data: bool = True,
        overwrite: bool = False,
        stop_on_nan: bool = False,
        signals: Sequence[int] = (signal.SIGTERM,),
        verbose: int = 1,
    ):
        for name, value in (("every_steps", every_steps), ("keep", keep)):
            if name == "every_steps" and value is None:
                continue
            if type(value) is not int or value < 1:
                raise ValueError(f"`{name}` must be an int >= 1. Received: {value!r}.")
        self.settings, self.store = json_settings(settings), CheckpointStore(directory)
        self.every_steps, self.keep, self.check_data = every_steps, keep, check_data
        self.overwrite, self.stop_on_nan = overwrite, stop_on_nan
        self.signals, self.verbose = tuple(signals), verbose
        self.epoch = self.step = 0
        self._training = False

    def exists(self) -> bool:
        """Return whether there is a run to resume."""
        return bool(self.store.names())

    def load_position(self) -> bool:
        """Set `epoch` and `step` to where `fit` would resume, without changing a model.

        Returns:
            Whether there is a run to resume.

        Raises:
            InputError: no save is complete, or the run was started with other settings.
        """
        checkpoint = self.store.latest()
        if checkpoint is None:
            return False
        check_settings(checkpoint.state["settings"], self.settings)
        self.epoch, self.step = checkpoint.state["epoch"], checkpoint.state["step"]
        return True

    # --- events of `fit` -----------------------------------------------------------------------

    def set_model(self, model: Any):
        self.model, self._flavor = model, flavors.of(model)
        self._others, self._checksum = OtherCallbacks(self), DataChecksum(model)
        self._preemption = Preemption(model, self.signals, self._is_joined)
        self._saver = RunSaver(
            model,
            self.store,
            keep=self.keep,
            stop_on_nan=self.stop_on_nan,
            writes=self._preemption.is_chief,
        )
        self._validation = ValidationWrapper(
            model, self._validate, lambda: self._training and self._is_joined()
        )
        hook = train_step_hook.attach(model)
        observers = [hook.observers] if self.check_data else []
        hook.join(self, hook.train_function_wrappers, *observers)
        self._preemption.attach(hook, self)

    def on_train_begin(self, logs: dict | None = None):
        self._training, self._prepared = True, False
        self._cut_short = self._warned_of_end = False
        self._position, self._first_epoch, self._logs = Position(), None, {}
        self._next_save, self._replay = self.every_steps or 0, None
        self._saver.open()
        with ExitStack() as stack:
            stack.callback(self._saver.close)
            self._find_checkpoint()
            # Owned until `fit` ends.
            stack.pop_all()
        # The others are called before this callback, so that a save includes what they did.
        self._others.begin(paused=self._replay is not None)
        self._preemption.start()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None):
        if self._first_epoch is None:
            self._first_epoch = epoch
            self._validation.install()
            if self._replay is not None:
                self._replay.check_first_epoch(epoch)
        self._position.begin_epoch(epoch)
        if self._at_checkpoint():
            self._continue_training()
            # `fit` did this before the metrics of the last epoch were restored.
            with self.model.distribute_strategy.scope():
                self.model.reset_metrics()
            for callback in self._others.callbacks:
                callback.on_epoch_begin(epoch, logs)

    def wrap_train_function(self, function: Callable) -> Callable:
        """Return a train function that redraws batches up to the checkpoint and counts steps."""

        def train_function(iterator):
            if not self._prepared:
                self._prepare(getattr(iterator, "element_spec", None))
            replay = self._replay
            if replay is None:
                self._logs = function(iterator)
                self._position.advance(self._flavor.steps_per_execution(self.model))
                return self._logs
            if replay.finished:
                replay.restore(self._others.callbacks)
                self.model.stop_training = True
            else:
                replay.draw(iterator, self._position)
            done = replay.finished or replay.reached(self._position)
            return replay.state["logs"] if done else {}

        return train_function

    def __call__(self, data: Any):
        """Add a batch to the checksum, in the graph of every step."""
        self._checksum(data)

    @property
    def variables(self) -> list:
        """Variables that are reset when a step is repeated after it ran out of memory."""
        return self._checksum.variables

    def on_train_batch_end(self, batch: int, logs: dict | None = None):
        if self._replay is not None:
            if self._preemption.requested:
                # Nothing has been trained since the save.
                self._exit()
            if self._at_checkpoint():
                # `on_epoch_begin` first, because it resets what is then restored.
                for callback in self._others.callbacks:
                    callback.on_epoch_begin(self._position.epoch)
                self._continue_training()
            return
        self._cut_short = bool(self.model.stop_training)
        if self._preemption.requested:
            self._exit(self._save(self._position))
        if self.every_steps and self._position.total >= self._next_save:
            self._save(self._position)
            self._set_next_save()

    def on_test_begin(self, logs: dict | None = None):
        self._check_in_fit("evaluate")

    def on_predict_begin(self, logs: dict | None = None):
        self._check_in_fit("predict")

    def on_test_batch_end(self, batch: int, logs: dict | None = None):
        # Several workers stop after a train step, of which all of them learn.
        if self._preemption.workers is None and self._preemption.requested:
            # Other callbacks then undo what they changed for the validation, as EMA does.
            raise StopValidation

    def on_epoch_end(self, epoch: int, logs: dict | None = None):
        replay, position = self._replay, self._position
        if replay is not None:
            if replay.finished:
                self._replay = None
                self._others.resume()
            elif epoch >= replay.state["epoch"]:
                replay.raise_data_ended(position)
            return
        stopped = bool(self.model.stop_training)
        ended_early = not stopped and position.step < (self.params.get("steps") or 1)
        if ended_early:
            self._warn_of_end(position)
        # An epoch that was cut short continues where it stopped, if `fit` is given more epochs.
        if not (self._cut_short or ended_early):
            position = Position(epoch + 1, 0, position.total)
        complete = stopped or (epoch + 1 >= self.params["epochs"] and not ended_early)
        saved = self._save(position, complete=complete)
        if self._preemption.requested:
            self._exit(saved)

    def on_train_end(self, logs: dict | None = None):
        if self._replay is not None:
            # Data that ends early ends `fit` too, before the epoch in which the run was to resume.
            self._position.begin_epoch(self._position.epoch + 1)
            if not self._replay.finished and not self._replay.reached(self._position):
                self._replay.raise_data_ended(self._position)
            if not self._prepared:
                self._prepare(None)
            self._continue_training()
            for callback in self._others.callbacks:
                callback.on_train_end(logs)
        stop = self._preemption.requested_at_end()
        self._close()
        if stop:
            self._exit()

    # --- saving and resuming -------------------------------------------------------------------

    def _find_checkpoint(self):
        checkpoint = None if self.overwrite else self.store.latest()
        self._preemption.check_same_checkpoint(checkpoint, self.store.directory)
        self._saver.begin(checkpoint)
        self._compiled = compile_settings(self.model)
        if checkpoint is not None:
            check_settings(checkpoint.state["settings"], self.settings)
            warn_of_changes(checkpoint.state.get("compiled"), self._compiled)
            self._others.check_found()
            checksum = self._checksum if self.check_data else None
            self._replay = Replay(self.model, checkpoint, self.params["epochs"], checksum)
            self._replay.check_steps(self.params.get("steps"))
            self.epoch, self.step = checkpoint.state["epoch"], checkpoint.state["step"]
            if self.verbose:
                print(self._replay.describe(self.params.get("steps")), flush=True)

    def _prepare(self, spec):
        self._prepared = True
        self._saver.prepare(spec, resumed=self._replay is not None)
        self._saver.check(finished=self._replay is not None and self._replay.finished)

    def _save(self, position, complete=False, metrics=None):
        """Write a checkpoint, and return whether that succeeded."""
        saved = self._saver.save(
            take_snapshot(self.model, self._others.callbacks, metrics),
            position,
            first_epoch=self._first_epoch,
            epochs=self.params["epochs"],
            complete=complete,
            settings=self.settings,
            steps_per_epoch=self.params.get("steps"),
            compiled=self._compiled,
            data=self._checksum.read() if self.check_data else None,
            logs=plain_logs(self._logs),
        )
        if saved:
            self.epoch, self.step = position.epoch, position.step
        return saved

    def _warn_of_end(self, position):
        """Warn that the data ended within an epoch, or refuse data without a batch."""
        if not position.total:
            raise InputError(
                "Data to train on must have at least one batch. Received: data without any. Check "
                "its path, filters and `take`; nothing was trained or saved."
            )
        if not self._warned_of_end:
            self._warned_of_end = True
            steps = self.params.get("steps")
            warnings.warn(
                f"The data ended at step {position.step}{f' of {steps}' if steps else ''} of epoch "
                f"{position.epoch + 1}. The run is not complete: with the rest of the data, it "
                "resumes there.",
                stacklevel=3,
            )

    def _at_checkpoint(self):
        replay = self._replay
        return replay is not None and not replay.finished and replay.reached(self._position)

    def _continue_training(self):
        """Restore the checkpoint, whose position the data has reached, and end the replay."""
        replay, self._replay = self._replay, None
        assert replay is not None
        replay.restore(self._others.callbacks)
        state = replay.state
        self._position.total, self._logs = state["total"], state["logs"]
        self._set_next_save()
        self._others.resume()

    def _set_next_save(self):
        if self.every_steps:
            self._next_save = (self._position.total // self.every_steps + 1) * self.every_steps

    def _validate(self, evaluate):
        """Skip a validation while data is redrawn; save before one is given up."""
        if self._replay is not None:
            return {}
        if self._preemption.workers is not None:
            return evaluate()
        # A validation resets the metrics of the epoch.
        metrics = read_metrics(self.model)
        try:
            return evaluate()
        except StopValidation:
            self._exit(self._save(self._position, metrics=metrics))

    # --- ending --------------------------------------------------------------------------------

    def _exit(self, saved=True):
        saved = self._preemption.saved_by_all(saved)
        self._close()
        self._preemption.exit(saved, self.store.directory, self.verbose)

    def _close(self):
        self._training = False
        self._preemption.stop()
        self._saver.close()
        self._validation.remove()
        hook = train_step_hook.attach(self.model)
        hook.leave(self)
        hook.stop_signal = None
        self._flavor.reset_random_state(self.model)
        train_step_hook.detach_if_idle(self.model)

    def _is_joined(self):
        """Whether this callback takes part in the `fit` that runs."""
        hook = train_step_hook.of(self.model)
        return hook is not None and self in hook.train_function_wrappers

    def _check_in_fit(self, name):
        if not self._training:
            train_step_hook.attach(self.model).leave(self)
            train_step_hook.detach_if_idle(self.model)
            raise InputError(
                f"Resume is a callback of `fit`. Received: {name}(callbacks=[Resume]). Leave it "
                "out there."
            )
