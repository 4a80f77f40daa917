"""The image without a Docker engine: what its files promise, and that they hold together."""

import configparser
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from linters import linter

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()

_spec = importlib.util.spec_from_file_location("check_install", DOCKER / "check_install.py")
check_install = importlib.util.module_from_spec(_spec)
sys.modules["check_install"] = check_install  # dataclasses look their module up
_spec.loader.exec_module(check_install)


def problems(text: str) -> list[str]:
    """What our image must not do, beyond what hadolint knows."""
    every = check_install.instructions(text)
    image = check_install.default_build(text)
    found = []
    tags = [i.rest.split("=", 1)[1] for i in every if i.word == "ARG" and "nvidia/" in i.rest]
    if not tags or not all(re.search(r":\d+\.\d+[.\d]*-", tag) for tag in tags):
        found.append("a base without a version")
    last = {i.word: i.rest for i in image}
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", last.get("USER", "")):
        found.append("root, or a user whose number Kubernetes cannot see")
    if last.get("ENTRYPOINT") != '["torchrun"]':
        found.append("entry point is not torchrun in exec form")
    if not last.get("HEALTHCHECK", "").endswith('CMD ["python", "-m", "engine.doctor", "--quick"]'):
        found.append("health check is not the doctor")
    if "NVIDIA_DRIVER_CAPABILITIES=compute,video,utility" not in " ".join(i.rest for i in image):
        found.append("no NVDEC in the container")
    if any(re.search(r"libnvcuvid|libcuda\.so|nvidia-driver|libnvidia-", i.rest) for i in every):
        found.append("files of the driver in the image")
    sources = [s for i in image if i.word == "COPY" for s in i.rest.split()[:-1]]
    for source in sources:
        if not (ROOT / source).exists() or not check_install.travels(source, PATTERNS):
            found.append(f"COPY {source}: does not exist or is ignored")
    installs = [n for n, i in enumerate(image) if i.word == "RUN" and "pip install" in i.rest]
    program = [n for n, i in enumerate(image) if i.word == "COPY" and "requirements" not in i.rest]
    if max(installs) > min(program):
        found.append("packages are installed anew whenever the program changes")
    return found


PATTERNS = check_install.ignore_patterns()


def requirements() -> dict[str, str]:
    """Package -> version of both lists."""
    lines = [
        line
        for name in ("requirements-torch.txt", "requirements.txt")
        for line in (DOCKER / name).read_text().splitlines()
        if not line.startswith("#")
    ]
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines), "a package is listed twice"
    return pins


def test_hadolint_has_nothing_to_say():
    done = subprocess.run(
        [linter("hadolint"), DOCKER / "Dockerfile"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_dockerfile_keeps_our_rules():
    assert problems(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (":13.2.1-base-ubuntu24.04", ":latest", "a base without a version"),
        ("USER 1000:1000", "USER 0:0", "root, or a user"),
        ("USER 1000:1000\n", "", "root, or a user"),
        ('ENTRYPOINT ["torchrun"]', "ENTRYPOINT torchrun", "entry point is not torchrun"),
        ('CMD ["python", "-m", "engine.doctor", "--quick"]', "CMD true", "health check is not"),
        ("compute,video,utility", "compute,utility", "no NVDEC"),
        ("g++ python3-dev", "g++ libnvidia-decode-580", "files of the driver"),
        ("COPY engine engine", "COPY enginge engine", "COPY enginge: does not exist"),
        ("COPY engine engine", "COPY tests engine", "COPY tests: does not exist or is ignored"),
        ("USER 1000", "RUN pip install --no-deps .\nUSER 1000", "installed anew"),
    ],
)  # fmt: skip
def test_each_rule_sees_its_breach(old, new, problem):
    assert old in DOCKERFILE
    assert any(problem in found for found in problems(DOCKERFILE.replace(old, new)))


def test_versions_are_one_pairing_of_driver_cuda_torch_and_dali():
    pins = requirements()
    torch = pins["torch"].rsplit(".", 1)[0]
    readme = (ROOT / "README.md").read_text()
    row = next(line for line in readme.splitlines() if line.startswith(f"| {torch}"))
    cuda, driver = row.split("|")[2].strip(), re.search(r"(\d+) or later \|", row)[1]
    assert f'NVIDIA_REQUIRE_CUDA="driver>={driver}"' in DOCKERFILE
    assert re.findall(r"nvidia/cuda:(\d+\.\d+)", DOCKERFILE) == [cuda, cuda]
    assert pins["cuda-toolkit"].startswith(f"{cuda}.")
    assert f"nvidia-dali-cuda{cuda.split('.')[0]}0" in pins
    assert f"torch {torch} and DALI {pins['nvidia-dali-cuda130'][:3]}," in DOCKERFILE


def test_the_lists_hold_everything_that_setup_cfg_asks_for():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    pins = {canonicalize_name(name): version for name, version in requirements().items()}
    pins["nvidia-dali-cuda120"] = pins.pop("nvidia-dali-cuda130")  # twins: the same module
    lines = setup["options"]["install_requires"].splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len(wanted) > 10
    for requirement in wanted:
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} but {version}"


@pytest.mark.parametrize(
    ("path", "goes"),
    [
        ("engine/train.py", True),
        ("pipelines/datasets/ntu.py", True),
        ("configs/ntu_rgb.yaml", True),
        ("docker/requirements-torch.txt", True),
        ("docker/compose.yaml", False),
        ("engine/__pycache__/train.cpython-312.pyc", False),
        ("benchmarks/results/demo_cpu.json", False),
        ("runs/ntu_rgb/last.pt", False),
        ("sample_data/train.txt", False),
        (".git/HEAD", False),
        (".venv/bin/python", False),
        ("tests/test_docker.py", False),
    ],
)
def test_only_what_is_copied_travels_to_the_builder(path, goes):
    assert check_install.travels(path, PATTERNS) == goes


def test_the_check_runs_the_pip_steps_of_the_default_image_only():
    steps = [i.rest for i in check_install.default_build(DOCKERFILE) if i.word == "RUN"]
    installs = [step for step in steps if "pip" in step]
    assert [re.search(r"requirements[-\w]*\.txt", step)[0] for step in installs] == [
        "requirements-torch.txt", "requirements.txt"]  # fmt: skip
    with_apex = DOCKERFILE.replace("ARG APEX=no", "ARG APEX=yes")
    steps = [i.rest for i in check_install.default_build(with_apex) if i.word == "RUN"]
    assert any("/wheels/*.whl" in step for step in steps)


def test_steps_run_in_the_folder_that_stands_for_the_image(tmp_path):
    box = check_install.Box(tmp_path, {"PATH": "/usr/bin:/bin", "NAME": "x"})
    text = (
        'FROM base AS image\nENV PATH=/opt/venv/bin:$PATH \\\n    TITLE="a b"\n'
        "WORKDIR /opt/program\nCOPY LICENSE README.md ./\nCOPY engine engine\n"
        "RUN apt-get install nothing\n# a comment\nRUN echo $TITLE > /opt/said \\\n && true\n"
        'ENTRYPOINT ["torchrun", "--standalone"]\n'
    )
    for step in check_install.default_build(text):
        box.do(step)
    assert box.environ["PATH"] == f"{tmp_path}/opt/venv/bin:/usr/bin:/bin"
    assert (tmp_path / "opt/said").read_text() == "a b\n"
    program = tmp_path / "opt/program"
    assert sorted(path.name for path in program.iterdir()) == ["LICENSE", "README.md", "engine"]
    assert (program / "engine/train.py").read_bytes() == (ROOT / "engine/train.py").read_bytes()
    assert not list(program.rglob("*.pyc"))
    assert box.entry == ["torchrun", "--standalone"]


def test_a_failing_step_ends_the_check(tmp_path):
    box = check_install.Box(tmp_path, {"PATH": "/usr/bin:/bin"}, tmp_path)
    with pytest.raises(SystemExit, match="exit status 3"):
        box.do(check_install.Instruction("RUN", "exit 3", "image"))


def test_compose_reserves_gpus_shares_memory_and_cannot_write_data():
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    train = compose["services"]["train"]
    gpus = train["deploy"]["resources"]["reservations"]["devices"][0]
    assert gpus["driver"] == "nvidia" and {"gpu", "video"} <= set(gpus["capabilities"])
    assert any(mount.endswith(":/data:ro") for mount in train["volumes"])
    assert train["shm_size"] == "16gb"
    assert (DOCKER / train["build"]["context"]).resolve() == ROOT
    assert (ROOT / train["build"]["dockerfile"]).is_file()
    assert [arg for arg in train["command"] if arg.endswith(".py")] == ["engine/train.py"]


def test_compose_follows_the_compose_specification():
    # Here: without these two packages all other tests of this file can still be run.
    import jsonschema
    from check_jsonschema import builtin_schemas

    schema = Path(builtin_schemas.__file__).parent / "vendor" / "compose-spec.json"
    validator = jsonschema.validators.validator_for(json.loads(schema.read_text()))
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    check = validator(json.loads(schema.read_text()))
    assert [error.message for error in check.iter_errors(compose)] == []
    compose["services"]["train"]["shm_sice"] = "16gb"
    assert "shm_sice" in next(check.iter_errors(compose)).message


def test_the_program_that_the_image_names_exists():
    for module in re.findall(r'"-m", "([\w.]+)"', DOCKERFILE):
        assert importlib.util.find_spec(module), f"{module}: no such module"
