"""The clips the loader benchmark reads: rendered, seeded, of the sizes data sets are published in.
A second run finds them and writes nothing."""

from pathlib import Path

import av

from benchmarks.loader_cases import Setting
from pipelines import pack, reference
from pipelines.synthetic import RGB_FOLDER, write_dataset

FRAMES, VIDEOS, PACK = "frames", "videos", "pack"

VIDEO_PATTERN = f"../{VIDEOS}/{{name}}.mp4"
"""Of data.rgb, where data.root is FRAMES."""


def write_frames(data: Path, setting: Setting) -> None:
    """data/frames: JPEG and 16-bit PNG folders in the layout of NTU RGB+D.

    Raises ValueError where the folder holds clips of another setting.
    """
    write_dataset(
        data / FRAMES,
        workers=setting.workers,
        train_clips=setting.clips,
        eval_clips=1,
        frames=setting.clip_lengths,
        size=setting.rgb_size,
        depth_size=setting.depth_size,
        seed=setting.seed,
    )


def write_videos(data: Path, setting: Setting) -> None:
    """data/videos/NAME.mp4: the same RGB frames as H.264, one key frame or two per clip as
    cameras write them."""
    write_frames(data, setting)
    (data / VIDEOS).mkdir(exist_ok=True)
    for folder in sorted((data / FRAMES / RGB_FOLDER).iterdir()):
        video = video_path(data, folder.name)
        if not video.exists():
            part = video.with_name(f"part-{video.name}")
            _write_video(sorted(folder.iterdir()), part, setting)
            part.replace(video)


def write_pack(data: Path, setting: Setting) -> None:
    """data/pack: the same clips, both modalities, as tar shards."""
    write_frames(data, setting)
    config = setting.data_config(str(data / FRAMES), "rgbd", "view", {"layout": "ntu"})
    pack.write(config, data / PACK, setting.workers)


def video_path(data: Path, clip: str) -> Path:
    """Where `write_videos` puts the clip."""
    return data / VIDEOS / f"{clip}.mp4"


def _write_video(images: list[Path], video: Path, setting: Setting) -> None:
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "18"})
        stream.width, stream.height = setting.rgb_size
        stream.pix_fmt = "yuv420p"
        for path in images:
            image = reference.read_color(str(path))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
