"""engine/metrics.py: counts are exact, and reading them is the only wait."""

import itertools
import time

import numpy as np
import pytest
import torch

from engine.distributed import Ranks
from engine.metrics import Average, Scores, Stopwatch, as_text

CPU = torch.device("cpu")
ALONE = Ranks(rank=0, local_rank=0, world_size=1)


def test_average_is_weighted_by_clips_and_survives_a_restart():
    average = Average(ALONE)
    average.add(3, loss=torch.tensor(2.0), top1=torch.tensor(1.0))
    restored = Average(ALONE)
    restored.resume(average.totals())
    restored.add(1, loss=torch.tensor(6.0), top1=torch.tensor(0.0))
    assert restored.read() == {"loss": 3.0, "top1": 0.75}
    assert average.read() == {"loss": 2.0, "top1": 1.0}


def test_more_numbers_come_by_the_same_wait():
    average = Average(ALONE)
    assert average.read_with(torch.tensor([7.0])) == ({}, [7.0])
    average.add(2, loss=torch.tensor(3.0))
    assert average.read_with(torch.tensor([1.0, 0.1])) == (
        {"loss": 3.0}, [1.0, pytest.approx(0.1, rel=1e-7)],
    )  # fmt: skip


def test_clips_of_a_step_whose_loss_is_no_number_do_not_count():
    average = Average(ALONE)
    average.add(3, loss=torch.tensor(float("nan")), top1=torch.tensor(1.0))
    assert average.read() == {}
    average.add(3, loss=torch.tensor(2.0), top1=torch.tensor(0.5))
    average.add(3, loss=torch.tensor(float("inf")), top1=torch.tensor(1.0))
    assert average.read() == {"loss": 2.0, "top1": 0.5}
    assert average.totals()["clips"] == 3.0


def test_only_the_first_rank_takes_over_the_sums_of_a_checkpoint():
    second = Average(Ranks(rank=1, local_rank=1, world_size=2))
    second.resume({"loss": 6.0, "clips": 3.0})
    assert second.totals() == {"loss": 0.0, "clips": 0.0}


def test_an_average_of_nothing_is_empty():
    assert Average(ALONE).read() == {}


def naive_top_k(logits: np.ndarray, label: np.ndarray, k: int) -> float:
    best = np.argsort(-logits, axis=1)[:, :k]
    return float(np.mean([y in row for y, row in zip(label, best, strict=True)]))


def test_scores_equal_a_naive_count_however_the_clips_are_split():
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(2, 37, 7))
    label = rng.integers(0, 6, 37)  # class 6 has no clip
    whole, parts = (Scores(["merged", "16 frames"], 7, CPU) for _ in range(2))
    for scores, bounds in ((whole, [0, 37]), (parts, [0, 5, 6, 30, 37])):
        for start, stop in itertools.pairwise(bounds):
            heads = [torch.tensor(head[start:stop]) for head in logits]
            scores.add(heads, torch.tensor(label[start:stop]), torch.tensor(1.5 * (stop - start)))
    assert whole.table() == parts.table()
    table = whole.table()
    assert table["clips"] == 37 and table["loss"] == pytest.approx(1.5)
    for name, head in zip(("merged", "16 frames"), logits, strict=True):
        assert table["heads"][name]["top1"] == pytest.approx(naive_top_k(head, label, 1))
        assert table["heads"][name]["top5"] == pytest.approx(naive_top_k(head, label, 5))
    assert (table["top1"], table["top5"]) == tuple(table["heads"]["merged"].values())
    predicted = logits[0].argmax(1)
    for k in range(6):
        assert table["per_class"][k] == pytest.approx(np.mean(predicted[label == k] == k))
    assert table["per_class"][6] is None
    confusion = np.zeros((7, 7), int)
    np.add.at(confusion, (label, predicted), 1)
    assert table["confusion"] == confusion.tolist()


def test_top5_of_fewer_than_five_classes_is_certain():
    scores = Scores(["merged"], 3, CPU)
    scores.add([torch.randn(4, 3)], torch.tensor([0, 1, 2, 2]), torch.tensor(0.0))
    assert scores.table()["top5"] == 1.0


def test_the_table_names_every_head():
    scores = Scores(["merged", "sum"], 2, CPU)
    eye = torch.eye(2)
    scores.add([eye, 1 - eye], torch.tensor([0, 1]), torch.tensor(0.0))
    text = as_text(scores.table())
    assert [line.split() for line in text.splitlines()] == [
        ["top-1", "top-5", "(2", "clips)"],
        ["merged", "100.0%", "100.0%"],
        ["sum", "0.0%", "100.0%"],
    ]


def test_the_stopwatch_runs_within_loops_and_goes_on_after_a_restart(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow_items():
        for item in range(3):
            now[0] += 2.0
            yield item

    watch = Stopwatch()
    seen = []
    for item in watch.watch(slow_items()):
        now[0] += 6.0
        seen.append((item, watch.seconds))
    assert seen == [(0, 8.0), (1, 16.0), (2, 24.0)]
    now[0] += 100.0
    watch.waited += 6.0
    assert (watch.seconds, watch.waited, watch.wait_share) == (24.0, 6.0, 0.25)
    restored = Stopwatch()
    restored.load_state_dict(watch.state_dict())
    list(restored.watch(slow_items()))
    assert (restored.seconds, restored.waited) == (30.0, 6.0)
