"""What the data section of a run's config says. Values and their checks: no files are touched."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.typed import unknown_choice

SOURCES = ("auto", "frames", "videos", "pack")
LAYOUTS = ("generic", "ntu", "nvgesture", "isogd", "thu_read", "jester")
MODALITIES = ("rgb", "depth", "rgbd")
DEPTH_ENCODINGS = ("color", "wrapped_jet", "metric")


@dataclass(frozen=True)
class FrameFiles:
    """Where one modality's frames of a clip are, below `data.root`."""

    pattern: str
    """Such as `rgb/{name}/{frame:06d}.jpg`: `{name}` is the clip's name in the list. Videos:
    `rgb/{name}.avi`, or `rgb/{name}.*` for whichever container is there."""

    first: int = 0
    """Number of the first frame's file."""

    rename: tuple[tuple[str, str], ...] = ()
    """Regular expressions and replacements applied in order to the name of the list."""


@dataclass(frozen=True)
class DataConfig:
    """Clips on disk and how a network sees them."""

    root: str
    """Folder of the data set; relative paths start at the working directory."""

    train_list: str
    """Split list `NAME num_frames label` per line; relative paths start at `root`."""

    eval_list: str
    """As `train_list`: every clip of it is evaluated exactly once."""

    num_classes: int

    modality: str = "rgb"
    """`rgb`, `depth`, or `rgbd`: both of each clip, the same frames of them, RGB first."""

    paired_view: bool = True
    """With `rgbd`, one draw of rotation, crop and flip for both: what is at the same share of the
    two frames' width and height (with boxes, of RGB's frame and of depth's box) ends at the same
    pixel. False: the published draws, each its own. Evaluation views are fixed either way."""

    source: str = "auto"
    """What clips are read from: `frames` (a folder of images each), `videos` (a file each; frames
    where a modality has no videos), `pack` (tar shards in `root`, pipelines/pack.py), or `auto`:
    what is there, and of several the one that loads fastest on this machine: measured once."""

    layout: str = "generic"
    """One of generic, ntu, nvgesture, isogd, thu_read, jester: where frames are and how they are
    numbered (pipelines/index.py)."""

    rgb: FrameFiles | None = None
    """Overrides the layout's RGB frames."""

    depth: FrameFiles | None = None
    """Overrides the layout's depth frames."""

    depth_encoding: str = "color"
    """`color`: three-channel images as they are; `wrapped_jet`: 16-bit PNG by the published NTU
    recipe; `metric`: 16-bit PNG in millimetres clipped to `depth_range_mm`, in three equal
    channels."""

    depth_range_mm: tuple[int, int] = (500, 4500)
    """Nearest and farthest distance of the metric encoding."""

    min_frames: int = 1
    """Clips with fewer frames are left out and counted (the published lists use 17)."""

    frame_slack: int = 0
    """How many frames a folder may have fewer than listed; the clip then has
    min(rgb, depth, listed) frames."""

    on_error: str = "stop"
    """What a damaged or missing clip does: `stop` the run with its name, or `quarantine`: every
    clip is decoded once before the run (remembered), and the bad ones are left out on all ranks
    alike and named in the run's `quarantine.txt`."""

    max_bad: float = 0.01
    """Share of a list that may be quarantined: more stops the run."""

    num_frames: int = 64
    """T: frames per clip."""

    branch_frames: tuple[int, ...] = (16, 32, 48)
    """How many of the T frames each temporal branch sees; [] for a network without branches."""

    resize: tuple[int, int] = (256, 256)
    """Width and height the whole frame is resized to."""

    crop: int = 224
    """Side of the square cut from the resized frame."""

    size: int = 224
    """Side of the square the network sees: the crop is resized to it where they differ."""

    crop_offset: tuple[int, int] | None = None
    """Smallest and largest (inclusive) offset of the training crop, both axes; by default the
    whole range 0 .. resize - crop - 1 of the published loader."""

    eval_crop: tuple[int, int] | None = None
    """Left and top of the evaluation crop; centred by default."""

    flip: float = 0.0
    """Probability of a horizontal mirror."""

    rotate: float = 0.5
    """Probability of a rotation."""

    angle: tuple[int, int] = (-10, 10)
    """Rotation in whole degrees, lower end included, upper end not."""

    motion_window: int = 10
    """Frames per rank-pooling window of the motion maps; 0: the network gets no maps."""

    workers: int = 0
    """Decoding threads per rank; 0 takes the machine's cores divided by the ranks on it."""

    prefetch: int = 2
    """Batches prepared ahead."""

    cache: str = "none"
    """Decoded frames of whole clips kept in memory, as many as fit `cache_gb`, neither read nor
    decoded again: `host`, `gpu` (of each rank's own), or `none`. Batches are the same."""

    cache_gb: float = 8.0
    """Budget of `cache` per rank, in 10^9 bytes."""

    cache_dir: str = ""
    """Where scans and depth boxes are kept; by default `.rgbd_cache` in `root`, or in the user's
    cache folder where `root` cannot be written."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """What a clip consists of, in the order of a batch: `rgb`, `depth` or both."""
        return ("rgb", "depth") if self.modality == "rgbd" else (self.modality,)

    def in_mm(self, modality: str) -> bool:
        """Whether frames are 16-bit depth still to be coloured, rather than images as they are."""
        return modality == "depth" and self.depth_encoding != "color"

    def boxed(self, modality: str) -> bool:
        """Whether a network sees only each frame's region of interest (pipelines/depth.py)."""
        return modality == "depth" and self.depth_encoding == "wrapped_jet"

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, what is wrong with it) of every impossible value."""
        yield from self._wrong_choices()
        for key, least in (
            ("num_classes", 2), ("num_frames", 1), ("min_frames", 1), ("frame_slack", 0),
            ("crop", 1), ("size", 1), ("workers", 0), ("prefetch", 1),
        ):  # fmt: skip
            if getattr(self, key) < least:
                yield key, f"is {getattr(self, key)}; it must be at least {least}"
        if min(self.branch_frames, default=1) < 1:
            yield "branch_frames", "needs one positive number of frames per temporal branch"
        if self.cache != "none" and self.cache_gb <= 0:
            yield "cache_gb", f"is {self.cache_gb}; it must be positive"
        for key, what in (
            ("flip", "probability"), ("rotate", "probability"), ("max_bad", "share"),
        ):  # fmt: skip
            if not 0 <= getattr(self, key) <= 1:
                yield key, f"is {getattr(self, key)}; a {what} is between 0 and 1"
        if self.rotate and self.angle[0] >= self.angle[1]:
            yield "angle", f"is {list(self.angle)}; the first must be below the second"
        if self.motion_window and not 2 <= self.motion_window <= self.num_frames:
            yield (
                "motion_window",
                (
                    f"is {self.motion_window}; it must be 0 (no motion maps) or between 2 and "
                    f"num_frames = {self.num_frames}"
                ),
            )
        yield from self._wrong_crops()

    def _wrong_choices(self) -> Iterator[tuple[str, str]]:
        for key, choices in (
            ("source", SOURCES), ("layout", LAYOUTS), ("modality", MODALITIES),
            ("depth_encoding", DEPTH_ENCODINGS), ("on_error", ("stop", "quarantine")),
            ("cache", ("none", "host", "gpu")),
        ):  # fmt: skip
            value = getattr(self, key)
            if value not in choices:
                yield key, unknown_choice(value, choices)
        near_mm, far_mm = self.depth_range_mm
        if not 0 <= near_mm < far_mm <= 65535:
            yield "depth_range_mm", f"is {[near_mm, far_mm]}; expected 0 <= near < far <= 65535"

    def _wrong_crops(self) -> Iterator[tuple[str, str]]:
        room = min(self.resize) - self.crop
        if room < 0:
            yield (
                "crop",
                (
                    f"is {self.crop}, larger than resize = {list(self.resize)}; "
                    f"it can be at most {min(self.resize)}"
                ),
            )
            return
        for key in ("crop_offset", "eval_crop"):
            offsets = getattr(self, key)
            limits = (room, room) if key == "crop_offset" else [s - self.crop for s in self.resize]
            if offsets and not all(0 <= o <= most for o, most in zip(offsets, limits, strict=True)):
                yield (
                    key,
                    (
                        f"is {list(offsets)}, outside the resized frame: with resize = "
                        f"{list(self.resize)} and crop = {self.crop} at most {list(limits)}"
                    ),
                )
        if self.crop_offset and self.crop_offset[0] > self.crop_offset[1]:
            yield "crop_offset", f"is {list(self.crop_offset)}; the first must not be above"
