"""What the data section of a run's config says. Values and their checks: no files are touched."""

from dataclasses import dataclass

LAYOUTS = ("generic", "ntu", "nvgesture", "isogd", "thu_read", "jester")
MODALITIES = ("rgb", "depth")
DEPTH_ENCODINGS = ("color", "wrapped_jet", "metric")


@dataclass(frozen=True)
class FrameFiles:
    """Where one modality's frames of a clip are, below `data.root`."""

    pattern: str
    """Such as `rgb/{name}/{frame:06d}.jpg`: `{name}` is the clip's name in the list."""

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
    """`rgb` or `depth`."""

    layout: str = "generic"
    """One of generic, ntu, nvgesture, isogd, thu_read, jester: where frames are and how they are
    numbered (pipelines/index.py)."""

    rgb: FrameFiles | None = None
    """Overrides the layout's RGB frames."""

    depth: FrameFiles | None = None
    """Overrides the layout's depth frames."""

    depth_encoding: str = "color"
    """`color`: three-channel images as they are; `wrapped_jet`: 16-bit PNG by the published NTU
    recipe; `metric`: 16-bit PNG in millimetres clipped to `depth_range_mm`, three equal channels."""

    depth_range_mm: tuple[int, int] = (500, 4500)
    """Nearest and farthest distance of the metric encoding."""

    min_frames: int = 1
    """Clips with fewer frames are left out and counted (the published lists use 17)."""

    frame_slack: int = 0
    """How many frames a folder may have fewer than listed; the clip then has
    min(rgb, depth, listed) frames."""

    num_frames: int = 64
    """T: frames per clip."""

    branch_frames: tuple[int, ...] = (16, 32, 48)
    """How many of the T frames each temporal branch sees."""

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

    cache_dir: str = ""
    """Where scans and depth boxes are kept; by default `.rgbd_cache` in `root`, or in the user's
    cache folder where `root` cannot be written."""
