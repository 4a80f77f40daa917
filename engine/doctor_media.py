"""Rows about decoders: images, videos by codec, packed depth; on the CPU and on the GPU."""

from collections.abc import Iterator

from engine.doctor_facts import Facts
from engine.doctor_rows import ABSENT, FAIL, OK, WARN, Row
from pipelines import nvdec

CODECS = {codec: known.name for codec, known in nvdec.CODECS.items()}
"""Names for people by FFmpeg's."""

LZ4_KIND = "lz4"


def ffmpeg_row(facts: Facts) -> Row:
    """The program, which only preparation needs, and the libraries' versions."""
    outcome = facts.outcome("FFmpeg")
    if outcome.unchecked:
        return Row("FFmpeg", ABSENT, outcome.unchecked)
    libraries = f"libavcodec {outcome.get('libavcodec')} in PyAV {outcome.get('av')}"
    if outcome.problem or not outcome.get("works"):
        found = outcome.problem or f"{outcome.get('program')} does not encode H.264"
        return Row(
            "FFmpeg", WARN, found, "python -m pipelines.prepare makes frames and videos by it",
            f"{facts.pip} install --force-reinstall imageio-ffmpeg av",
        )  # fmt: skip
    return Row(
        "FFmpeg", OK, f"{libraries}; the program: {outcome.get('version', '').split(' Copy')[0]}"
    )


def codec_rows(facts: Facts) -> Iterator[Row]:
    """On the CPU, then NVDEC."""
    for codec in CODECS:
        yield _cpu_row(facts, codec)
    if not facts.num_gpus:
        yield Row("NVDEC", ABSENT, "no GPU that could be used")
        return
    yield _nvcuvid_row(facts)
    for codec in CODECS:
        yield _nvdec_row(facts, codec)


def _cpu_row(facts: Facts, codec: str) -> Row:
    """Every video is decoded once by FFmpeg to be counted, wherever it is decoded later."""
    name, outcome = CODECS[codec], facts.outcome(f"codec {codec}")
    if outcome.unchecked:
        return Row(name, ABSENT, outcome.unchecked)
    if outcome.get("no_clip"):
        found = "not checked: neither PyAV nor the ffmpeg program here encodes it"
        mend = f"{facts.pip} install --force-reinstall av imageio-ffmpeg"
        return Row(name, ABSENT, found, mend=mend)
    fault = outcome.get("ffmpeg") or outcome.get("dali_cpu")
    ended = "nvdec_asked" in outcome.said or not outcome.problem
    if fault or not ended:
        state = FAIL if facts.kinds().get(codec) else WARN
        return Row(
            name, state, fault or outcome.problem, "clips in this codec cannot be trained from",
            f"{facts.pip} install --force-reinstall av",
        )  # fmt: skip
    by = "FFmpeg and DALI" if "dali_cpu" in outcome.said else "FFmpeg"
    return Row(name, OK, f"a clip decoded by {by} on the CPU")


def _nvcuvid_row(facts: Facts) -> Row:
    missing = facts.outcome("driver").get("libnvcuvid")
    if not missing:
        return Row("libnvcuvid", OK, "the driver's library for NVDEC is here")
    why = "without it NVDEC decodes no video: FFmpeg does, on the CPU"
    return Row("libnvcuvid", WARN, missing, why, _video_mend(facts))


def _video_mend(facts: Facts) -> str:
    """Command that brings the driver's decoder here."""
    mend = facts.place.mend("video")
    if facts.place.in_container:
        return mend
    return mend.replace("DRIVER", str(facts.driver_major or "VERSION"))


def _nvdec_row(facts: Facts, codec: str) -> Row:
    name, outcome = f"{CODECS[codec]}, NVDEC", facts.outcome(f"codec {codec}")
    if outcome.unchecked:
        return Row(name, ABSENT, outcome.unchecked)
    if "nvdec_asked" not in outcome.said:
        return Row(name, ABSENT, "not checked: there was no clip, or its decoding ended before")
    limits = outcome.get("nvdec_limits")
    if not limits:
        return _without_nvdec(facts, codec)
    fault = outcome.get("nvdec") or outcome.problem
    if not fault:
        return Row(name, OK, f"a clip decoded by NVDEC; {limits}")
    needed = facts.device == "cuda" and facts.kinds().get(codec)
    why = f"clips in it are given to NVDEC, as the GPU says that it decodes {limits}"
    return Row(name, FAIL if needed else WARN, fault, why, f"{nvdec.TO_H264}    # H.264")


def _without_nvdec(facts: Facts, codec: str) -> Row:
    """Row of a codec that the GPU does not decode or was not asked about: FFmpeg does."""
    name, outcome = f"{CODECS[codec]}, NVDEC", facts.outcome(f"codec {codec}")
    found, mend = f"this GPU has no {CODECS[codec]} decoder", f"{nvdec.TO_H264}    # H.264"
    if "nvdec_limits" not in outcome.said:
        reason = outcome.get("nvdec_silent") or outcome.problem
        found, mend = f"NVDEC did not say what it decodes ({reason})", _video_mend(facts)
    why = "its clips are decoded by FFmpeg on the CPU"
    if facts.device == "cuda" and facts.kinds().get(codec):
        return Row(name, WARN, found, why, mend)
    return Row(name, ABSENT, f"{found}; {why}")


def jpeg_rows(facts: Facts) -> Iterator[Row]:
    """On the GPU; the row of DALI has the CPU's."""
    outcome = facts.outcome("nvJPEG")
    if not facts.num_gpus or outcome.unchecked:
        reason = outcome.unchecked if facts.num_gpus else "no GPU that could be used"
        yield Row("nvJPEG", ABSENT, reason)
        yield Row("NVJPG", ABSENT, reason)
        return
    fault = outcome.get("gpu", outcome.problem)
    if fault:
        kinds = facts.kinds()
        images = not kinds or any(not video and kind != LZ4_KIND for kind, video in kinds.items())
        yield Row(
            "nvJPEG", facts.worst_of_gpu if images else WARN, fault,
            "frames that are JPEG files are decoded by it",
            f"{facts.pip} install --upgrade --force-reinstall nvidia-dali-cuda120",
        )  # fmt: skip
    else:
        yield Row("nvJPEG", OK, "a JPEG decoded on the GPU")
    engines = outcome.get("engines")
    if engines is None:
        yield Row("NVJPG", ABSENT, "not checked: nvJPEG does not tell of its engines")
    elif engines:
        yield Row("NVJPG", OK, f"{engines} engines decode JPEG in hardware")
    else:
        yield Row("NVJPG", ABSENT, "no such engine on this GPU; JPEG is decoded by its processors")


def lz4_row(facts: Facts) -> Row:
    """Packed 16-bit depth."""
    outcome = facts.outcome("LZ4")
    if outcome.unchecked:
        return Row("LZ4", ABSENT, outcome.unchecked)
    on_gpu = "gpu" in outcome.said
    if not outcome.problem and outcome.get("cpu") and outcome.get("gpu", True):
        return Row("LZ4", OK, f"decompressed on the CPU{' and on the GPU' if on_gpu else ''}")
    needed = LZ4_KIND in facts.kinds()
    where = "GPU" if outcome.get("cpu") else "CPU"
    package = "nvidia-dali-cuda120" if outcome.get("cpu") else "lz4"
    return Row(
        "LZ4", FAIL if needed else WARN, outcome.problem or f"wrong values on the {where}",
        "depth in packs is compressed by it", f"{facts.pip} install --force-reinstall {package}",
    )  # fmt: skip
