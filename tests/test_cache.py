"""Results kept between runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.cache import open_cache, open_user_cache
from pipelines.config import DataConfig


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(str(tmp_path), "", "", 2)


def fail(message: str) -> None:
    raise AssertionError(message)


def test_what_was_put_is_there_the_next_time(config: DataConfig) -> None:
    cache = open_cache(config, "things", fail)
    cache.put("a", [1, 2])
    cache.put("a", [3, None])
    for reader in (cache, open_cache(config, "things", fail)):
        assert reader.get("a") == [3, None] and reader.get("b") is None


def test_a_torn_last_line_costs_that_entry_alone(config: DataConfig, tmp_path: Path) -> None:
    cache = open_cache(config, "things", fail)
    cache.put("a", 1)
    cache.put("b", 2)
    file = tmp_path / ".rgbd_cache" / "things.jsonl"
    file.write_bytes(file.read_bytes()[:-4])
    open_cache(config, "things", fail).put("c", 3)
    again = open_cache(config, "things", fail)
    assert [again.get(key) for key in "abc"] == [1, None, 3]


def test_without_access_to_the_data_set_the_users_cache_folder_is_taken(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".rgbd_cache").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    open_cache(config, "things", fail).put("a", 1)
    assert len(list((tmp_path / "home/rgbd-motion-engine").glob("*/things.jsonl"))) == 1
    assert open_cache(config, "things", fail).get("a") == 1


def test_a_folder_that_cannot_be_written_is_said_and_stops_nothing(
    config: DataConfig, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    said: list[str] = []
    cache = open_cache(replace(config, cache_dir=str(blocked)), "things", said.append)
    cache.put("a", 1)
    assert cache.get("a") == 1
    assert said == [f"{blocked}/things.jsonl: File exists; set data.cache_dir to a folder for such "
                    "results"]  # fmt: skip


def test_a_disk_that_fills_up_stops_nothing(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    cache = open_cache(config, "things", said.append)
    file = tmp_path / ".rgbd_cache" / "things.jsonl"
    file.unlink()
    file.mkdir()  # no write succeeds any more
    cache.put("a", 1)
    cache.put("b", 2)
    assert (cache.get("a"), cache.get("b")) == (1, 2)
    assert said == [f"{file}: Is a directory; going on without this cache"]


def test_a_users_cache_that_cannot_be_written_is_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    open_user_cache("things").put("a", 1)
    assert open_user_cache("things").get("a") == 1
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache = open_user_cache("things")
    cache.put("a", 2)
    assert cache.get("a") == 2 and open_user_cache("things").get("a") is None
