"""The training loop of one rank: file -> reader -> batch -> model -> loss -> updates -> metrics -> checkpoint."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dlrmctl.assembly.inputs import DenseInputs, with_dense_inputs
from dlrmctl.assembly.model import Model, build_model
from dlrmctl.assembly.optimizers import (
    build_averaging,
    build_dense_optimizer,
    build_schedule,
    dense_state,
    failed_roots,
)
from dlrmctl.assembly.storage import refuse_without_gpu
from dlrmctl.console.console import notice, say
from dlrmctl.console.text import counted
from dlrmctl.data.reader import STREAM_ORDER, Reader
from dlrmctl.data.source import Source
from dlrmctl.datasets.open import bytes_read, open_reader, open_source, refuse_equal_labels
from dlrmctl.datasets.place import table_rows
from dlrmctl.embeddings.largest import rows_cut
from dlrmctl.errors import Interrupted, UserError
from dlrmctl.plan.check import Rooms, check_memory
from dlrmctl.ranks.group import Ranks, process_group
from dlrmctl.ranks.process import matmul_precision
from dlrmctl.ranks.signals import StopRequest, stop_requests
from dlrmctl.rundir.baselines import find_baseline
from dlrmctl.rundir.behind import CheckpointWriter
from dlrmctl.rundir.checkpoint import Checkpoints, load, read_state
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.names import named_after_data, part_of_job, place_of_run
from dlrmctl.rundir.state import RunState, StepSums
from dlrmctl.scoring.metrics import Metrics, short_text, with_optimum
from dlrmctl.scoring.scores import evaluate
from dlrmctl.settings.config import MOST_EPOCHS, Config, resolve
from dlrmctl.settings.exchange import dense_ratio
from dlrmctl.tracking.tracking import check_trackers, tracked
from dlrmctl.training.advice import advice
from dlrmctl.training.batches import BatchGrowth
from dlrmctl.training.display import TrainingDisplay, averages, introduction, show_placements, thinned
from dlrmctl.training.exchange import about_exchange, counted_exchange, exchange_results
from dlrmctl.training.overhead import within_overhead
from dlrmctl.training.pipeline import Pipeline
from dlrmctl.training.step import TrainingStep
from dlrmctl.training.unknown_ids import IdDropout
from dlrmctl.training.warm_start import Filled, WarmStart, stored_inputs

_BASE_RATE_ROWS = 65_536  # examples that give the first bias
_CLEARLY = 2.0  # standard errors of NE
_LEFT_OUT = "left out"  # tensors of a checkpoint: gradients that were not sent, by rank
_FEWEST_LINES = 20  # of progress in a run, so that short runs have a training curve


@dataclass(frozen=True)
class TrialWatch:
    """Makes a training a trial of a search, which keeps no checkpoints and computes no test scores.

    Attributes:
        title: of the trial, shown with its progress.
        beside: shown with the loss.
        ends: called on rank 0 with the score of each evaluation, validation NE, or log loss if NE is not defined;
            returns whether to end the training.
    """

    title: str
    beside: str
    ends: Callable[[float], bool]


def train_on_rank(
    settings: dict[str, Any],
    run_dir: str | None,
    *,
    resume: bool | Literal["auto"],
    print_plan: bool,
    command_line: list[str],
    source: Source | None = None,
) -> dict[str, Any]:
    """Joins the process group and trains; `run_training` calls it on every rank.

    Args:
        settings: see `Config.to_dict`.
        run_dir, source: see `run_training`; rank 0 names the directory.
    """
    config = resolve(settings, {}, file_name="settings")
    with process_group(config.train.device, timeout_seconds=config.train.timeout) as ranks:
        config = config if source is not None else named_after_data(config)
        given = None if run_dir is None else Path(run_dir)
        rows = None if given else _table_rows(config, source)
        if given is not None and resume:
            found = resume is True or RunDirectory(given, writes=False).settings_file.is_file()
        else:
            given, found = place_of_run(config, given, rows=rows)
        path, continued = ranks.broadcast((given, found))
        run, job = RunDirectory(path, writes=ranks.is_main), part_of_job(config)
        if continued and resume is not True:  # started again: the settings are the same, completed
            config = resolve(run.settings(), {}, file_name=str(run.settings_file))
        return train(
            config,
            run,
            ranks,
            resume=continued,
            source=source,
            print_plan=print_plan,
            command_line=command_line,
            job=job,
        )


def _table_rows(config: Config, source: Source | None) -> dict[str, int]:
    if source is None:
        return table_rows(config.data)
    return {feature.name: feature.rows for feature in source.schema.sparse}


def train(
    config: Config,
    run: RunDirectory,
    ranks: Ranks,
    *,
    resume: bool,
    source: Source | None = None,
    print_plan: bool = False,
    command_line: Sequence[str] = (),
    job: str | None = None,
    watch: TrialWatch | None = None,
) -> dict[str, Any]:
    """Trains to the end of the run, then evaluates the best checkpoint on the test split.

    Args:
        job: see `RunDirectory.describe`.
        watch: for a trial; the results then have no test scores, and "ended_early".

    Returns:
        The results: metrics per split, the best step, and the optimum if known. The same on every rank.

    Raises:
        UserError, DataError: for mistakes that the user can fix.
        Interrupted: after SIGTERM or Ctrl-C, with the state saved.
    """
    refuse_without_gpu(config, ranks.device.type)
    with matmul_precision(config.train.precision), ExitStack() as until_the_end:
        if resume:
            until_the_end.enter_context(run.resumed())
        if ranks.is_main:
            if watch is None:
                check_trackers(config)
            notice("building the model")
        if source is None:
            source = open_source(config.data, **({"ranks": ranks} if watch is None else {"verify": ()}))
        config = _with_dense_inputs(config, source, ranks)
        start, inputs = None, None
        if config.train.init_from is not None:
            stored = ranks.broadcast(Checkpoints(run.checkpoints, ranks).newest()) if resume else None
            if stored is None:
                start = WarmStart.open(Path(config.train.init_from), ranks, refit=config.train.refit_dense)
                config = start.grown(config, source)
                inputs = start.inputs(config, source.features)
            else:
                inputs = stored_inputs(stored, source.features)
        config = config.fitted(source.num_examples("train"), ranks.world_size)
        if config.optim.shampoo_overhead is not None:
            config = within_overhead(config, source.schema, ranks)
        trainer = Trainer(config, source, run, ranks, start=start, inputs=inputs, watch=watch)
        if resume:
            trainer.resume()
        else:
            trainer.begin()
            until_the_end.enter_context(run.created())
        run.describe(trainer.config, ranks.world_size, ranks.device.type, command_line, job=job)
        if watch is None:
            run.keep_features(source.features)
        run.write_plan([asdict(table) for table in trainer.model.sharded.plan])
        if print_plan and ranks.is_main:
            show_placements("plan", trainer.model.sharded.plan)
            if trainer.model.wide is not None:
                show_placements("plan of the first-order weights", trainer.model.wide.sharded.plan)
        finish = None
        if config.train.trackers and ranks.is_main and watch is None:
            first_step = trainer.progress.step + 1 if resume else 0
            finish = until_the_end.enter_context(tracked(trainer.config, run, first_step=first_step))
        results = trainer.run_to_the_end()
        if finish is not None:
            finish(results)
        return results


def _with_dense_inputs(config: Config, source: Source, ranks: Ranks) -> Config:
    """Resolves `dense_inputs` = auto, with a message for data of an earlier version."""
    settled = with_dense_inputs(config, source.features)
    if ranks.is_main and config.model.dense_inputs == "auto" and settled.model.dense_inputs == "raw":
        say("dense features are not normalized: this data has no statistics for that; prepare it again")
    return settled


class Trainer:
    """The parts of a run, and the training loop.

    Args:
        config: settings of the loop, and of the parts that are not given.
        source: the data.
        readers: by split: "train", "validation" and "test".
        model: on this rank.
        optimizer: of the dense network; the schedule scales its learning rates.
        start: the run to start from.
        inputs: the transform of the dense features; default: that of the settings and the data.
        quiet: whether to hide progress.
        watch: for a trial of a search.
    """

    def __init__(
        self,
        config: Config,
        source: Source,
        run: RunDirectory,
        ranks: Ranks,
        *,
        readers: Mapping[str, Reader] | None = None,
        model: Model | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        start: WarmStart | None = None,
        inputs: DenseInputs | None = None,
        quiet: bool = False,
        watch: TrialWatch | None = None,
    ) -> None:
        refuse_equal_labels(source)
        rooms = check_memory(config.at_largest_batch(), source.schema, ranks) if model is None else Rooms()
        self.config, self.source, self.run, self.ranks = config, source, run, ranks
        self.start, self.messages = start, about_exchange(config, ranks)
        self.speaks = ranks.is_main and not quiet
        self.watch = watch
        scoring = config.for_scoring()
        self.readers = readers or {
            "train": open_reader(config, source, "train", ranks, training=True),
            "validation": open_reader(scoring, source, "validation", ranks, training=False),
            **({} if watch else {"test": open_reader(scoring, source, "test", ranks, training=False)}),
        }
        reader = self.readers["train"]
        self.model = model or build_model(
            config,
            source.features,
            ranks,
            batch_size=reader.local_batch_size,
            memory_bytes=(rooms.tables, rooms.wide),
            inputs=inputs,
            base_rate=self._base_rate if config.model.wide else None,
        )
        self.optimizer = optimizer or build_dense_optimizer(config.optim, self.model.network, ranks.group)
        self.dense_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.averaging = build_averaging(config.optim, self.optimizer)
        self.take_step = TrainingStep(
            self.model,
            self.averaging or self.optimizer,
            ranks,
            config.train.precision,
            seed=config.train.seed,
            sparse_weight_decay=config.optim.sparse_weight_decay,
            compress_after=config.train.compress_warmup,
            late_checks=config.train.late_checks,
        )
        self.id_dropout = IdDropout(source, config.model.id_dropout, config.train.seed, ranks)
        most_steps = (config.train.epochs or MOST_EPOCHS) * reader.num_batches
        self.total_steps = min(most_steps, config.train.max_steps or most_steps)
        # --max-steps ends a run early without changing its schedule, so that it can be continued. With --epochs auto,
        # only the first epoch is certain.
        self.planned_steps = planned_steps = (config.train.epochs or 1) * reader.num_batches
        self.schedule = build_schedule(config, planned_steps)
        self.growth: BatchGrowth | None = None
        self.writer = CheckpointWriter(run.checkpoints, ranks, keep=config.train.keep_checkpoints, behind=rooms.copy)
        self.checkpoints = self.writer.checkpoints
        self.log_every = max(1, min(config.train.log_every, min(planned_steps, self.total_steps) // _FEWEST_LINES))
        self.lines_thin_out = config.train.epochs is None
        self.progress = RunState()
        self.last_batch = reader.batch_size
        self._follow_noise()
        self.saved_step = 0
        self.best_metrics: Metrics | None = None  # on the validation split; None if an earlier process scored the best
        self.ended_early = False

    def _follow_noise(self) -> None:
        """Lets the batch grow from that of the progress, if it is to grow."""
        config, progress, reader = self.config, self.progress, self.readers["train"]
        if progress.row is None:
            progress.row = progress.batch * reader.batch_size
        if config.train.batch_schedule == "constant":
            return
        self.growth = BatchGrowth(config, self.model.network, self.ranks, reader.num_examples, progress.noise)
        self.take_step.probe = self.growth.probe
        if progress.batch_size is not None:
            self.readers = {**self.readers, "train": reader.resized(progress.batch_size)}
            self.last_batch = progress.batch_size

    def run_to_the_end(self) -> dict[str, Any]:
        progress = self.progress
        total = self._expected_steps(self.config.train.epochs or MOST_EPOCHS)
        with (
            stop_requests() as request,
            TrainingDisplay(total, progress.step, speaks=self.speaks, trial=self._trial()) as display,
            self.writer.finishing(),
        ):
            self.display = display
            self._introduce()
            while not progress.finished:
                self._epoch(request)
            self._catch_up()
            if progress.window.examples:
                self._log()
            self.writer.finish()
            return self._results()

    def _trial(self) -> tuple[str, str] | None:
        return (self.watch.title, self.watch.beside) if self.watch else None

    def _epoch(self, request: StopRequest) -> None:
        """Trains the rest of the current epoch."""
        progress = self.progress
        if self.config.train.epochs is None:
            self.display.begin_epoch(progress.epoch + 1, self._expected_steps(progress.epoch + 1))
        while self._batches_left() and not progress.finished:
            self._batches_of_one_size(request)
        if not self._batches_left():
            progress.epoch, progress.batch, progress.row = progress.epoch + 1, 0, 0

    def _batches_of_one_size(self, request: StopRequest) -> None:
        """Trains until the batch changes, or the epoch or the training ends."""
        progress, reader = self.progress, self.readers["train"]
        with closing(reader.batches_from(progress.epoch, self._row())) as batches:  # type: ignore[type-var]
            pipeline = Pipeline(
                batches,
                self.model,
                self.ranks.device,
                change=self.id_dropout,
                first=progress.step + 1,
                most=self.total_steps - progress.step,
                own_stream=self.config.train.copy_stream,
            )
            for batch in pipeline:
                self._set_learning_rates()
                ends = bool(request.signal_number) or self.writer.has_failed
                self._advance(self.take_step(batch, progress.step + 1, stop=ends, meanwhile=pipeline.advance))
                changed = self._grow()
                if self._evaluates_now() or self._is_last_step():
                    self._evaluate()
                elif self.config.train.checkpoint_every and progress.step % self.config.train.checkpoint_every == 0:
                    self._save()
                if self.take_step.stopping:
                    self._leave(request)
                if progress.finished or changed:
                    break

    def _grow(self) -> bool:
        """Changes the batch of the next step, if the noise of gradients asks for it; returns whether it did."""
        progress, reader = self.progress, self.readers["train"]
        if self.growth is None or not self.growth.probe.is_due(progress.step):
            return False
        size = self.growth.next_batch(reader.batch_size, reader.num_examples - self._row())
        if size == reader.batch_size:
            return False
        self.display.say(f"step {progress.step}  the batch grows from {reader.batch_size:,} to {size:,}")
        wanted = self.growth.average.batch_for(self.growth.theta)
        self.run.record({"kind": "batch", "step": progress.step, "batch_size": size, "wanted": wanted})
        progress.batch_size = size
        self.readers = {**self.readers, "train": reader.resized(size)}
        self.display.expect(self._expected_steps(self.config.train.epochs or progress.epoch + 1))
        return True

    def _row(self) -> int:
        """The number of examples of the epoch so far."""
        assert self.progress.row is not None
        return self.progress.row

    def _batches_left(self) -> int:
        return self.readers["train"].batches_left(self._row())

    def _expected_steps(self, epochs: int) -> int:
        """The number of steps of the run if it has this many epochs, all further ones with the present batch."""
        further = (epochs - self.progress.epoch - 1) * self.readers["train"].num_batches
        return min(self.total_steps, self.progress.step + self._batches_left() + further)

    def _evaluates_now(self) -> bool:
        """Whether an evaluation is due after the last batch."""
        reader, evaluations = self.readers["train"], self.config.train.evaluations
        if self.growth is None:
            return self.progress.batch in _evaluation_points(reader.num_batches, evaluations)
        if not self._batches_left():
            return True
        # Of as many equal parts of the epoch, another one has ended.
        before, now = self._row() - self.last_batch, self._row()
        return before * evaluations // reader.num_examples < now * evaluations // reader.num_examples

    def _is_last_step(self) -> bool:
        ends = self.progress.epoch + 1 >= (self.config.train.epochs or MOST_EPOCHS) and not self._batches_left()
        return self.progress.step >= self.total_steps or ends

    def _advance(self, sums: StepSums) -> None:
        progress = self.progress
        progress.step += 1
        progress.batch += 1
        self.last_batch = self.readers["train"].batch_size
        progress.row = self._row() + self.last_batch
        progress.window += sums
        self.display.advance_step(progress.window, sums.examples)
        if progress.step % self.log_every == 0 or self._is_last_step():
            self._log()

    def _catch_up(self) -> None:
        """Reads the results of all steps; raises if one of them was not finite."""
        sums = self.take_step.finish()
        self.progress.window += sums
        self.display.add_examples(sums.examples)

    def _log(self) -> None:
        """Records and prints a line about the steps since the last one."""
        self._catch_up()
        progress, window = self.progress, self.progress.window
        progress.window = StepSums()
        rate = self.display.rate()
        is_last = self._is_last_step()
        self.display.report(window, rate, as_line=is_last or progress.step % self._line_every() == 0)
        dense_lr = self.optimizer.param_groups[0]["lr"]  # of the step that is recorded
        entry = {"kind": "train", "step": progress.step, **averages(window), "dense_lr": dense_lr}
        if self.growth is not None:
            entry |= {"batch_size": self.last_batch, "noise_scale": progress.noise.batch_for(1.0)}
        self.run.record(entry | {"examples_per_second": rate})

    def _line_every(self) -> int:
        """Steps between two lines of progress in a file."""
        if not self.lines_thin_out:
            return self.log_every
        return thinned(self.log_every, self.progress.step, most=self.config.train.log_every)

    def _set_learning_rates(self) -> None:
        factor, optim = self.schedule(self.progress.step), self.config.optim
        if self.growth is not None:
            size = self.readers["train"].batch_size
            factor *= self.growth.rate_factor(size)
            self.take_step.table_scale = size / self.growth.first
        self.model.set_learning_rates(optim, factor)
        for group, lr in zip(self.optimizer.param_groups, self.dense_lrs, strict=True):
            group["lr"] = lr * factor

    def _evaluate(self) -> None:
        """Scores the validation split, saves a checkpoint, and marks it if it is the best so far."""
        self._catch_up()
        progress = self.progress
        with self.display.pause():
            with self.averaging.averaged() if self.averaging else nullcontext():
                metrics = self._score("validation")
            self.run.record({"kind": "validation", "step": progress.step, **metrics.to_dict()})
            progress.last_ne = metrics.ne
            # On one split, log loss and NE give the same order, but NE is not defined if all labels are the same.
            score = metrics.log_loss if metrics.ne is None else metrics.ne
            if metrics.ne is None and metrics.log_loss is not None and progress.best_step is None:
                self.display.say("all validation labels are the same: without NE and AUC, log loss chooses the best")
            # Without validation examples, the newest is the best.
            clearly_worse = False
            better = score is None or progress.best_score is None or score < progress.best_score
            if better:
                progress.best_score, progress.best_step = score, progress.step
                self.best_metrics = metrics
                progress.evaluations_without_gain = 0
            else:
                progress.evaluations_without_gain += 1
                if clearly_worse := self._is_clearly_worse(metrics):
                    progress.evaluations_without_gain = max(self.config.train.patience, 1)
            progress.finished = self._is_last_step() or self._out_of_patience()
            if self.watch is not None and score is not None:
                ends = self.ranks.broadcast(self.ranks.is_main and self.watch.ends(score))
                self.ended_early = ends and not progress.finished
                progress.finished |= ends
            mark = "  best so far" if better else ""
            self.display.say(f"step {progress.step}  validation  {short_text(metrics)}{mark}")
            if progress.finished and not self._is_last_step():
                without = f"{progress.evaluations_without_gain} evaluations without improvement (--patience)"
                far = "this NE is more than two standard errors above the best"
                self.display.say(f"step {progress.step}  training ends: {far if clearly_worse else without}")
            for warning in failed_roots(self.optimizer, self.ranks):
                self.display.say(f"step {progress.step}  {warning}")
        self._save()

    def _is_clearly_worse(self, metrics: Metrics) -> bool:
        """Whether a further pass does harm that the number of validation examples does not explain."""
        best, progress = self.progress.best_score, self.progress
        if self.config.train.epochs is not None or progress.epoch == 0 or best is None:
            return False
        return metrics.ne is not None and metrics.ne > best + _CLEARLY * (metrics.ne_se or 0.0)

    def _out_of_patience(self) -> bool:
        patience, progress = self.config.train.patience, self.progress
        if self.config.train.epochs is None and progress.epoch == 0 and self._batches_left():
            return False  # the first pass is made in any case
        return bool(patience) and progress.evaluations_without_gain >= patience

    def _save(self, *, at_once: bool = False) -> None:
        if self.watch is not None or self.saved_step == self.progress.step:
            return
        self._catch_up()
        with self.display.pause():
            state = self._state().to_state(self.config, self.source)
            step, best = self.progress.step, self.progress.best_step
            self.writer.save(step, self._tensors(), state, best, at_once=at_once or self.progress.finished)
            self.saved_step = step

    def _state(self) -> RunState:
        """The state with what was counted on all ranks. Every rank must call it."""
        exchanged = self.progress.exchanged + counted_exchange(self.model, self.ranks)
        return replace(self.progress, ranks=self.ranks.world_size, exchanged=exchanged)

    def _tensors(self) -> dict[str, Any]:
        """The tensors of a checkpoint; loading into them restores the run.

        Weights that are averaged are stored as their averages, which readers of a checkpoint expect.
        """
        tensors = self.model.tensors(with_sums=True)
        tensors["optimizer"] = dense_state(self.optimizer, self.model.network)
        if self.averaging:
            named = dict(self.model.network.named_parameters())
            tensors["network"] = tensors["network"] | self.averaging.averages(named)
            tensors["averaging"] = self.averaging.tensors(named)
        if self.model.thresholded:
            mine = self.model.thresholded.tensors()
            tensors[_LEFT_OUT] = {f"{self.ranks.rank}/{name}": value for name, value in mine.items()}
        return tensors

    def _leave(self, request: StopRequest) -> None:
        """Saves and raises Interrupted; if a checkpoint could not be written, raises that error."""
        self.writer.finish()
        self._save(at_once=True)
        number = request.signal_number or 15  # 15 if another rank got the signal
        self.display.say(f"step {self.progress.step}  saved; continue with: dlrmctl train --resume {self.run.path}")
        raise Interrupted(number)

    def begin(self) -> None:
        """Takes over the weights of a fit, vectors of a file, and the tensors of the run to start from, if any."""
        pretrained, fits = self.config.train.init_embeddings, self.config.optim.wide_start == "fitted"
        if self.start is None and pretrained is None and not fits:
            return
        tensors = self._tensors()
        if fits:
            self._start_from_fit(tensors)
        if pretrained is not None:
            from dlrmctl.training.pretrained import PretrainedVectors  # loads polars

            vectors = PretrainedVectors(Path(pretrained), self.config, self.source.features)
            vectors.fill(tensors["tables"])
            self.messages.append(vectors.about())
        if self.start is None:
            return
        filled = self.start.fill_tables(tensors, self.config, self.source.features)
        of_all = [Filled(*numbers) for numbers in self.ranks.gather(astuple(filled))]
        messages = self.start.fill_dense(tensors, self.config, self.ranks)
        if self.averaging:
            self.averaging.train()
        self.messages += [*self.start.about(of_all), *messages]
        self.progress.steps_before = self.start.steps
        self.schedule = build_schedule(self.config, self.planned_steps, self.start.steps)

    def _start_from_fit(self, tensors: Mapping[str, Any]) -> None:
        """Makes the model a logistic regression of the training split, if there is one."""
        from dlrmctl.baseline.first_order import fit_first_order  # loads the solvers

        fit = fit_first_order(self.config, self.source, self.ranks, shown=self.speaks)
        if fit is None:
            self.config = self.config.change(wide_start="zero")
            self.messages.append("first-order weights start at 0: no logistic regression can be fitted for them")
            return
        fit.fill(tensors["wide"])
        named = {id(parameter): name for name, parameter in self.model.network.named_parameters()}
        bias = named[id(self.model.network.top.output.bias)]
        tensors["network"][bias].fill_(fit.intercept)
        if self.averaging:
            tensors["averaging"][f"{bias}/z"].fill_(fit.intercept)
            self.averaging.train()
        self.messages.append(fit.about())

    def resume(self) -> None:
        """Loads the newest checkpoint; without one, the run starts over."""
        path = self.ranks.broadcast(self.checkpoints.newest())
        if path is None:
            self.run.forget_after(0)
            say(f"{self.run.path}: no checkpoint yet, starting over") if self.speaks else None
            self.begin()
            return
        self.progress = read_state(path).progress_with(self.config, self.source, path)
        tensors, saved_by = self._tensors(), self.progress.ranks
        if saved_by != self.ranks.world_size and dense_ratio(self.config.train.compress_dense):
            tensors.pop(_LEFT_OUT, None)
            if saved_by > 1:
                left_out = "the gradients that --compress-dense left out so far are dropped"
                self.messages.append(f"{left_out}: they are of {counted(saved_by, 'rank')}")
        load(path, tensors, self.ranks)
        if self.averaging:
            self.averaging.train()
        self.schedule = build_schedule(self.config, self.planned_steps, self.progress.steps_before)
        self._follow_noise()
        self.saved_step = (progress := self.progress).step
        progress.finished = self._is_last_step() or self._out_of_patience()
        self._continue_in_order(path)
        if self.ranks.broadcast(self.checkpoints.at(progress.best_step)) is None:
            progress.best_score = progress.best_step = None  # its checkpoint was removed
        if self.ranks.is_main:
            self.checkpoints.keep(self.config.train.keep_checkpoints, progress.best_step)
        self.run.forget_after(progress.step)

    def _continue_in_order(self, checkpoint: Path) -> None:
        """Refuses to continue in the middle of an epoch whose examples another version took in another order.

        Raises:
            UserError: if the run would see examples of the epoch twice, and others never.
        """
        progress, row = self.progress, self._row()
        if progress.order != STREAM_ORDER and row > 0 and self._batches_left() and not progress.finished:
            raise UserError(
                f"{checkpoint} is {row:,} examples into an epoch that another version of dlrmctl shuffled in another "
                "order",
                f"start a new run from its weights: dlrmctl train --init-from {self.run.path}",
            )
        progress.order = STREAM_ORDER

    def _introduce(self) -> None:
        growth = [self.growth.about(self.config)] if self.growth else []
        reader = self.readers["train"]
        for line in [*introduction(self.config, reader, self.model, self.ranks), *growth, *self.messages]:
            self.display.say(line)
        resumed = f", resumed at step {self.progress.step:,}" if self.progress.step else ""
        self.display.say(f"run {self.run.path}{resumed}")

    def _results(self) -> dict[str, Any]:
        """Scores the best weights on the validation and test splits; a trial's are scored already."""
        progress = self.progress
        results: dict[str, Any] = {
            "run": str(self.run.path),
            "steps": progress.step,
            "best_step": progress.best_step,
        }
        if self.growth is not None:
            results["batch"] = {"first": self.growth.first, "last": self.readers["train"].batch_size}
        if exchange := exchange_results(self.config, self._state().exchanged):
            results["exchange"] = exchange
        if self.watch is not None:
            scores = self.best_metrics.to_dict() if self.best_metrics else {}
            results |= {"validation": scores, "ended_early": self.ended_early}
            self.run.write_results(results)
            return results
        if self.averaging:
            self.averaging.eval()
        best = self.ranks.broadcast(self.checkpoints.at(progress.best_step))
        if best is not None and progress.best_step != progress.step:
            load(best, self.model.tensors(), self.ranks)
        for split, known in (("validation", self.best_metrics), ("test", None)):
            metrics = known or self._score(split)
            results[split] = with_optimum(metrics.to_dict(), self.source, split)
        baseline = find_baseline(self.run.path, self.source.fingerprint()) if self.ranks.is_main else None
        found = self.ranks.broadcast(baseline and (str(baseline.run), baseline.ne))
        if found is not None:
            results["baseline"], ne_by_split = found
            for split, ne in ne_by_split.items():
                if ne is not None:
                    results[split]["baseline_ne"] = ne
        # Not a result: a run that was resumed has the same results, but reads some blocks again.
        if (read := bytes_read(self.source, self.ranks)) is not None:
            self.run.write_reading(read)
        results["advice"] = advice(
            self.config,
            results,
            last_ne=progress.last_ne,
            dead_units=self._dead_units(),
            normalized=self.config.model.dense_inputs != "raw" or not self.source.schema.dense,
            train_rate=self._train_rate(),
        )
        self.run.write_results(results)
        return results

    def _score(self, split: str) -> Metrics:
        kept = self._state().kept_numbers(self.config.train.compress_a2a)
        with rows_cut(self.model.tensors()["tables"], kept):
            return evaluate(self.model.inference, self.readers[split], self.ranks, tell=self.display.scoring(split))

    @cached_property
    def _base_rate(self) -> float | None:
        return base_rate(self.source, self.ranks)

    def _train_rate(self) -> float | None:
        """The share of label 1 among the first training examples, corrected for a sample of the negatives."""
        if (rate := self._base_rate) is None:
            return None
        return 1 / (1 + (1 - rate) / rate * math.exp(-self.source.features.logit_offset("validation")))

    def _dead_units(self) -> float:
        """Share of the units of the bottom MLP's last layer that no example of a validation batch activates."""
        with closing(self.readers["validation"].batches(epoch=0)) as batches:  # type: ignore[type-var]
            batch = next(iter(batches), None)
        dead = [] if batch is None else self.model.network.dead_units(batch.dense_BI.to(self.ranks.device)).tolist()
        of_ranks = [part for part in self.ranks.gather(dead) if part]
        together = [all(units) for units in zip(*of_ranks, strict=True)]
        return sum(together) / len(together) if together else 0.0


def base_rate(source: Source, ranks: Ranks) -> float | None:
    """The share of label 1 among the first training examples, by their weights; None if all labels are the same.

    Ranks share the blocks. Every rank must call it, and all get the same number.
    """
    num_blocks = -(-min(source.num_examples("train"), _BASE_RATE_ROWS) // source.block_rows)
    mine = {}
    for index in range(ranks.rank, num_blocks, ranks.world_size):
        block = source.read_block("train", index)
        weights_N = np.ones(len(block)) if block.weights_N is None else block.weights_N.astype(np.float64)
        mine[str(index)] = [float(weights_N.sum()), float(weights_N @ block.labels_N)]
    by_block = {index: sums for of_rank in ranks.gather(mine) for index, sums in of_rank.items()}
    # In the order of the blocks, so that rounding does not depend on the number of ranks.
    weight, positives = (sum(sums) for sums in zip(*(by_block[str(index)] for index in range(num_blocks)), strict=True))
    rate = positives / (weight or 1.0)
    return rate if 0 < rate < 1 else None


def _evaluation_points(num_batches: int, evaluations: int) -> set[int]:
    """Batches of an epoch after which to evaluate: evenly spaced, including the last."""
    evaluations = min(evaluations, num_batches)
    return {max(1, round(num_batches * k / evaluations)) for k in range(1, evaluations + 1)}
