"""The config's section `train`: how long, how large, how exact, and where the results go."""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.tracing import window
from pipelines.typed import unknown_choice


@dataclass(frozen=True)
class TrainConfig:
    """How long, how large, how exact, and where the results go."""

    run_dir: str
    """Everything a run writes is below it; the same command again resumes from it."""

    epochs: int = 100
    global_batch: int = 48
    """Clips per optimizer step over all ranks, of which each takes its share."""

    micro_batch: int = 0
    """Most clips that a rank takes at a time; 0: its share at once. A larger share is taken in
    parts as equal as can be, and their gradients added up; batch norm sees one part of each rank
    at a time, and not the global batch."""

    eval_batch: int = 8
    """Clips per evaluation batch of one rank; changes no result."""

    init_from: str = ""
    """A checkpoint, ours or published, whose weights a new run starts from; only a classifier of
    another size is left out. A resumed run does not read it again."""

    init_any_frames: bool = False
    """Whether `init_from` may be of another `data.num_frames`. What depends on that (recoupling,
    positions, temporal kernels) is then left out too, as in the released UMDR."""

    init_rgb: str = ""
    """As `init_from`, of an RGB network for that half of the fusion network; CVPR'22's leaves its
    heads out."""

    init_depth: str = ""
    """As `init_rgb`, for the depth half."""

    seed: int = 0
    device: str = "auto"
    """`cuda`, `cpu`, or `auto`: the GPU where there is one."""

    precision: str = "auto"
    """`bf16`, `fp16` (with a loss scaler), `fp32`, `fp64`, or `auto`: bf16 on GPUs that have it,
    fp16 on those that do not, fp32 on the CPU."""

    compile: str = "auto"
    """torch.compile of the network: `on`, `off`, or `auto`: on GPUs, off on the CPU
    (benchmarks/README.md). Where it cannot be done, the run says why and goes on without."""

    cuda_graph: str = "off"
    """`on`: forward and backward pass of the network as CUDA graphs (engine/cuda_graph.py). Where
    it cannot be done, the run says why and goes on without."""

    deterministic: bool = False
    """On GPUs: the same bits from every run of the same command, also from one that was killed and
    resumed (engine/determinism.py), at some cost in speed; it stops at an operation that torch
    cannot repeat, by its name. On the CPU runs are so in any case."""

    gc: int = 0
    """Steps from one search of Python's for unreachable objects to the next, all between steps;
    0: whenever Python likes, within a step of one rank while the others wait."""

    ema: float = 0.0
    """Decay per step of a running average of the weights, such as 0.999; 0: none. The average is
    what is evaluated, and what predict, export and evaluate take from a checkpoint."""

    teacher: str = ""
    """A checkpoint, ours or published, of the same network trained on the other modality: what it
    sees in that modality's clips are labels too (engine/teacher.py; loss.pseudo_weight). Training
    then reads both modalities. A resumed run does not read it again."""

    teacher_decay: float = 0.99996
    """What the teacher keeps of its weights per step; the rest it takes from the network."""

    temperature: tuple[float, float] = (0.04, 0.07)
    """What the logits are divided by: first and last value of the published linear schedule."""

    temperature_epochs: int = 30
    save_every: int = 0
    """Steps between saves of `last.pt`; it is saved at each epoch's end in any case."""

    keep: int = 3
    """Checkpoints of the latest saves that are kept, the last one included: where it is damaged,
    the run goes on from the one before."""

    log_every: int = 10
    """Steps between log lines: the loop waits for the device once per line."""

    timeout_s: float = 600.0
    """Seconds after which a run without progress ends with the name of the rank that hangs
    (engine/watchdog.py); 0: never."""

    profile: str = ""
    """`START:STOP`: a profiler's trace of the steps START to STOP - 1, numbered as in log lines."""

    flop_use: bool = True
    """Log the share of the device's rate of matrix products that training uses; measured at the
    start, in a second."""

    on_nan: str = "stop"
    """Where a step's loss or gradients are not finite: `stop` the run with the names of its clips,
    or `skip` its update, and count it; twenty in a row stop the run."""

    max_loss: float = 0.0
    """A step with a larger loss stops the run with the names of its clips; 0: none does."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, what is wrong with it) of every impossible value."""
        for key in (
            "epochs", "global_batch", "eval_batch", "temperature_epochs", "keep", "log_every"
        ):  # fmt: skip
            if getattr(self, key) < 1:
                yield key, f"is {getattr(self, key)}; it must be at least 1"
        if self.save_every < 0:
            yield "save_every", "is negative; 0 saves at each epoch's end only"
        if self.timeout_s < 0:
            yield "timeout_s", "is negative; 0 turns it off"
        if self.max_loss < 0:
            yield "max_loss", "is negative; 0 lets every loss pass"
        try:
            window(self.profile)
        except ValueError as error:
            yield "profile", str(error)
        for key in ("micro_batch", "gc"):
            if getattr(self, key) < 0:
                yield key, f"is {getattr(self, key)}; it must be 0 (off) or more"
        if not 0 <= self.ema < 1:
            yield "ema", f"is {self.ema}; it must be 0 (off) or more and below 1"
        if not 0 <= self.teacher_decay <= 1:
            yield "teacher_decay", f"is {self.teacher_decay}; a share is between 0 and 1"
        if self.seed < 0:
            yield "seed", "is negative; it must be 0 or more"
        if min(self.temperature) <= 0:
            yield "temperature", "holds a value that is not positive; [1, 1] turns it off"
        for key, choices in (
            ("device", ("auto", "cpu", "cuda")),
            ("precision", ("auto", "bf16", "fp16", "fp32", "fp64")),
            ("compile", ("auto", "on", "off")),
            ("on_nan", ("stop", "skip")),
            ("cuda_graph", ("on", "off")),
        ):
            if getattr(self, key) not in choices:
                yield key, unknown_choice(getattr(self, key), choices)
        if self.init_from and (self.init_rgb or self.init_depth):
            yield "init_from", "fills the whole network, init_rgb and init_depth its halves: choose"
