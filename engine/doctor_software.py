"""Rows about Python and packages: whether they run, and whether they fit each other and the
driver."""

from collections.abc import Iterator

from engine.doctor_facts import DRIVER_OF_CUDA, Facts, version_tuple
from engine.doctor_rows import ABSENT, FAIL, OK, WARN, Row

PYTHONS = ((3, 10), (3, 12))
LEAST_TORCH, LEAST_DALI = (2, 6), (2, 0)
WRONG_CUDNN = (90800, 91100)
"""From 9.8 to before 9.11: bf16 conv3d computed wrong (pytorch#163539)."""

FOR_OLD_DRIVER = "'torch==2.10.*' 'torchvision==0.25.*'"
"""The last with CUDA 12, which needs driver 525 (README, Versions)."""
FOR_OLD_GPU = "'torch==2.7.*' 'torchvision==0.22.*'"
"""CUDA 12.6: with kernels for GPUs before compute capability 7.5, and cuDNN 9.5."""

PACKAGES = {
    "yaml": "pyyaml", "PIL.Image": "pillow", "cv2": "opencv-python-headless", "lz4.block": "lz4",
    "imageio_ffmpeg": "imageio-ffmpeg", "ffmpeg": "ffmpeg-python",
    "torch.utils.tensorboard": "tensorboard",
}  # fmt: skip
"""Of modules that are called otherwise."""

TWO_D = ("decoupled", "decoupled_fusion", "umdr", "umdr_fusion")
"""Networks that call no conv3d; by name, as torch itself may be what is broken."""


def python_row(version: tuple[int, int, int]) -> Row:
    """The interpreter that runs the doctor, and would run training."""
    found = ".".join(map(str, version))
    if PYTHONS[0] <= version[:2] <= PYTHONS[1]:
        return Row("Python", OK, found)
    return Row(
        "Python", FAIL, found, "torch and DALI are not made for it: 3.10 to 3.12 are supported",
        "make PYTHON=/usr/bin/python3.12 test",
    )  # fmt: skip


def packages_row(facts: Facts) -> Row:
    """What setup.cfg asks for, less torch and DALI."""
    outcome = facts.outcome("packages")
    broken: dict[str, str] = dict(outcome.get("broken", {}))
    if outcome.unchecked:
        return Row("packages", ABSENT, outcome.unchecked)
    if outcome.problem:
        broken.setdefault(str(outcome.get("doing", "")).removeprefix("importing "), outcome.problem)
    if not broken:
        return Row("packages", OK, "all of setup.cfg's can be imported")
    lacking = [name for name, error in broken.items() if error.startswith("ModuleNotFoundError")]
    found = "; ".join(
        [f"not installed: {', '.join(lacking)}"] * bool(lacking)
        + [f"{name}: {error}" for name, error in broken.items() if name not in lacking]
    )
    if set(broken) == {"torchvision"}:
        return Row(
            "packages", FAIL, found, "torchvision is made for one torch exactly",
            f"{facts.pip} install --upgrade --force-reinstall torch torchvision",
        )  # fmt: skip
    packages = " ".join(sorted({PACKAGES.get(name, name) for name in broken}))
    return Row(
        "packages", FAIL, found, "the loader and the reports import them",
        outcome.mend(f"{facts.pip} install --force-reinstall {packages}"),
    )  # fmt: skip


def torch_rows(facts: Facts) -> Iterator[Row]:
    """torch itself, then whether its CUDA fits the driver."""
    outcome = facts.outcome("torch")
    install = f"{facts.pip} install --upgrade torch torchvision"
    version = outcome.get("version")
    cuda = outcome.get("cuda")
    if not version or "cpu" not in outcome.said:
        mend = outcome.mend(install)
        yield Row("torch", FAIL, outcome.trouble, "nothing runs without it", mend)
        return
    found = f"{version}, {'CUDA ' + cuda if cuda else 'without CUDA'}"
    if version_tuple(version) < LEAST_TORCH:
        yield Row("torch", FAIL, found, "2.6 is the oldest that is supported", install)
    elif not outcome.get("cpu"):
        why = "a convolution on the CPU gave a wrong result: the installation is damaged"
        yield Row("torch", FAIL, found, why, f"{install} --force-reinstall")
    elif outcome.problem and not facts.num_gpus:  # with one, another row has it
        why, mend = "training asks torch the same", outcome.mend(f"{install} --force-reinstall")
        yield Row("torch", FAIL, outcome.problem, why, mend)
    elif not cuda and (facts.num_gpus or facts.wanted == "cuda"):
        why = "this build cannot use the GPU"
        yield Row("torch", facts.worst_of_gpu, found, why, f"{install} --force-reinstall")
    else:
        yield Row("torch", OK, found)
    yield _torch_and_driver(facts)


def _torch_and_driver(facts: Facts) -> Row:
    name, outcome, major = "torch and driver", facts.outcome("torch"), facts.driver_major
    cuda = outcome.get("cuda")
    if not facts.num_gpus:
        return Row(name, ABSENT, "no GPU that could be used")
    if not cuda:
        return Row(name, ABSENT, "this torch is built without CUDA")
    least = DRIVER_OF_CUDA.get(int(cuda.partition(".")[0]), max(DRIVER_OF_CUDA.values()))
    found = f"CUDA {cuda} needs driver {least} or later; here is {facts.driver or 'an unknown one'}"
    if major is not None and major < least:
        pinned = f"{facts.pip} install {FOR_OLD_DRIVER}"
        mend = pinned if major >= DRIVER_OF_CUDA[12] else facts.place.mend("driver")
        return Row(name, facts.worst_of_gpu, found, "torch cannot use the GPU", mend)
    if outcome.problem:
        why = "torch does not get as far as computing on the GPU"
        return Row(
            name, facts.worst_of_gpu, outcome.problem, why,
            f"{facts.pip} install --upgrade --force-reinstall torch torchvision",
        )  # fmt: skip
    if not outcome.get("available"):
        why = "the driver hands out a GPU, and torch does not see it"
        return Row(
            name, facts.worst_of_gpu, found, why,
            f"{facts.pip} install --upgrade --force-reinstall torch torchvision",
        )  # fmt: skip
    return Row(name, OK, found)


def cudnn_row(facts: Facts) -> Row:
    """The releases known to be wrong or slow, by what this network calls."""
    outcome = facts.outcome("torch")
    number, problem = outcome.get("cudnn"), outcome.get("cudnn_error")
    if problem:
        return Row(
            "cuDNN", facts.worst_of_gpu, problem,
            "another cuDNN is found ahead of the one that came with torch", "unset LD_LIBRARY_PATH",
        )  # fmt: skip
    if not number:
        return Row("cuDNN", ABSENT, outcome.trouble or "this torch is built without it")
    found = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    if not facts.num_gpus:
        return Row("cuDNN", ABSENT, f"{found} came with torch; without a GPU it is not used")
    model = facts.config.get("model", TWO_D[0])
    calls = "this network calls none" if model in TWO_D else f"{model} calls it"
    new = facts.driver_major is None or facts.driver_major >= DRIVER_OF_CUDA[13]
    packages = "--upgrade torch torchvision" if new else FOR_OLD_GPU
    mend = f"{facts.pip} install {packages}"
    if version_tuple(outcome.get("version", "")) == (2, 9, 0):
        why = f"torch 2.9.0 keeps cuDNN from conv3d, which is then four times as slow; {calls}"
        return Row("cuDNN", WARN, f"{found} under torch 2.9.0", why, mend)
    if WRONG_CUDNN[0] <= number < WRONG_CUDNN[1]:
        why = f"9.8 to 9.10 compute conv3d wrong in bf16; {calls}"
        return Row("cuDNN", WARN, found, why, mend)
    return Row("cuDNN", OK, found)


def tf32_row(facts: Facts) -> Row:
    """Settings that figures depend on; nothing to mend."""
    outcome = facts.outcome("torch")
    if not facts.num_gpus or not outcome.get("available"):
        return Row("TF32", ABSENT, "no GPU that torch uses")
    words = {True: "on", False: "off"}
    return Row(
        "TF32", OK,
        f"convolutions {words[bool(outcome.get('tf32_convolution'))]}, matrix products "
        f"{words[bool(outcome.get('tf32_matmul'))]}: what fp32 means here",
    )  # fmt: skip


def dali_rows(facts: Facts) -> Iterator[Row]:
    """One of its twins, running, fit for the driver."""
    outcome = facts.outcome("DALI")
    twins = {n: v for n, v in outcome.get("packages", {}).items() if "-dali-cuda" in n}
    version = outcome.get("version")
    found = ", ".join(f"{name} {number}" for name, number in twins.items()) or version or ""
    install = f"{facts.pip} install --upgrade nvidia-dali-cuda120"
    if len(twins) > 1:
        remove = f"{facts.pip} uninstall -y {' '.join(twins)}"
        why = "both hold the same module, and each overwrites files of the other"
        yield Row("DALI", FAIL, found, why, f"{remove} && {install}")
    elif outcome.trouble or not version:
        why = "all clips are read by it"
        mend = outcome.mend(f"{install} --force-reinstall")
        if facts.outcome("driver").problem:
            why, mend = f"{why}, and it asks the driver, which does the same alone", "sudo reboot"
        yield Row("DALI", FAIL, f"{found}: {outcome.trouble}".strip(": "), why, mend)
    elif version_tuple(version) < LEAST_DALI:
        yield Row("DALI", FAIL, found, "2.0 is the oldest that is supported", install)
    elif outcome.get("cpu"):
        why = "a JPEG decoded on the CPU came out wrong"
        yield Row("DALI", FAIL, f"{found}: {outcome.get('cpu')}", why,
                  f"{install} --force-reinstall")  # fmt: skip
    else:
        yield Row("DALI", OK, f"{found}; decodes a JPEG on the CPU")
    yield _dali_and_driver(facts, list(twins))


def _dali_and_driver(facts: Facts, twins: list[str]) -> Row:
    name, major = "DALI and driver", facts.driver_major
    if not facts.num_gpus:
        return Row(name, ABSENT, "no GPU that could be used")
    cuda = 13 if any("cuda13" in twin for twin in twins) else 12
    least = DRIVER_OF_CUDA[cuda]
    found = f"CUDA {cuda} needs driver {least} or later; here is {facts.driver or 'an unknown one'}"
    if major is None or major >= least:
        return Row(name, OK, found)
    swap = f"{facts.pip} uninstall -y {' '.join(twins)} && {facts.pip} install nvidia-dali-cuda120"
    mend = swap if major >= DRIVER_OF_CUDA[12] else facts.place.mend("driver")
    return Row(name, facts.worst_of_gpu, found, "DALI cannot use the GPU", mend)


def apex_row(facts: Facts) -> Row:
    """NVIDIA's, with its kernels; or the package of the same name on the package index."""
    outcome = facts.outcome("Apex")
    if outcome.unchecked:
        return Row("Apex", ABSENT, outcome.unchecked)
    remove = f"{facts.pip} uninstall -y apex"
    trouble = outcome.problem or outcome.get("apex_error")
    if trouble:
        return Row("Apex", facts.worst_of_gpu, trouble, "training on GPUs imports it", remove)
    if not outcome.get("there"):
        return Row("Apex", ABSENT, "not installed; torch's own kernels do the same")
    optimizers, kernels = outcome.get("apex.optimizers"), outcome.get("amp_C")
    if optimizers:
        harmless = outcome.get("apex.optimizers is ImportError")
        return Row(
            "Apex", WARN if harmless else facts.worst_of_gpu, f"not NVIDIA's: {optimizers}",
            "the package index's `apex` is something else; training goes on without"
            if harmless else "training on GPUs imports it, and stops at this error", remove,
        )  # fmt: skip
    if kernels:
        sgd = facts.config.get("optimizer", "sgd") == "sgd"
        return Row(
            "Apex", facts.worst_of_gpu if sgd else WARN, f"without its kernels: {kernels}",
            "its fused SGD, which GPU training takes where Apex is there, refuses to run", remove,
        )  # fmt: skip
    return Row("Apex", OK, "NVIDIA's, with its kernels")


def compiler_row(facts: Facts) -> Row:
    """What torch.compile and kernels of our own need beside torch."""
    choice = facts.config.get("compile", "auto")
    own_kernels = facts.device != "cpu" and facts.config.get("deterministic", False)
    if not own_kernels and (choice == "off" or (choice == "auto" and facts.device == "cpu")):
        return Row(
            "C compiler", ABSENT, "not needed: torch.compile is off on the CPU, or by config"
        )
    if facts.host.compiler:
        return Row("C compiler", OK, "there, with Python's headers")
    why = "torch.compile needs both; training goes on without it, slower"
    if own_kernels:
        why = "the pools of train.deterministic need both; training would stop"
    return Row(
        "C compiler", facts.worst_of_gpu if own_kernels else WARN, "none, or no headers of Python",
        why, "sudo apt-get install gcc python3-dev",
    )  # fmt: skip
