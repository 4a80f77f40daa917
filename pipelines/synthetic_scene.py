"""Who gestures how, where and how fast: the random draws and the motion of one sample clip.
Metres and numbers only: `synthetic_drawing` makes pixels of them, `synthetic` files.

The eight gestures form four pairs of opposites. A clip of the first of a pair is drawn at random;
a clip of the second is drawn in the same way and played backwards. So both show the same frames,
equally often, and a frame without its place in time cannot tell them apart.

Body coordinates are metres, x to the right of the image, y down, z away from the camera, origin
between the shoulders. Directions in the gestures' names are those that the viewer sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Colour = tuple[float, float, float]
"""Blue, green, red, 0 to 255."""

GESTURES = (
    "swipe right",
    "swipe left",
    "raise",
    "lower",
    "push",
    "pull",
    "circle clockwise",
    "circle counter-clockwise",
)
"""The class names; 2k and 2k + 1 are opposites."""

IN_THE_DARK, OUT_OF_REACH = GESTURES.index("push") // 2, GESTURES.index("circle clockwise") // 2
"""Pairs of the complementary data set that RGB, and that depth, cannot see."""

ASPECT = 0.75
"""Height of the frame in units of its width."""

BRIGHTNESS = np.array([0.114, 0.587, 0.299])
"""Weights of blue, green and red in perceived brightness (ITU-R BT.601)."""

CAMERA_YAW = (0.0, -18.0, 18.0)
"""Degrees from which cameras 1, 2 and 3 of a setup see the performer."""

UPPER_ARM, FOREARM = 0.29, 0.30  # metres, of a performer of size 1; the forearm ends in the palm
SHOULDER = 0.18

# Per pair: swipe, raise, push, circle. The lowest and highest draws of the path's centre, with x
# towards the gesturing arm, and of its extent. Centres overlap, so that a frame does not always
# tell even the pair.
CENTRES = (
    ((-0.02, 0.00, -0.45), (0.14, 0.20, -0.32)),
    ((0.06, -0.08, -0.45), (0.26, 0.06, -0.32)),
    ((0.08, 0.02, -0.42), (0.26, 0.20, -0.36)),
    ((0.05, -0.06, -0.45), (0.20, 0.10, -0.35)),
)
EXTENTS = ((0.60, 0.80), (0.56, 0.74), (0.50, 0.60), (0.20, 0.27))


@dataclass(frozen=True)
class Part:
    """One piece of the body: the convex hull of a few balls, in one colour."""

    balls: Array
    """(n, 4): x, y, z and radius in metres."""

    colour: Colour


@dataclass(frozen=True)
class Performer:
    """What stays the same in all clips of one person."""

    size: float
    girth: float
    skin: Colour
    hair: Colour
    long_hair: bool


@dataclass(frozen=True)
class Outfit:
    gloves: Colour
    """Bright: the hands stand out whatever the skin, and before the face too."""

    shirt: Colour
    band: Colour | None
    trousers: Colour
    short_sleeves: bool


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; the unit of length in its frame is the frame's width."""

    focal: float
    distance: float
    """Metres to the point between the performer's shoulders."""

    place: tuple[float, float]
    """Where in the frame that point is, (0, 0) to (1, ASPECT)."""

    yaw: float
    """Radians by which the performer is turned."""


@dataclass(frozen=True)
class Path:
    """The way of the hand, forwards."""

    pair: int
    centre: Array
    """(3,) metres from the point between the shoulders."""

    extent: float
    """Metres: length of the path, radius of the circle."""

    tilt: float
    start: float
    """Radians: where on the circle it begins."""

    bow: float
    """Metres by which a straight path bends."""

    palm: float
    """Size of the hand."""


@dataclass(frozen=True)
class Scene:
    """One clip before any pixel."""

    performer: Performer
    outfit: Outfit
    camera: Camera
    path: Path
    side: int
    """1: the arm at the right of the image gestures, -1: the other."""

    progress: Array
    """(num_frames,) how far along the path the hand is."""

    sway: Array
    """(num_frames, 3) metres by which the body has moved."""


def draw_scene(
    rng: np.random.Generator, label: int, num_frames: int, performer: Performer, camera: Camera
) -> Scene:
    """A clip of gesture `label`. Every draw depends on the pair alone and the order of the frames
    on the label: the opposite label with the same generator is the same clip backwards."""
    side = 1 if rng.uniform() < 0.5 else -1
    path = draw_path(rng, label // 2, side)
    progress, sway = draw_timing(rng, num_frames)
    order = slice(None, None, -1 if label % 2 else 1)
    outfit = draw_outfit(rng)
    return Scene(performer, outfit, camera, path, side, progress[order], sway[order])


def draw_performer(rng: np.random.Generator) -> Performer:
    light, dark = np.array([172.0, 198.0, 236.0]), np.array([60.0, 82.0, 126.0])
    shade = rng.uniform()
    hairs = ((28, 30, 36), (36, 52, 84), (64, 110, 168), (120, 190, 226), (150, 150, 156))
    return Performer(
        size=rng.uniform(0.9, 1.1),
        girth=rng.uniform(0.9, 1.15),
        skin=colour(light + (dark - light) * shade + rng.uniform(-8, 8, 3)),
        hair=colour(hairs[rng.integers(5 if shade < 0.6 else 2)]),
        long_hair=bool(rng.uniform() < 0.4),
    )


def draw_outfit(rng: np.random.Generator) -> Outfit:
    gloves = colour(rng.uniform(215, 255) - rng.uniform(0, 70, 3) * (1, 0.5, 0.5))
    shirt = contrasting_colour(rng, gloves, vivid=0.75)
    return Outfit(
        gloves=gloves,
        shirt=shirt,
        band=contrasting_colour(rng, shirt, vivid=0.75) if rng.uniform() < 0.4 else None,
        trousers=colour(rng.uniform(30, 110) + rng.uniform(-25, 25, 3)),
        short_sleeves=bool(rng.uniform() < 0.35),
    )


def draw_camera(
    setup: np.random.Generator, clip: np.random.Generator, yaw_degrees: float
) -> Camera:
    """The setup fixes distance and framing, and in each clip the performer stands a little
    elsewhere."""
    distance = setup.uniform(1.6, 3.4) + clip.uniform(-0.1, 0.1)
    view = setup.uniform(1.45, 1.6) + 0.9 / distance  # metres across; more where hands loom large
    x, y = clip.uniform((0.42, 0.35), (0.58, 0.41))
    yaw = np.deg2rad(yaw_degrees + clip.uniform(-6, 6))
    return Camera(distance / view, distance, (float(x), float(y)), float(yaw))


def draw_path(rng: np.random.Generator, pair: int, side: int) -> Path:
    lowest, highest = CENTRES[pair]
    return Path(
        pair=pair,
        centre=rng.uniform(lowest, highest) * (side, 1, 1),
        extent=rng.uniform(*EXTENTS[pair]),
        tilt=np.deg2rad(rng.uniform(-15, 15)),
        start=rng.uniform(0, 2 * np.pi),
        bow=rng.uniform(-0.06, 0.06),
        palm=rng.uniform(1.0, 1.2),
    )


def draw_timing(rng: np.random.Generator, num_frames: int) -> tuple[Array, Array]:
    """Forwards: progress (num_frames,) and sway (num_frames, 3).

    The rest before the gesture is distributed as the rest after it, and a sampling phase as its
    opposite: backwards, a clip cuts its gesture no differently.
    """
    time = (np.arange(num_frames) + 0.5 + rng.uniform(-0.5, 0.5)) / num_frames
    duration = rng.uniform(0.6, 0.9)
    begin = rng.uniform() * (1 - duration)
    linear = np.clip((time - begin) / duration, 0, 1)
    ease = rng.uniform(0.2, 1.0)
    progress = (1 - ease) * linear + ease * linear**2 * (3 - 2 * linear)
    turns, phases = rng.uniform(0.4, 1.4, 3), rng.uniform(0, 2 * np.pi, 3)
    amplitude = rng.uniform(0.2, 1, 3) * (0.03, 0.008, 0.02)
    return progress, amplitude * np.sin(2 * np.pi * turns * time[:, None] + phases)


def contrasting_colour(rng: np.random.Generator, other: Colour, vivid: float) -> Colour:
    """Of two random colours the one whose brightness is farthest from that of `other`; `vivid` is
    the highest saturation."""
    hue = np.array([0, 2, 4]) / 3 * np.pi + rng.uniform(0, 2 * np.pi, (2, 1))
    saturation, value = rng.uniform(0.1 * vivid, vivid, (2, 1)), rng.uniform(50, 230, (2, 1))
    colours = value * (1 - saturation * (0.5 + 0.5 * np.cos(hue)))
    return colour(colours[np.argmax(np.abs((colours - other) @ BRIGHTNESS))])


def hand_at(path: Path, progress: float) -> tuple[Array, float]:
    """Where the palm is, (3,) metres in body coordinates, and its size."""
    along = path.extent * (progress - 0.5)
    bow = path.bow * np.cos(np.pi * (progress - 0.5))
    cos, sin = np.cos(path.tilt), np.sin(path.tilt)
    angle = path.start + 2 * np.pi * progress  # y points down: a growing angle turns clockwise
    step = (
        (along * cos, along * sin + bow, 0.0),
        (along * sin + bow, -along * cos, 0.0),
        (bow, along * sin, -along * cos),
        (path.extent * np.cos(angle), path.extent * np.sin(angle), 0.0),
    )[path.pair]
    opening = 0.7 + 0.6 * progress if path.pair == 2 else 1.0  # a pushing hand opens
    return np.add(path.centre, step), path.palm * opening


def body_parts(scene: Scene, frame: int) -> list[Part]:
    """The performer at one frame in the camera's coordinates, the farthest part first."""
    who, outfit, side = scene.performer, scene.outfit, scene.side
    hand, palm = hand_at(scene.path, float(scene.progress[frame]))
    idle = np.array([-side * 0.29 * who.girth, 0.56, -0.08])
    parts = [
        *_trunk(who, outfit),
        *_head(who),
        *_arm(who, outfit, side, hand, palm),
        *_arm(who, outfit, -side, idle, 0.9),
    ]
    balls = np.concatenate([part.balls for part in parts])
    ends = np.cumsum([len(part.balls) for part in parts])[:-1]
    placed = np.split(_before_camera(balls, scene, frame), ends)
    seen = [Part(balls, part.colour) for balls, part in zip(placed, parts, strict=True)]
    return sorted(seen, key=lambda part: -part.balls[:, 2].mean())


def _before_camera(balls: Array, scene: Scene, frame: int) -> Array:
    """(n, 4) in body coordinates -> (n, 4) metres from the camera, which looks along z."""
    camera, size = scene.camera, scene.performer.size
    cos, sin = np.cos(camera.yaw), np.sin(camera.yaw)
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    across, down = np.subtract(camera.place, (0.5, ASPECT / 2)) * camera.distance / camera.focal
    centres = size * balls[:, :3] @ turn + scene.sway[frame] + (across, down, camera.distance)
    return np.column_stack([centres, size * balls[:, 3]])


def _trunk(who: Performer, outfit: Outfit) -> list[Part]:
    wide = SHOULDER * who.girth
    chest = [(side * wide, 0.05, 0.02, 0.075) for side in (-1, 1)]
    waist = [(side * 0.6 * wide, 0.5, 0.02, 0.10 * who.girth) for side in (-1, 1)]
    parts = [_part([*chest, *waist], outfit.shirt)]
    for side in (-1, 1):
        hip, knee = (side * 0.45 * wide, 0.58, 0.10), (side * 0.6 * wide, 1.05, 0.12)
        parts.append(_part([(*hip, 0.10 * who.girth), (*knee, 0.08)], outfit.trousers))
    if outfit.band is not None:
        band = [(side * 0.85 * wide, 0.24, -0.07, 0.045) for side in (-1, 1)]
        parts.append(_part(band, outfit.band))
    return parts


def _head(who: Performer) -> list[Part]:
    shadow = colour(0.8 * np.array(who.skin))
    parts = [
        _part([(0, 0.0, 0.0, 0.06), (0, -0.12, 0.0, 0.055)], shadow),
        _part([(0, -0.27, -0.04, 0.095), (0, -0.18, -0.05, 0.075)], who.skin),
        _part([(-0.03, -0.32, -0.01, 0.09), (0.03, -0.32, -0.01, 0.09)], who.hair),
    ]
    if who.long_hair:
        crown = [(side * 0.05, -0.28, 0.05, 0.08) for side in (-1, 1)]
        tips = [(side * 0.07, -0.08, 0.06, 0.045) for side in (-1, 1)]
        parts.append(_part([*crown, *tips], who.hair))
    eyes = [_part([(side * 0.035, -0.24, -0.13, 0.014)], (40.0, 36.0, 34.0)) for side in (-1, 1)]
    return [*parts, *eyes]


def _arm(who: Performer, outfit: Outfit, side: int, hand: Array, palm: float) -> list[Part]:
    """Upper arm, forearm and hand from the shoulder at `side` to `hand` (3,)."""
    shoulder = np.array([side * SHOULDER * who.girth, 0.04, 0.0])
    elbow = _elbow(shoulder, hand, side)
    wrist = hand + 0.06 * (elbow - hand) / np.linalg.norm(elbow - hand)
    tips = hand + palm * np.array([0.0, 0.05 if hand[1] > 0.4 else -0.075, -0.02])
    thumb = hand + palm * np.array([-0.055 * side, -0.02, 0.0])
    sleeve, skin = colour(0.93 * np.array(outfit.shirt)), colour(0.92 * np.array(who.skin))
    return [
        _part([(*shoulder, 0.068 * who.girth), (*elbow, 0.055)], sleeve),
        _part([(*elbow, 0.052), (*wrist, 0.042)], skin if outfit.short_sleeves else sleeve),
        _part([(*hand, 0.062 * palm), (*tips, 0.048 * palm)], outfit.gloves),
        _part([(*hand, 0.035 * palm), (*thumb, 0.022 * palm)], outfit.gloves),
    ]


def _elbow(shoulder: Array, hand: Array, side: int) -> Array:
    """Where the two bones from shoulder to hand meet, bent outwards and down (3,). They stretch
    where the hand is out of reach."""
    way = hand - shoulder
    length: Any = np.linalg.norm(way)  # a number, which NumPy's stubs do not always say
    stretch = max(1.0, length / (0.98 * (UPPER_ARM + FOREARM)))
    upper, fore = UPPER_ARM * stretch, FOREARM * stretch
    along = (upper**2 - fore**2 + length**2) / (2 * length)
    out = np.array([side * 0.7, 0.8, 0.35])
    out -= way * (out @ way) / length**2
    bend = np.sqrt(max(upper**2 - along**2, 0.0)) / np.linalg.norm(out)
    return shoulder + way * along / length + out * bend


def _part(balls: Sequence[tuple], colour: Colour) -> Part:
    return Part(np.array(balls, dtype=np.float64), colour)


def colour(values: Sequence[float] | Array) -> Colour:
    blue, green, red = (min(max(float(value), 0.0), 255.0) for value in values)
    return blue, green, red
