from nvidia.dali import fn


def video_frames(encoded, frames, device):
    return fn.decoders.video(encoded, frames=frames, device="mixed" if device == "gpu" else "cpu")
