"""models/gathered_pool.py: torch's own pool, number for number and gradient for gradient.

On the CPU Triton's interpreter runs the kernels, in a process that has been told so before it
imported them; `gpu` tests run what is compiled.
"""

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models import gathered_pool
from models.blocks import InceptionWidths, max_pool_3x3x3
from models.gathered_pool import gathered_max_pool_3x3x3
from models.spatial import SpatialInception

NO_TRITON = "torch's builds for CPUs bring no Triton"
Pool = Callable[[Tensor, int, bool], Tensor]
TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Executor]:
    """A process in which Triton's kernels run on the CPU, in blocks and runs so small that tiny
    clips have several."""
    pytest.importorskip("triton", reason=NO_TRITON)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
            executor.submit(take_small_parts).result()
        yield executor


def take_small_parts() -> None:
    torch.set_num_threads(1)
    gathered_pool.BLOCK, gathered_pool.RUN = 16, 2


def pooled(pool: Pool, frames: Tensor, num_frames: int, nonnegative: bool) -> tuple[Tensor, ...]:
    """The pooled frames, and the gradient of the frames for small whole numbers sent back, whose
    sums are exact in any order."""
    leaf = frames.detach().requires_grad_()
    found = pool(leaf, num_frames, nonnegative)
    draw = torch.Generator().manual_seed(3)
    sent = torch.randint(-4, 5, frames.shape, generator=draw).to(frames)
    (gradient,) = torch.autograd.grad(found, leaf, sent)
    if pool is gathered_max_pool_3x3x3:
        for tensor in (found, gradient):
            assert tensor.is_contiguous(memory_format=torch.channels_last)
    return found.detach(), gradient


def interpreted(interpreter: Executor, *given: Any) -> tuple[Tensor, ...]:
    return interpreter.submit(pooled, gathered_max_pool_3x3x3, *given).result()


def tied_frames(
    *shape: int, nonnegative: bool, nans: float = 0.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(B * T, C, H, W), channels-last, of few values, so that most windows hold several largest."""
    draw = torch.Generator().manual_seed(math.prod(shape))
    frames = torch.randint(0 if nonnegative else -3, 3, shape, generator=draw).to(dtype)
    frames[torch.rand(shape, generator=draw) < nans] = math.nan
    return frames.contiguous(memory_format=torch.channels_last)


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for ours, torchs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
@settings(max_examples=15)
@given(
    clips=st.integers(1, 2), num_frames=st.integers(1, 3), channels=st.integers(1, 3),
    height=st.integers(1, 4), width=st.integers(1, 3), nonnegative=st.booleans(),
    nans=st.sampled_from([0.0, 0.2]),
)  # fmt: skip
def test_ties_zeros_nans_and_borders_are_torchs(
    interpreter, clips, num_frames, channels, height, width, nonnegative, nans
) -> None:
    shape = (clips * num_frames, channels, height, width)
    given = tied_frames(*shape, nonnegative=nonnegative, nans=nans), num_frames, nonnegative
    assert_equal(interpreted(interpreter, *given), pooled(max_pool_3x3x3, *given))


@pytest.mark.parametrize("dtype", [*TYPES, torch.float64])
def test_every_type_is_pooled_as_it_is(interpreter, dtype) -> None:
    given = tied_frames(3, 5, 2, 3, nonnegative=False, dtype=dtype), 3, False
    assert_equal(interpreted(interpreter, *given), pooled(max_pool_3x3x3, *given))


def test_a_zero_of_the_border_that_wins_takes_the_gradient_with_it(interpreter) -> None:
    given = -torch.ones(1, 1, 1, 1), 1, False
    assert_equal(interpreted(interpreter, *given), (torch.zeros(1, 1, 1, 1),) * 2)


def test_clips_and_runs_of_frames_do_not_mix(interpreter) -> None:
    """Five frames are three runs of two."""
    given = tied_frames(10, 1, 1, 2, nonnegative=True), 5, True
    assert_equal(interpreted(interpreter, *given), pooled(max_pool_3x3x3, *given))


def test_frames_in_another_order_in_memory_are_pooled_too(interpreter) -> None:
    frames = tied_frames(2, 2, 2, 3, nonnegative=True)
    expected = pooled(max_pool_3x3x3, frames, 2, True)
    assert_equal(interpreted(interpreter, frames.contiguous(), 2, True), expected)


def checked_by_torch() -> dict[str, str]:
    """What torch says of both operators: schema, derivative, shapes, tracing."""
    frames = tied_frames(2, 2, 2, 3, nonnegative=False)
    operator, backward = gathered_pool._pool, gathered_pool._pool_backward
    places = operator(frames, 2, True)[1]
    said = torch.library.opcheck(operator, (frames.requires_grad_(), 2, True))
    return said | torch.library.opcheck(backward, (frames.detach(), places, 2))


def test_torch_finds_nothing_wrong_with_the_operators(interpreter) -> None:
    assert set(interpreter.submit(checked_by_torch).result().values()) == {"SUCCESS"}


def inception_passes() -> list[tuple[Tensor, ...]]:
    """Output and gradients of an inception module with torch's pool, with ours, and with ours in
    one traced graph."""
    torch.manual_seed(0)
    widths = InceptionWidths(4, 4, 4, 4, 4, 4)
    module = SpatialInception(2, widths, momentum=0.1, nonnegative_input=False).double()
    frames = tied_frames(4, 2, 2, 3, nonnegative=False, dtype=torch.float64).requires_grad_()

    def passes(form: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, ...]:
        found = form(frames, 2)
        gradients = torch.autograd.grad(found.square().sum(), [frames, *module.parameters()])
        return found.detach(), *gradients

    found = [passes(module)]
    module.pool = gathered_max_pool_3x3x3
    found.append(passes(module))
    return [*found, passes(torch.compile(module, backend="aot_eager", fullgraph=True))]


def test_an_inception_module_trains_as_with_torchs_pool_compiled_or_not(interpreter) -> None:
    torchs, ours, compiled = interpreter.submit(inception_passes).result()
    for found in (ours, compiled):
        torch.testing.assert_close(found, torchs, rtol=1e-12, atol=1e-12)


def test_on_shapes_alone_nothing_is_computed() -> None:
    frames = torch.empty(64, 192, 28, 28, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        found = gathered_max_pool_3x3x3(frames, 64, True)
        found.sum().backward()
    assert found.shape == frames.shape and frames.grad is not None
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert counter.get_total_flops() == 0


SIZES = ["frames", "height", "width", "channels", "num_blocks", "num_runs"]


@pytest.mark.parametrize(("capability", "ones"), [(80, []), (90, SIZES)])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(capability, ones) -> None:
    """Triton makes a program of its own where a size is 1."""
    triton = pytest.importorskip("triton", reason=NO_TRITON)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from models import gathered_pool_kernels as kernels

    constants = {"BLOCK": 1024, "RUN": 16, "COMPUTE": triton.language.float32}
    constants |= dict.fromkeys(ones, 1)
    for kernel, types, more in (
        (kernels.largest, ("*bf16", "*bf16", "*u8"), {"ZEROS": True}),
        (kernels.gathered, ("*bf16", "*u8", "*bf16"), {}),
    ):
        names, known = kernel.arg_names, constants | more
        signature = dict.fromkeys(names, "i32") | dict(zip(names, types, strict=False))
        signature |= dict.fromkeys(known, "constexpr")
        fixed = {(names.index(name),): value for name, value in known.items()}
        source = ASTSource(kernel, signature, fixed)
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


def test_a_frame_beyond_32_bits_is_refused() -> None:
    huge = torch.empty(1, device="meta").expand(1, 2**11, 2**10, 2**10)
    with pytest.raises(ValueError, match="a frame of 2048 x 1024 x 1024 numbers is too large"):
        gathered_pool._launch(None, (huge,), 1)


LARGE = (16, (32, 192, 28, 28))


@pytest.mark.gpu
@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize(
    ("dtype", "num_frames", "shape"),
    [*((dtype, *LARGE) for dtype in TYPES),
     (torch.float32, 5, (10, 7, 5, 3)), (torch.float32, 1, (3, 20, 9, 1))],
)  # fmt: skip
def test_on_a_gpu_it_is_torchs_too(dtype, nonnegative, num_frames, shape) -> None:
    frames = tied_frames(*shape, nonnegative=nonnegative, nans=0.01, dtype=dtype)
    given = frames.cuda(), num_frames, nonnegative
    assert_equal(pooled(gathered_max_pool_3x3x3, *given), pooled(max_pool_3x3x3, *given))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
def test_on_a_gpu_two_backward_passes_are_bit_equal(dtype) -> None:
    frames = torch.randn(64, 256, 28, 28, device="cuda").relu().to(dtype)
    frames = frames.contiguous(memory_format=torch.channels_last).requires_grad_()
    pooled = gathered_max_pool_3x3x3(frames, 32, True)
    sent = torch.randn_like(pooled)
    first, second = (torch.autograd.grad(pooled, frames, sent, retain_graph=True)[0] for _ in "ab")
    assert torch.equal(first, second)


@pytest.mark.gpu
def test_on_a_gpu_more_than_two_to_the_31_numbers_are_pooled() -> None:
    """4.3 GB of bf16 and the places; only the last clip, beyond 32 bits, is looked at."""
    frames = torch.zeros(2**11 + 4, 2**10, 2**5, 2**5, device="cuda", dtype=torch.bfloat16)
    frames = frames.contiguous(memory_format=torch.channels_last)
    last = frames[-4:].normal_()
    found = gathered_max_pool_3x3x3(frames, 4, False)[-4:]
    assert torch.equal(found, max_pool_3x3x3(last, 4, False))
