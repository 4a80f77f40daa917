"""Rows about one run: its config, its data, its precision, and whether a step fits."""

from collections.abc import Iterator

from engine.doctor_facts import Facts
from engine.doctor_rows import ABSENT, FAIL, OK, WARN, Row, gib
from engine.doctor_system import TIGHT, smaller_step, train_command


def run_rows(facts: Facts) -> Iterator[Row]:
    """None without a config."""
    outcome = facts.config
    if not facts.config_path:
        return
    dry_run = f"{train_command(facts)} --dry-run"
    if outcome.unchecked:
        yield Row("config", ABSENT, outcome.unchecked)
        return
    if "device" not in outcome.said:
        why = "the run would stop at this line, which says what to write"
        yield Row("config", FAIL, outcome.problem, why, dry_run)
        return
    found = (
        f"{outcome.get('model')}, {outcome.get('modality')}, on {outcome.get('ranks')} x "
        f"{outcome.get('device')}"
    )
    if problem := outcome.get("batch_problem"):
        yield Row("config", FAIL, found, problem, f"{train_command(facts)} train.global_batch=N")
    elif outcome.problem:
        yield Row("config", FAIL, outcome.problem, "looking at what it needs ended so", dry_run)
    else:
        yield Row("config", OK, found)
    yield _data_row(facts, dry_run)
    if problem := outcome.get("weights_problem"):
        yield Row("starting weights", FAIL, problem, "a new run starts from them", dry_run)
    yield _precision_row(facts)
    yield _step_row(facts)


def _data_row(facts: Facts, dry_run: str) -> Row:
    outcome = facts.config
    if problem := outcome.get("data_problem"):
        return Row("data", FAIL, problem, "the run would stop at this", dry_run)
    if "data_problem" not in outcome.said:
        return Row("data", ABSENT, f"not checked: {outcome.problem}")
    train, evaluation = outcome.get("train"), outcome.get("eval")
    kinds = ", ".join(sorted(facts.kinds()))
    found = (
        f"{train['clips']} and {evaluation['clips']} clips listed; the first of each is there "
        f"({train['source']}: {kinds}); --dry-run looks at all"
    )
    return Row("data", OK, found)


def _precision_row(facts: Facts) -> Row:
    outcome = facts.config
    precision = outcome.get("precision")
    if precision is None:
        return Row("precision", ABSENT, f"not checked: {outcome.problem or 'see above'}")
    gpus = [facts.outcome("torch").get(f"gpu{i}") for i in range(facts.num_gpus)]
    without = [gpu["name"] for gpu in gpus if gpu and gpu.get("bf16") is False]
    if precision == "bfloat16" and outcome.get("device") == "cuda" and without:
        return Row(
            "precision", WARN, f"bfloat16, which {without[0]} only emulates",
            "it is slow there; fp16 with a loss scaler is not",
            f"{train_command(facts)} train.precision=fp16",
        )  # fmt: skip
    return Row("precision", OK, precision)


def _step_row(facts: Facts) -> Row:
    """Against the GPU; on the CPU the row of the memory has it."""
    outcome, name = facts.config, "a step"
    if "memory_bytes" not in outcome.said:
        reason = outcome.get("memory_problem") or outcome.problem or "see above"
        return Row(name, ABSENT, f"not checked: {reason}")
    found, need = outcome.get("memory"), outcome.get("memory_bytes")
    cards = [facts.outcome("torch").get(f"gpu{i}") for i in range(facts.num_gpus)]
    sizes = [(card["free"], card["total"]) for card in cards if card and "free" in card]
    if outcome.get("device") != "cuda" or not sizes:
        return Row(name, OK, found)
    if outcome.get("cache") == "gpu":
        need += outcome.get("cache_gb") * 1e9
        found += f" + {outcome.get('cache_gb'):g} GB of data.cache=gpu"
    free, total = min(sizes)
    found += f"; {gib(free)} of {gib(total)} free"
    mend = smaller_step(facts, free)
    if need > total:
        return Row(name, FAIL, found, "the GPU is smaller than that", mend)
    if need > TIGHT * free:
        return Row(name, WARN, found, "what cuDNN and the loader take comes on top", mend)
    return Row(name, OK, found)
