"""A training run on disk: its settings, its log, its best and its last weights, and what going on from there needs.

    config.json, model.json     the settings; how the model was built and what it was trained on
    environment.json            versions and devices of the latest start
    log.csv                     a row a step
    best.safetensors            the predictor of the best validation so far
    last.safetensors            the predictor of the last checkpoint, with its step in the header
    previous.safetensors        the predictor of the checkpoint before it
    optimizer-N.safetensors     optimiser, random generators and the like at step N, of both
    .lock                       held by the process that trains here; the system lets it go when the process ends

A checkpoint is two files. The optimiser's, which carries the step in its name, is written first; `last.safetensors`
names the step that counts, and replaces its predecessor whole. Killed in between, a run goes on from the older pair, as
it does when the last one is spoilt.
"""

import csv
import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from torch import nn

from xlstm_unet_lab.data.files import sync_tree
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.models.presets import arguments_of
from xlstm_unet_lab.models.weights import load_tensors, load_weights, save_tensors, save_weights
from xlstm_unet_lab.ops.checks import is_whole
from xlstm_unet_lab.ops.files import as_path, write_whole
from xlstm_unet_lab.ops.stored import read_json
from xlstm_unet_lab.training.config import TrainConfig
from xlstm_unet_lab.training.state import Progress, TrainingState

CHECKPOINTS = 20  # of a run that neither validates in between nor says how often to save
# A field of the log as Python writes numbers; nothing where there is none.
FIELD = r"(?:-?(?:[0-9]+(?:\.[0-9]+)?(?:e[-+][0-9]+)?|inf|nan))?"
PATIENCE = 10  # seconds; the workers that load a killed run's data may hold its lock for half of that


def recorded_settings(path: str | Path | None) -> dict:
    """The settings of the run in a folder; empty where there is none. Raises ValueError where they are spoilt."""
    file = None if path is None else as_path("run_directory", path) / "config.json"
    return read_json(file) if file and file.exists() else {}


class RunDirectory:
    """The folder of one run; it is made when it is not there.

    `data` describes the training set (anything JSON holds). Raises OSError when the folder cannot be written, and
    ValueError when it holds a run with other settings, another model or other data, listing what differs. More steps
    than before lengthen the run. `scored`: columns of the log for validations. Checkpoints come with these, or, where
    there are none in between, after a twentieth of the steps; `save_every` overrides both.
    """

    def __init__(self, path: str | Path, config: TrainConfig, model: nn.Module, data: Mapping, scored: Sequence[str]):
        self.path = as_path("run_directory", path).absolute()
        self._config, self._held = config, ExitStack()  # which holds the lock while this run is at work
        self.columns = [*("step", "loss", "learning_rate", "seconds", "images_per_second", "memory"), *scored]
        with self._clear_errors():
            self.path.mkdir(parents=True, exist_ok=True)
            self._keep_or_compare("model.json", {"build": arguments_of(model), **data})
            self._is_longer = self._keep_or_compare("config.json", asdict(config))
        every = config.save_every or (config.validate_every if scored else None) or config.steps // CHECKPOINTS
        self._every = min(max(1, every), config.steps)

    def start(self, state: TrainingState, environment: Mapping) -> Progress:
        """Go on from the last checkpoint if there is one; cut the log back to it. Every process calls this.

        Where it is spoilt, the one before it serves; a warning says what is lost, as it does for rows of the log, for
        steps before the first checkpoint, and for the best weights: the next validation then counts as the best so far.
        Raises BlockingIOError when another run is at work in this folder, ValueError when no checkpoint can be read, or
        none is there and one was.
        """
        if state.fabric.is_global_zero:
            self._hold()
        progress, row, trouble = self._resumed(state)
        try:
            _ = progress.best is None or load_tensors(self.path / "best.safetensors")
        except (OSError, ValueError) as error:
            progress.best = None
            warnings.warn(f"the best weights are lost ({error}); the next validation writes others", stacklevel=3)
        state.fabric.barrier()  # nobody may still be reading what is tidied up now
        if state.fabric.is_global_zero:
            with self._clear_errors():
                if trouble:
                    warnings.warn(trouble, stacklevel=3)
                if trouble and progress.step:
                    write_whole(self.path / "last.safetensors", (self.path / "previous.safetensors").read_bytes())
                if self._is_longer:
                    longer = f"the run in {self.path} becomes one of {self._config.steps} steps: from step"
                    rates = "its learning rates are those of the longer run, which ends otherwise than one so planned"
                    warnings.warn(f"{longer} {progress.step + 1} on {rates}", stacklevel=3)
                    write_whole(self.path / "config.json", _as_json(asdict(self._config)))
                self._tidy(progress.step)
                write_whole(self.path / "environment.json", _as_json(environment))
                write_whole(self.path / "log.csv", self._mended_log(progress.step, row).encode())
        return progress

    def _resumed(self, state: TrainingState) -> tuple[Progress, str, str]:
        """Put the last checkpoint into the state, or the one before where it is spoilt; gives the progress, its row of
        the log, and words on what is wrong."""
        trouble, paths = "", [self.path / f"{name}.safetensors" for name in ("last", "previous")]
        for path in paths if any(map(Path.exists, paths)) else ():
            try:
                facts = load_weights(state.result, path)
                progress = Progress(**facts["progress"])
                state.load(load_tensors(self.path / f"optimizer-{progress.step}.safetensors")[0])
                state.fabric.strategy.precision.load_state_dict(facts["precision"])
            except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
                trouble = f"{trouble}the checkpoint {path.name} in {self.path} cannot be read: {error}; "
                continue
            lost = f"the run goes on from step {progress.step}, and what it did after that is computed again"
            return progress, str(facts.get("row", "")), trouble and trouble + lost
        if trouble:
            raise ValueError(f"{trouble}get the folder again from where it is whole, or give another run_directory")
        return Progress(), "", self._lost_without_checkpoint()

    def _lost_without_checkpoint(self) -> str:
        """Words on the steps of a run that was killed before its first checkpoint; ValueError where it had one."""
        best = self.path / "best.safetensors"
        known = load_tensors(best)[1].get("facts", {}).get("step") if best.exists() else 0
        trained = max([*self._rows(), *self._optimizer_files(), int(known) if is_whole(known) else 0], default=0)
        if trained > self._every:
            gone = f"{self.path} tells of {trained} steps, and last.safetensors and previous.safetensors are gone"
            raise ValueError(f"{gone}: bring one back with its optimizer-N.safetensors, or give another run_directory")
        stopped = f"the run in {self.path} was stopped before its first checkpoint: all up to step {trained} is lost"
        return f"{stopped} and computed again, best.safetensors with it" if trained else ""

    def release(self) -> None:
        """Let others train here."""
        self._held.close()

    def _hold(self) -> None:
        import filelock

        # One lock for the whole process: a run that a notebook was stopped in must not shut its own successor out.
        lock = filelock.FileLock(self.path / ".lock", thread_local=False, is_singleton=True)
        with self._clear_errors(), suppress(filelock.Timeout):
            self._held.enter_context(lock.acquire(timeout=PATIENCE))
        if not lock.is_locked:
            raise BlockingIOError(f"another process is training in {self.path}: wait until it ends, or stop it")

    def keep(self, record, state: TrainingState, progress: Progress, predictor: Predictor) -> None:
        """Log a step, keep its weights when they are the best so far, and write a checkpoint when one is due.

        Every process calls this, the first one writes.
        """
        due = progress.step % self._every == 0 or progress.step == self._config.steps
        metrics = record.metrics or {}
        is_best = bool(metrics) and (progress.best is None or metrics["mean"] > progress.best)
        progress.best = metrics["mean"] if is_best else progress.best
        tensors = state.tensors() if due else {}
        if not state.fabric.is_global_zero:
            return
        values = vars(record) | {f"dice {name}": value for name, value in metrics.items()}
        row = _as_csv([values.get(column) for column in self.columns])
        facts = {"step": progress.step, "metrics": record.metrics, "progress": asdict(progress), "row": row}
        with self._clear_errors():
            with (self.path / "log.csv").open("a", encoding="utf-8", newline="") as file:
                file.write(row)
            if is_best or due:
                facts |= predictor.to_json() | {"precision": state.fabric.strategy.precision.state_dict()}
            if is_best:
                save_weights(predictor.network, self.path / "best.safetensors", facts)
            if due:
                save_tensors(tensors, self.path / f"optimizer-{progress.step}.safetensors")
                sync_tree(self.path, recurse=False)
                if (last := self.path / "last.safetensors").exists():
                    write_whole(self.path / "previous.safetensors", last.read_bytes())
                save_weights(predictor.network, self.path / "last.safetensors", facts)
                sync_tree(self.path, recurse=False)  # the new name must be safe before the old optimiser's file goes
                self._tidy(progress.step)

    def _mended_log(self, step: int, row: str) -> str:
        """The log's rows up to a checkpoint, whose own row is known; warns of those that are lost.

        A killed run's log may end in the middle of a later one; a spoilt one may hold anything.
        """
        rows = {number: line for number, line in self._rows(row).items() if 0 < number <= step}
        if lost := step - len(rows):
            warnings.warn(f"{self.path / 'log.csv'} lacks {lost} of {step} steps, the run itself nothing", stacklevel=4)
        return "".join([_as_csv(self.columns), *(rows[number] for number in sorted(rows))])

    def _rows(self, more: str = "") -> dict[int, str]:
        """Step -> row of the log, of all that are whole, and of one more."""
        path, whole = self.path / "log.csv", re.compile(rf"[0-9]{{1,15}}(,{FIELD}){{{len(self.columns) - 1}}}\r?\n")
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        lines = filter(whole.fullmatch, [*text.splitlines(keepends=True), more])
        return {int(line.partition(",")[0]): line for line in lines}

    def _optimizer_files(self) -> dict[int, Path]:
        """Step -> file."""
        return {int(path.stem[10:]): path for path in self.path.glob("optimizer-*") if path.stem[10:].isdecimal()}

    def _tidy(self, step: int) -> None:
        """Remove optimiser files of all but two checkpoints, and what a killed process left half-written."""
        files = self._optimizer_files()
        kept = [files[number] for number in sorted(files) if number <= step][-2:]
        for path in {*files.values(), *self.path.glob(".*partial-*")}.difference(kept):
            path.unlink(missing_ok=True)

    def _keep_or_compare(self, name: str, facts: Mapping) -> bool:
        """Write the facts, or hold them against those that are there; whether there are more steps than were."""
        path, facts = self.path / name, json.loads(json.dumps(facts))  # as they come back: lists for tuples
        if not path.exists():
            write_whole(path, _as_json(facts))
            return False
        there = read_json(path)
        longer = is_whole(there.get("steps")) and facts.get("steps", 0) > there["steps"]
        there |= {"steps": facts["steps"]} if longer else {}
        other = [key for key in sorted(there.keys() | facts.keys()) if there.get(key) != facts.get(key)]
        if lines := [f"\n  {key}: {there.get(key)!r} there, {facts.get(key)!r} now" for key in other]:
            raise ValueError(f"{self.path} holds another run: give another folder, or its settings{''.join(lines)}")
        return longer

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Say what a refused write means for the run; the number of the error stays."""
        try:
            yield
        except OSError as error:
            kept = "last checkpoint is whole" if (self.path / "last.safetensors").is_file() else "first is to come"
            why = f"the run directory {self.path} cannot be written ({error.strerror or error}); the {kept}"
            raise OSError(*filter(None, (error.errno, f"{why}: mend it and fit again, or give another one"))) from error


def _as_json(facts: Mapping) -> bytes:
    return (json.dumps(facts, indent=2) + "\n").encode()


def _as_csv(row: Sequence) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue()
