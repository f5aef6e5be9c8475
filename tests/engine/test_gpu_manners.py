"""What the engine asks of a GPU, held to a model of its streams where there is none, and to its bits where there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prunecomp.data.windows import Windows
from prunecomp.engine import placement
from prunecomp.engine.backward import same_bits, strict_attention
from prunecomp.engine.losses import whole_tiles
from prunecomp.engine.placement import Memory, ModelShape, available_memory, place
from prunecomp.engine.states import STAGED, HostBoundary, Lanes, StateShape, Tier
from prunecomp.errors import BackendError
from prunecomp.ops import cuda

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BATCHES = Windows(torch.zeros(10, 6, dtype=torch.int64), "").batches(2)


class Stream:
    """What has happened before the next thing that is queued here: a vector clock, one count a stream."""

    def __init__(self, *_: Any) -> None:
        self.before: dict[Stream, int] = {}

    def work(self) -> dict[Stream, int]:
        self.before[self] = self.before.get(self, 0) + 1
        return dict(self.before)

    def record_event(self) -> dict[Stream, int]:
        return dict(self.before)

    def wait_event(self, event: dict[Stream, int]) -> None:
        for stream, count in event.items():
            self.before[stream] = max(count, self.before.get(stream, 0))

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.before)

    def synchronize(self) -> None:
        pass


class Card:
    """Streams, and the copies that were queued on them, each with what it comes after."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.compute, self.copies, self.pinned, self.most = Stream(), [], {}, 0
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "current_stream", lambda device: self.compute)
        patch.setattr(torch.cuda, "stream", self.stream)
        patch.setattr(torch.cuda, "check_error", lambda code: None)
        shim = SimpleNamespace(cudaHostRegister=self.register, cudaHostUnregister=self.pinned.pop)
        patch.setattr(torch.cuda, "cudart", lambda: shim)

    def register(self, address: int, nbytes: int, flags: int) -> None:
        self.pinned[address] = nbytes

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        yield
        self.copies.append((stream, stream.work()))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card(monkeypatch)


def boundary() -> tuple[HostBoundary, Lanes]:
    lanes = Lanes(CPU)
    return HostBoundary(StateShape(60, 4, torch.float32), CPU, lanes, ahead=True), lanes


def carried(card: Card, host: HostBoundary, generator: torch.Generator) -> list[torch.Tensor]:
    """Two sweeps as a streamed model makes them: every batch written, then each read, computed with and written."""
    streams = [torch.randn(2, 6, 4, generator=generator) for _ in BATCHES]
    for batch, stream in zip(BATCHES, streams, strict=True):
        card.compute.work()
        host.put(batch, stream)
    for number, batch in enumerate(BATCHES):
        got = host.get(batch)
        assert torch.equal(got, streams[number])
        card.compute.work()
        streams[number] = got + 1
        host.put(batch, streams[number])
    return streams


def test_what_was_carried_on_the_host_comes_back_the_latest(card: Card, generator: torch.Generator) -> None:
    host, _ = boundary()
    streams = carried(card, host, generator)
    for batch, stream in reversed(list(zip(BATCHES, streams, strict=True))):  # as the way down reads them
        assert torch.equal(host.get(batch), stream)
    host.get(BATCHES[0])
    host.put(BATCHES[1], streams[0])  # while the one that was sent ahead is out of date
    assert torch.equal(host.get(BATCHES[1]), streams[0])


def test_the_way_back_runs_ahead_of_the_computation_and_after_what_it_reads(
    card: Card, generator: torch.Generator
) -> None:
    host, lanes = boundary()
    carried(card, host, generator)
    puts = [before for stream, before in card.copies if stream is lanes.out]
    gets = [before for stream, before in card.copies if stream is lanes.back]
    assert len(puts) == 2 * len(BATCHES)
    assert len(gets) == len(BATCHES), "each batch goes up once"
    for number, before in enumerate(gets):
        assert before[lanes.out] > number, "after its own put"
        # Compute did len(BATCHES) pieces, then one a batch; a copy comes after none of the batch just before it.
        assert before[card.compute] <= len(BATCHES) + max(0, number - 1)
    for number, before in enumerate(puts[len(BATCHES) :]):
        assert before[lanes.back] > number, "rows are written again once they have been read"


def test_no_more_than_a_ring_is_held_on_its_way_out(card: Card, generator: torch.Generator) -> None:
    host, lanes = boundary()
    for number, batch in enumerate(BATCHES):
        host.put(batch, torch.randn(2, 6, 4, generator=generator))
        assert len(lanes._leaving) == min(number + 1, STAGED)
        # What is let go has been read before anything that the computation does from here on.
        assert card.compute.before.get(lanes.out, 0) >= number + 1 - STAGED


def test_host_memory_is_pinned_to_the_byte_and_given_free(card: Card) -> None:
    host, _ = boundary()
    assert list(card.pinned.values()) == [60 * 4 * 4]
    del host
    assert not card.pinned


def test_memory_that_the_allocator_holds_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a run the driver has 10 of 100 left, and 70 are the allocator's, 20 of them in use: 60 can be had."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert available_memory(GPU).device == int(60 * (1 - placement.MARGIN))


def test_a_gpu_takes_smaller_micro_batches_before_it_streams() -> None:
    """An 8B shape: 14.0 GB of layers and 2.1 GB beside them, some 2.2 GB for a micro-batch of 16,384 tokens and a
    quarter of that for one of 4,096."""
    shape = ModelShape(32, 4096, 436_000_000, 2_100_000_000, 436_000_000, 4096, 2 * 4096 + 3 * 14336, 2)

    def placed(gigabytes: float, *, resident: bool = False) -> tuple[int, int | None]:
        memory = Memory(int(gigabytes * 1e9), host=10**12)
        plan = place(shape, 128, 2048, memory, GPU, resident=resident)
        assert plan.peak_nbytes[Tier.device] <= memory.device
        return plan.micro_batch, plan.group_size

    assert placed(80) == (8, None)
    assert placed(17.5) == (4, None)
    assert placed(16.8) == (2, None)
    assert placed(16.2) == (8, 1)
    assert placed(3.5) == (1, 1)
    assert placed(2.5, resident=True) == (8, None)
    assert placed(1.5, resident=True) == (4, None)
    for other in (CPU, torch.device("mps"), torch.device("xpu")):
        assert place(shape, 128, 2048, Memory(80 * 10**9), other).micro_batch == 2


def test_tokens_and_lengths_go_to_a_device_once() -> None:
    ragged = Windows(torch.zeros(4, 6, dtype=torch.int64), "", torch.tensor([6, 3, 2, 5])).batches(2)
    meta = torch.device("meta")
    for batch in ragged:
        assert batch.lengths_on(meta) is batch.lengths_on(meta)
        assert batch.tokens_on(meta) is batch.tokens_on(meta)
        assert batch.tokens_on(meta).shape == batch.tokens.shape
    assert BATCHES[0].lengths_on(meta) is None


def test_gradients_are_asked_to_add_in_one_order_and_what_was_asked_before_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fills = torch.utils.deterministic.fill_uninitialized_memory
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", fills)  # put back, as it was
    asked = torch.are_deterministic_algorithms_enabled()  # for all tests
    torch.use_deterministic_algorithms(False)
    try:
        with same_bits(GPU):
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory == fills
        with same_bits(CPU):
            assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(asked)


def test_attention_is_differentiated_strictly_and_nothing_else_is() -> None:
    """What is asked of PyTorch while each gradient is handed down."""
    asked = torch.are_deterministic_algorithms_enabled()  # for all tests
    torch.use_deterministic_algorithms(True, warn_only=True)
    found: dict[str, bool] = {}

    class Asked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, name: str) -> torch.Tensor:
            ctx.name = name
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> Any:
            found[ctx.name] = torch.is_deterministic_algorithms_warn_only_enabled()
            return gradient, None

    try:
        x = torch.randn(1, 2, 8, 16, requires_grad=True)
        attended = torch.nn.functional.scaled_dot_product_attention(Asked.apply(x, "below"), x, x, is_causal=True)
        node: Any = attended.grad_fn
        y = Asked.apply(attended, "above").square().sum()
        strict_attention(y)
        # After what strict_attention has registered, in the order of registration.
        node.register_prehook(
            lambda *_: found.update(within=torch.is_deterministic_algorithms_warn_only_enabled())
        )  # fmt: skip
        torch.autograd.grad(y, x)
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=True)
    assert found == {"above": True, "within": False, "below": True}


@pytest.mark.parametrize("logits", [2**26, 2**24])
@pytest.mark.parametrize("vocabulary", [32, 32_000, 49_152, 128_256, 262_144, 2_000_000])
def test_rows_of_logits_are_whole_tiles(logits: int, vocabulary: int) -> None:
    rows = whole_tiles(logits // vocabulary)
    assert rows % 64 == 0 or rows == logits // vocabulary < 128
    assert rows * vocabulary <= logits or rows == 64


@pytest.mark.parametrize(("kib", "fits"), [(99, False), (163, True), (227, True)], ids=["sm_86", "sm_80", "sm_90"])
def test_a_card_without_the_shared_memory_is_refused(kib: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    held = SimpleNamespace(shared_memory_per_block_optin=kib * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: held)
    if fits:
        cuda.check_shared_memory(GPU, 81)
    else:
        with pytest.raises(BackendError, match=r"149,504 bytes of shared memory beyond 64 states.*--backend triton"):
            cuda.check_shared_memory(GPU, 81)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_is_carried_on_the_host_is_what_was_written(generator: torch.Generator) -> None:
    shape = StateShape(60, 1024, torch.bfloat16)
    host = HostBoundary(shape, GPU, Lanes(GPU), ahead=True)
    streams = [torch.randn(2, 6, 1024, generator=generator).to(GPU, torch.bfloat16) for _ in BATCHES]
    for batch, stream in zip(BATCHES, streams, strict=True):
        host.put(batch, stream.clone())
    for _ in range(3):
        for number, batch in enumerate(BATCHES):
            assert torch.equal(host.get(batch), streams[number])
            streams[number] = streams[number] * 0.5
            host.put(batch, streams[number].clone())
