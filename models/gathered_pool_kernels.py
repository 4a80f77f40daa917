"""Triton kernels of models/gathered_pool.py. Imported only to be run: CPU builds have no Triton.

Frames lie in memory as (clip, frame, height, width, channel). A program takes a block of the
numbers of one frame through a run of frames, and reads each frame once instead of three times.
A place in a window is dt * 9 + dh * 3 + dw, each 0, 1 or 2: torch's order of scanning.
"""

import triton
import triton.language as tl


@triton.jit
def largest(
    x, pooled, places, frames, height, width, channels, num_blocks, num_runs,
    BLOCK: tl.constexpr, RUN: tl.constexpr, COMPUTE: tl.constexpr, ZEROS: tl.constexpr,
):  # fmt: skip
    """x -> the largest of each window, and its place in it (uint8).

    ZEROS: the border is zeros that may win; otherwise it never does.
    """
    numbers, clip, first, last = _share(num_blocks, num_runs, frames, BLOCK, RUN)
    size = height * width * channels
    clip_start = clip.to(tl.int64) * frames * size
    x += clip_start
    before, before_place = _largest_of_frame(
        x, first - 1, numbers, frames, height, width, channels, COMPUTE, ZEROS
    )
    now, now_place = _largest_of_frame(
        x, first, numbers, frames, height, width, channels, COMPUTE, ZEROS
    )
    for t in range(first, last):
        after, after_place = _largest_of_frame(
            x, t + 1, numbers, frames, height, width, channels, COMPUTE, ZEROS
        )
        value, place = _larger(before, before_place, now, now_place + 9)
        value, place = _larger(value, place, after, after_place + 18)
        # Not t.to(): in Triton's interpreter t is a plain number.
        out = clip_start + tl.cast(t, tl.int64) * size + numbers
        tl.store(pooled + out, value, numbers < size)
        tl.store(places + out, place.to(tl.uint8), numbers < size)
        before, before_place, now, now_place = now, now_place, after, after_place


@triton.jit
def gathered(
    gradient, places, by_x, frames, height, width, channels, num_blocks, num_runs,
    BLOCK: tl.constexpr, RUN: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Gradient by the pooled numbers, and their places -> by x: of each number the sum over the 27
    windows that it is in, in a fixed order."""
    numbers, clip, first, last = _share(num_blocks, num_runs, frames, BLOCK, RUN)
    size = height * width * channels
    clip_start = clip.to(tl.int64) * frames * size
    gradient += clip_start
    places += clip_start
    _, _, from_before = _sent_by_frame(
        gradient, places, first - 1, numbers, frames, height, width, channels, COMPUTE
    )
    _, own, from_now = _sent_by_frame(
        gradient, places, first, numbers, frames, height, width, channels, COMPUTE
    )
    for t in range(first, last):
        from_after, next_own, from_next = _sent_by_frame(
            gradient, places, t + 1, numbers, frames, height, width, channels, COMPUTE
        )
        out = clip_start + tl.cast(t, tl.int64) * size + numbers
        tl.store(by_x + out, from_before + own + from_after, numbers < size)
        from_before, own, from_now = from_now, next_own, from_next


@triton.jit
def _share(num_blocks, num_runs, frames, BLOCK: tl.constexpr, RUN: tl.constexpr):
    """What this program computes: numbers of a frame, clip, first frame and last frame + 1.

    Programs are counted along one axis, as the others of a grid end at 65535.
    """
    program = tl.program_id(0)
    numbers = program % num_blocks * BLOCK + tl.arange(0, BLOCK)
    run = program // num_blocks
    first = run % num_runs * RUN
    return numbers, run // num_runs, first, tl.minimum(first + RUN, frames)


@triton.jit
def _largest_of_frame(
    x, t, numbers, frames, height, width, channels, COMPUTE: tl.constexpr, ZEROS: tl.constexpr
):  # fmt: skip
    """x: a clip -> the largest around each number of frame t, height and width, and its place.

    As torch has it: the first of equal numbers, or else the last NaN.
    """
    border = 0.0 if ZEROS else float("-inf")
    row, column = numbers // (width * channels), numbers // channels % width
    frame = x + tl.cast(t, tl.int64) * height * width * channels
    rows = tl.where((t >= 0) & (t < frames), height, 0)  # beyond the clip: none
    value = tl.full(numbers.shape, float("-inf"), COMPUTE)
    place = tl.zeros(numbers.shape, tl.int32)
    for dh in tl.static_range(3):
        for dw in tl.static_range(3):
            h, w = row + (dh - 1), column + (dw - 1)
            inside = (h >= 0) & (h < rows) & (w >= 0) & (w < width)
            there = numbers + ((dh - 1) * width + (dw - 1)) * channels
            found = tl.load(frame + there, inside, border).to(COMPUTE)
            value, place = _larger(value, place, found, dh * 3 + dw)
    return value, place


@triton.jit
def _larger(value, place, later, later_place):
    """The later number in scan order, where it is larger or NaN; else the one before."""
    takes = (later > value) | (later != later)
    return tl.where(takes, later, value), tl.where(takes, later_place, place)


@triton.jit
def _sent_by_frame(
    gradient, places, t, numbers, frames, height, width, channels, COMPUTE: tl.constexpr
):  # fmt: skip
    """Of a clip: what the windows around frame t send to each number of frame t - 1, of frame t and
    of frame t + 1."""
    row, column = numbers // (width * channels), numbers // channels % width
    start = tl.cast(t, tl.int64) * height * width * channels
    rows = tl.where((t >= 0) & (t < frames), height, 0)  # beyond the clip: none
    to_before = tl.zeros(numbers.shape, COMPUTE)
    to_same = tl.zeros(numbers.shape, COMPUTE)
    to_after = tl.zeros(numbers.shape, COMPUTE)
    for dh in tl.static_range(3):
        for dw in tl.static_range(3):
            h, w = row - (dh - 1), column - (dw - 1)  # the middle of the window
            inside = (h >= 0) & (h < rows) & (w >= 0) & (w < width)
            there = start + numbers - ((dh - 1) * width + (dw - 1)) * channels
            place = tl.load(places + there, inside, 255).to(tl.int32) - (dh * 3 + dw)
            sent = tl.load(gradient + there, inside, 0.0).to(COMPUTE)
            to_before += tl.where(place == 0, sent, 0.0)
            to_same += tl.where(place == 9, sent, 0.0)
            to_after += tl.where(place == 18, sent, 0.0)
    return to_before, to_same, to_after
