"""The data sets that pipelines/prepare.py knows, one module each: folder of the download ->
Download."""

from collections.abc import Callable

from pipelines.datasets import generic, isogd, jester, ntu, nvgesture, thu_read
from pipelines.datasets.download import Download, Wishes

DATASETS: dict[str, Callable[[str, Wishes], Download]] = {
    "ntu60": ntu.find_ntu60,
    "ntu120": ntu.find_ntu120,
    "nvgesture": nvgesture.find,
    "isogd": isogd.find,
    "thu_read": thu_read.find,
    "jester": jester.find,
    "generic": generic.find,
}
