"""One training run: its network, optimizer and progress, and the epochs they go through."""

import dataclasses
import itertools
from collections.abc import Iterator
from time import monotonic
from typing import Any, NoReturn

import numpy as np
import torch
from tqdm import tqdm

from engine import checkpoint, report
from engine.averaging import WeightAverage
from engine.clips import check_batch, class_names, open_clips, shares
from engine.compilation import compile_training, is_wanted
from engine.config import Config, as_dict, model_options, with_options
from engine.cuda_graph import capture_training
from engine.distributed import Ranks, place, unwrap
from engine.divergence import LossWatch, skipped
from engine.evaluate import evaluate
from engine.garbage import between_steps
from engine.initial import initialise
from engine.loop import Precision, TrainStep
from engine.metrics import Average, Stopwatch
from engine.mixing import Mixing
from engine.optim import LearningRate, build_optimizer, resume_optimizer, temperature_at
from engine.rehearsal import check_precision, settle_buckets, trial
from engine.run import Progress, RunDirectory, device_name, result
from engine.saver import Saver, start_point
from engine.signals import StopAgreement, Stopped, StopRequest
from engine.speed import Speed, bar_text
from engine.teacher import open_teacher
from engine.timing import StepClock
from engine.tracing import Trace
from engine.warn import warn
from models.registry import build_model
from pipelines.batch import Batch

PICTURES_S = 10.0
"""Short epochs would spend more time on their pictures than on their clips: seconds between two
drawings. The last epoch is always drawn."""


class Training:
    """Everything that changes while a run goes on; `fit` takes it from here to the last epoch."""

    def __init__(self, config: Config, ranks: Ranks, stop: StopRequest | None = None):
        self.ranks = ranks
        self.stop = StopAgreement(stop or StopRequest())
        self.precision = Precision.choose(config.train.precision, ranks.device)
        self.run = RunDirectory(config.train.run_dir)
        ranks.from_main(self.run.claim)
        config = ranks.from_main(lambda: self.run.prepare(config))
        self.start = ranks.from_main(lambda: start_point(self.run))
        """The checkpoint that the run goes on from, if any."""

        ranks.agree(lambda: check_batch(config, ranks))
        self.clips = ranks.agree(lambda: open_clips(config, ranks, self.precision))
        self.config = config = self.clips.config  # which says what clips are read from
        if ranks.is_main:
            self.run.write_config(config)
        if ranks.is_main:
            self.run.write_quarantine(self.clips.quarantined())
        torch.manual_seed(config.train.seed)
        network = build_model(config.model.name, **model_options(config))
        if self.start is None:  # a resumed run takes all its weights from there
            for line in ranks.agree(lambda: initialise(network, config)):
                if ranks.is_main:
                    print(line, flush=True)
        if getattr(network, "published_reshape", False):  # perhaps by the weights it starts from
            self.config = config = with_options(config, published_reshape=True)
        self.model = place(network, ranks, self.precision.weights)
        self.weight_average: WeightAverage | None = None
        if config.train.ema:
            self.weight_average = WeightAverage(unwrap(self.model), config.train.ema)
        self.teacher = open_teacher(
            unwrap(self.model), config, self.precision, ranks, is_new=self.start is None
        )
        self.optimizer = ranks.agree(lambda: build_optimizer(self.model, config.optim))
        self.rate = LearningRate(self.optimizer, config.optim)
        self.clock = StepClock(ranks.device)
        self.shares = shares(config, ranks)
        self.step = TrainStep(
            self.model, self.optimizer, config.loss, config.optim.clip_norm, self.precision,
            shares=self.shares, skip=config.train.on_nan == "skip", clock=self.clock,
        )  # fmt: skip
        self.mixing = Mixing(
            config.mix, config.train.seed, config.data.num_classes,
            paired=config.data.paired_view,
        )  # fmt: skip
        self.losses = LossWatch(
            self.step, ranks, config.train.log_every, config.train.max_loss, self.clips.train_name
        )
        self.speed = Speed(ranks, config.train.global_batch)
        self.trace = Trace(config.train.profile, self.run.path, ranks.device, enabled=ranks.is_main)
        self.progress = Progress()
        self.watch = Stopwatch()
        self.average = Average(ranks)
        """Means over the epoch in progress."""

        self.draw_at = monotonic() + PICTURES_S
        self.logged = 0
        """Step of the last log line: speed is measured between two of them."""

        self.scores: dict[str, Any] = {}
        """The latest evaluation (engine/metrics.py, Scores.table)."""

    def fit(self) -> dict[str, Any]:
        """Train from the last checkpoint to the last epoch; returns what result.json holds."""
        self.ranks.agree(self._resume)
        if self.ranks.is_main:
            print(self.clips.counts(), flush=True)
        epochs = self.config.train.epochs
        watchdog = self.ranks.watchdog
        watchdog.clips_of = self.clips.names_at
        batches = self.clips.train_batches(self.progress.step, self.clips.steps_before(epochs))
        batches = self._rehearsed(watchdog.steps(batches, self.progress.step))
        self.stop.request.defer()
        for epoch in range(self.progress.epoch, epochs):
            self._train_epoch(epoch, batches)
            self._evaluate(epoch)
            self._end_epoch(epoch)
        return self._finish()

    def _rehearsed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, once the first has shown that the step works on this machine."""
        first = next(batches, None)
        self.ranks.watchdog.pause("trying the first step")
        if first is None:
            return batches
        tried = self.teacher.stream(first) if self.teacher else first
        loss, precision = self.config.loss, self.precision
        network = unwrap(self.model)
        part = self.shares.split(tried)[0]
        self.ranks.agree(lambda: check_precision(network, tried, loss, precision))
        self._speed_up(part)
        settle_buckets(self.model, part, loss, precision)
        if self.config.train.flop_use:
            said = self.speed.prepare(self.config, tried, precision)
            if self.ranks.is_main:
                print(said, flush=True)
        return itertools.chain([first], batches)

    def _speed_up(self, batch: Batch) -> None:
        """Compile and capture the step where that is wanted and works with a (micro) batch."""
        train, model, ranks = self.config.train, self.model, self.ranks
        wanted = {
            "train.compile: not compiled": is_wanted(train.compile, ranks.device),
            "train.cuda_graph: not captured": train.cuda_graph == "on",
        }
        for failure, prepare in zip(wanted, (compile_training, capture_training), strict=True):
            if wanted[failure]:
                problem = prepare(
                    model, ranks, lambda: trial(model, batch, self.config.loss, self.precision)
                )
                if problem and ranks.is_main:
                    print(f"{failure}, {problem}", flush=True)

    def _train_epoch(self, epoch: int, batches: Iterator[Batch]) -> None:
        """The steps left of one epoch."""
        train, progress = self.config.train, self.progress
        temperature = temperature_at(epoch, *train.temperature, train.temperature_epochs)
        total = self.clips.steps_before(train.epochs)
        first, last = self.clips.steps_before(epoch), self.clips.steps_before(epoch + 1)
        bar = tqdm(
            total=last - first, initial=progress.step - first, desc=f"epoch {epoch + 1}",
            unit="step", leave=False, disable=None if self.ranks.is_main else True,
        )  # fmt: skip
        self.model.train()
        self.trace.before(progress.step + 1)
        batches = self.clock.watch(itertools.islice(batches, last - progress.step))
        for batch in between_steps(self.watch.watch(batches), train.gc):
            rate = self.rate.set(epoch, train.epochs, progress.step, total)
            # Dropout is a function of the step, so that no generator state has to be stored.
            torch.manual_seed(_step_seed(train.seed, progress.step, self.ranks.rank))
            batch = self.mixing(batch, progress.step)
            if self.teacher:
                batch = self.teacher(batch, self.shares)
            means = self.step(batch, epoch, temperature)
            self.average.add(len(batch.label), **means)
            if self.weight_average:
                self.weight_average.update(progress.step)
            if self.teacher:
                self.teacher.update()
            progress.step += 1
            loss = means["loss"] * self.shares.weight(len(batch.label))
            self.losses.add(progress.step, epoch, loss, batch.index)
            bar.update()
            if progress.step % train.log_every == 0 or progress.step == last:
                self._log(epoch, rate, temperature, bar)
            if train.save_every and progress.step % train.save_every == 0:
                self._save()
            if signal := self.stop.after_step():
                self._stop(signal)
            self.trace.before(progress.step + 1)
        bar.close()

    def _log(self, epoch: int, rate: float, temperature: float, bar: tqdm) -> None:
        """One log line and the progress bar's figures: the only wait for the device."""
        means, seen = self.average.read_with(self.losses.values())
        self.losses.judge(seen)
        steps, self.logged = self.progress.step - self.logged, self.progress.step
        figures = self.speed.figures(self.clock.read(), steps)
        self.watch.waited += figures.get("data_s", 0.0) * steps
        if not self.ranks.is_main:
            return
        line: dict[str, Any] = {**means, "lr": rate, "temperature": temperature, **figures}
        if self.step.scaler.is_enabled():
            line["skipped"] = skipped(seen)
        if self.clips.cache is not None:
            line["cache_hits"] = self.clips.cache.hit_rate
        bar.set_postfix_str(bar_text(line, self.ranks))
        self.run.log("train", self.progress.step, epoch, **line)

    def _evaluate(self, epoch: int) -> None:
        def until_stopped(batches: Iterator[Batch]) -> Iterator[Batch]:
            followed = self.ranks.watchdog.evaluation(batches, self.progress.step - 1)
            return itertools.takewhile(lambda _: not self.stop.request.asked, followed)

        average = self.weight_average
        network = average.network if average else unwrap(self.model)
        scores = evaluate(
            network, self.clips, self.config, self.ranks, self.precision, epoch,
            through=until_stopped,
        )  # fmt: skip
        if signal := self.stop.now():  # nothing of a part of the list is kept
            self._stop(signal)
        self.scores = scores
        self.ranks.watchdog.pause("ending the epoch")

    def _stop(self, signal: int) -> NoReturn:
        """Save, and leave by way of the exception: on all ranks behind the same step."""
        self._save()
        self.ranks.agree(self._close)
        raise Stopped(signal, f"behind step {self.progress.step}, saved in {self.run.path}")

    def _end_epoch(self, epoch: int) -> None:
        """Book what the epoch reached: schedule, best, log, checkpoint, pictures."""
        progress, top1 = self.progress, self.scores["top1"]
        self.rate.end_epoch(epoch, top1)
        is_best = top1 > progress.best_top1
        if is_best:
            progress.best_top1, progress.best_epoch = top1, epoch
        means = self.average.read()
        progress.epoch = epoch + 1
        self.average = Average(self.ranks)
        if self.ranks.is_main:
            if means:  # a list shorter than the global batch has epochs in which no step begins
                self.run.log("epoch", progress.step, epoch, **means)
            self.run.log("eval", progress.step, epoch, **self.scores)
        self._save(is_best)
        if self.ranks.is_main:
            if progress.epoch == self.config.train.epochs or monotonic() > self.draw_at:
                self._draw()
            print(
                f"epoch {epoch + 1}/{self.config.train.epochs}: loss {means.get('loss', 0):.3f}, "
                f"training top-1 {means.get('top1', 0):.1%}, evaluation top-1 {top1:.1%} "
                f"(best {progress.best_top1:.1%}), {self.watch.seconds:.0f} s",
                flush=True,
            )

    def _finish(self) -> dict[str, Any]:
        """Write the result; a finished run that is started again only prints it."""
        if not self.scores:
            self._evaluate(self.config.train.epochs - 1)
        clips = self.progress.step * self.config.train.global_batch
        device = device_name(self.ranks.device)
        summary = result(self.progress, self.watch, self.scores, clips, device)
        self.ranks.agree(lambda: self._close(summary))
        return summary

    def _close(self, summary: dict[str, Any] | None = None) -> None:
        """Wait for what is being written: only now a disk that cannot be is an error."""
        self.trace.close()
        self.saver.finish()
        if self.ranks.is_main:
            if summary is not None:
                self.run.write_result(summary)
            self.run.close()

    def _save(self, is_best: bool = False) -> None:
        """In the background: `self.saver.finish` waits for it."""
        self.ranks.watchdog.pause("saving")
        self.losses.check()
        state = self._state()
        if self.ranks.is_main:
            self.saver.save(state, self.progress.step, is_best)

    def _state(self) -> dict[str, Any]:
        """Tensors and plain values: all that `_resume` needs for a bit-equal continuation."""
        average = self.weight_average
        return {
            **({"ema": average.network.state_dict()} if average else {}),
            **({"teacher": self.teacher.network.state_dict()} if self.teacher else {}),
            "config": as_dict(self.config),
            "classes": class_names(self.config.data),  # for predictions far from the data set
            "progress": dataclasses.asdict(self.progress),
            "model": unwrap(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rate": self.rate.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "average": self.average.totals(),
            "watch": self.watch.state_dict(),
        }

    def _resume(self) -> None:
        """Continue from the checkpoint that was found at the start, if any."""
        if self.start is not None:
            state = checkpoint.load(self.start)
            checkpoint.load_model(unwrap(self.model), state, self.start)
            if "optimizer" not in state:
                raise ValueError(
                    f"{self.start}: holds weights only, from which no run can go on; start from "
                    "them with train.init_from, in another train.run_dir"
                )
            if self.weight_average:  # without one in the file it starts from the weights
                network = self.weight_average.network
                checkpoint.load_model(network, state, self.start, averaged=True)
            if self.teacher:
                self.teacher.network.load_state_dict(state["teacher"])
            done = state["progress"]  # published checkpoints count epochs, not steps
            self.progress = Progress(**{"step": self.clips.steps_before(done["epoch"]), **done})
            resume_optimizer(self.optimizer, state["optimizer"])
            for part, name in (
                (self.rate, "rate"), (self.step.scaler, "scaler"), (self.watch, "watch")
            ):  # fmt: skip
                part.load_state_dict(state[name])
            self.average.resume(state["average"])
            self.logged = self.progress.step
        self.saver = Saver(self.run, self.config.train.keep, self.progress.step)
        if self.ranks.is_main:
            self.run.rewind(self.progress)

    def _draw(self) -> None:
        folder, names = self.run.path, class_names(self.config.data)
        train, evaluation = self.run.read_metrics("epoch"), self.run.read_metrics("eval")
        try:
            report.curves(train, evaluation, folder / "curves.png")
            report.time_split(self.run.read_metrics("train"), folder / "time.png")
            report.confusion(self.scores["confusion"], names, folder / "confusion.png")
        except OSError as error:  # a full disk or a deleted directory stops no training
            warn(f"{folder}: pictures cannot be written there ({error})")
        self.draw_at = monotonic() + PICTURES_S


def _step_seed(seed: int, step: int, rank: int) -> int:
    """One 63-bit seed per (run, step, rank)."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
