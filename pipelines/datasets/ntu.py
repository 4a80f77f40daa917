"""NTU RGB+D, 60 and 120 classes, as downloaded: RGB videos and masked depth maps. Skeletons and
infrared are not looked at."""

import os
import re
from collections.abc import Iterator

from pipelines.datasets.download import (
    Download,
    Images,
    Line,
    SourceClip,
    Stream,
    Video,
    Wishes,
    folders_below,
    lines_of,
    without_repeats,
)

RGB_FOLDER, DEPTH_FOLDER = "nturgb+d_rgb", "nturgb+d_depth_masked"
NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})")

TRAIN_SUBJECTS_60 = frozenset(
    (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38)
)
"""Shahroudy et al., CVPR 2016, section 3.2."""

TRAIN_SUBJECTS_120 = TRAIN_SUBJECTS_60 | {
    45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86,
    89, 91, 92, 93, 94, 95, 97, 98, 100, 103,
}  # fmt: skip
"""Liu et al., TPAMI 2019: 53 of 106 subjects."""

TRAIN_CAMERAS = frozenset((2, 3))
SETUPS_60, CLASSES_60 = 17, 60
"""The 60-class set within the 120-class one: setups and classes up to these."""

ACTIONS = (
    "drink water", "eat meal/snack", "brushing teeth", "brushing hair", "drop", "pickup", "throw",
    "sitting down", "standing up (from sitting position)", "clapping", "reading", "writing",
    "tear up paper", "wear jacket", "take off jacket", "wear a shoe", "take off a shoe",
    "wear on glasses", "take off glasses", "put on a hat/cap", "take off a hat/cap", "cheer up",
    "hand waving", "kicking something", "reach into pocket", "hopping (one foot jumping)",
    "jump up", "make a phone call/answer phone", "playing with phone/tablet",
    "typing on a keyboard", "pointing to something with finger", "taking a selfie",
    "check time (from watch)", "rub two hands together", "nod head/bow", "shake head", "wipe face",
    "salute", "put the palms together", "cross hands in front (say stop)", "sneeze/cough",
    "staggering", "falling", "touch head (headache)", "touch chest (stomachache/heart pain)",
    "touch back (backache)", "touch neck (neckache)", "nausea or vomiting condition",
    "use a fan (with hand or paper)/feeling warm", "punching/slapping other person",
    "kicking other person", "pushing other person", "pat on back of other person",
    "point finger at the other person", "hugging other person", "giving something to other person",
    "touch other person's pocket", "handshaking", "walking towards each other",
    "walking apart from each other", "put on headphone", "take off headphone",
    "shoot at the basket", "bounce ball", "tennis bat swing", "juggling table tennis balls",
    "hush (quiet)", "flick hair", "thumb up", "thumb down", "make ok sign", "make victory sign",
    "staple book", "counting money", "cutting nails", "cutting paper (using scissors)",
    "snapping fingers", "open bottle", "sniff (smell)", "squat down", "toss a coin", "fold paper",
    "ball up paper", "play magic cube", "apply cream on face", "apply cream on hand back",
    "put on bag", "take off bag", "put something into a bag", "take something out of a bag",
    "open a box", "move heavy objects", "shake fist", "throw up cap/hat", "hands up (both hands)",
    "cross arms", "arm circles", "arm swings", "running on the spot", "butt kicks (kick backward)",
    "cross toe touch", "side kick", "yawn", "stretch oneself", "blow nose",
    "hit other person with something", "wield knife towards other person",
    "knock over other person (hit with body)", "grab other person's stuff",
    "shoot at other person with a gun", "step on foot", "high-five", "cheers and drink",
    "carry something with other person", "take a photo of other person", "follow other person",
    "whisper in other person's ear", "exchange things with other person",
    "support somebody with hand", "finger-guessing game (playing rock-paper-scissors)",
)  # fmt: skip
"""A001 to A120, as the authors' page names them (but for its `quite` of A067)."""


def find_ntu60(source: str, wishes: Wishes) -> Download:
    return _find(source, wishes, extended=False)


def find_ntu120(source: str, wishes: Wishes) -> Download:
    return _find(source, wishes, extended=True)


def lists_of(name: str, extended: bool) -> tuple[str, str]:
    """The two split lists that hold the sample: of the cross-subject and of the second protocol."""
    setup, camera, subject, _, _ = numbers(name)
    if extended:
        second, by_second = "@CSet", setup % 2 == 0
    else:
        second, by_second = "@CV", camera in TRAIN_CAMERAS
    by_subject = subject in (TRAIN_SUBJECTS_120 if extended else TRAIN_SUBJECTS_60)
    return _list("@CS", by_subject), _list(second, by_second)


def numbers(name: str) -> tuple[int, int, int, int, int]:
    """Setup, camera, subject, replication and class (from 1) of a sample."""
    match = NAME.match(name)
    assert match, name
    setup, camera, subject, replication, action = map(int, match.groups())
    return setup, camera, subject, replication, action


def _list(protocol: str, is_train: bool) -> str:
    return f"dataset_splits/{protocol}/{'train' if is_train else 'valid'}.txt"


def _find(source: str, wishes: Wishes, extended: bool) -> Download:
    rgb, depth = dict(_samples(source, RGB_FOLDER)), dict(_samples(source, DEPTH_FOLDER))
    needed = {RGB_FOLDER: rgb} if "rgb" in wishes.modalities else {}
    if "depth" in wishes.modalities or wishes.roi:
        needed[DEPTH_FOLDER] = depth
    for folder, samples in needed.items():
        if not samples:
            raise ValueError(_nothing(source, folder, wishes))
    excluded = _excluded(wishes.exclude) if wishes.exclude else set()
    clips, rejected = [], {}
    lists: dict[str, list[Line]] = {}
    for sample in sorted(rgb if "rgb" in wishes.modalities else depth):
        setup, _, _, _, action = numbers(sample)
        in_set = extended or (setup <= SETUPS_60 and action <= CLASSES_60)
        if sample in excluded or not in_set:
            continue
        name = f"{sample}_rgb"
        if sample not in depth and DEPTH_FOLDER in needed:
            rejected[name] = f"no {DEPTH_FOLDER}/{sample}"
            continue
        clips.append(SourceClip(name, tuple(_streams(sample, rgb, depth, wishes))))
        for path in lists_of(sample, extended):
            line = Line(name, action - 1, name, wishes.modalities[0])
            lists.setdefault(path, []).append(line)
    classes = ACTIONS if extended else ACTIONS[:CLASSES_60]
    return Download(
        "ntu", without_repeats(clips), {k: tuple(v) for k, v in lists.items()}, classes, rejected
    )


def _streams(
    sample: str, rgb: dict[str, str], depth: dict[str, str], wishes: Wishes
) -> Iterator[Stream]:
    if "rgb" in wishes.modalities:
        masks = Images(depth[sample]) if wishes.roi else None
        yield Stream("rgb", Video(rgb[sample]), masks)
    if "depth" in wishes.modalities:
        yield Stream("depth", Images(depth[sample]))


def _samples(source: str, folder: str) -> Iterator[tuple[str, str]]:
    """Name and path of every sample in the folders called so, at most two levels down."""
    for parent in folders_below(source, 1):
        for holder in sorted(os.listdir(parent)):
            if holder.startswith(folder) and os.path.isdir(os.path.join(parent, holder)):
                for entry in os.scandir(os.path.join(parent, holder)):
                    stem = entry.name.removesuffix("_rgb.avi")
                    if NAME.fullmatch(stem):
                        yield stem, entry.path


def _excluded(path: str) -> set[str]:
    """Samples of a text file, one a line, as in the official lists of missing skeletons."""
    samples = {match.group() for _, line in lines_of(path) if (match := NAME.search(line))}
    if not samples:
        raise ValueError(f"{path}: no sample such as S001C001P001R001A001 in it; see --exclude")
    return samples


def _nothing(source: str, folder: str, wishes: Wishes) -> str:
    sample = "S001C001P001R001A001"
    if folder == RGB_FOLDER:
        return (
            f"{source}: no {RGB_FOLDER}/{sample}_rgb.avi; give as --source the folder that holds "
            f"{RGB_FOLDER}, or --modality depth"
        )
    without = "--no-roi --modality rgb" if wishes.modality == "rgbd" else "--no-roi"
    return (
        f"{source}: no {DEPTH_FOLDER}/{sample}/MDepth-00000001.png; give as --source the folder "
        f"that holds {DEPTH_FOLDER}, or do without depth: {without}"
    )
