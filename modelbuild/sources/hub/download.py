"""Downloads files from the Hub into its client's own cache, several at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from modelbuild import __version__
from modelbuild.errors import BuildFailed
from modelbuild.sources.hashing import Progress
from modelbuild.sources.hub.cache import cached, settle
from modelbuild.sources.hub.errors import offline, told_as_ours
from modelbuild.sources.hub.files import Hub, HubFile
from modelbuild.sources.hub.requests import TRIES
from modelbuild.sources.strictjson import show

TOGETHER = 8
"""Files that are downloaded at a time."""

SMALL_LIMIT = 50_000_000
"""Bytes of a file whose SHA-256 the Hub does not list; it takes no larger ones than 10 MB itself."""

SHOWN = 5
"""How many of many missing files are named."""

PATIENCE = 2.0
"""Seconds that downloads have to end in once something went wrong."""


class _Stopped(Exception):
    """Ends a download that nobody waits for any more."""


def download(hub: Hub, files: Sequence[HubFile], progress: Progress) -> None:
    """Downloads the files; the first that fails ends all."""
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

    if hub.offline:
        raise offline(list(files[:SHOWN]), len(files))
    for file in files:
        if file.sha256 is None and file.size > SMALL_LIMIT:
            facts = [f"it has {file.size} bytes"]
            where = file.at.name.where
            raise BuildFailed(f"the Hub lists no SHA-256 of {show(file.shown)}", where=where, facts=facts)
    stop, lock = threading.Event(), threading.Lock()

    def told(nbytes: int) -> None:
        if stop.is_set():
            raise _Stopped
        with lock:
            progress(nbytes)

    pool = ThreadPoolExecutor(min(TOGETHER, len(files)), thread_name_prefix="download")
    # The largest first, so that no long download is left alone at the end.
    order = sorted(files, key=lambda file: (-file.size, file.path))
    futures = [pool.submit(_fetch, hub, file, told) for file in order]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in futures if future.done() and future.exception() is not None]
        for future in failed:
            future.result()
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        wait(futures, timeout=PATIENCE)


def _fetch(hub: Hub, file: HubFile, progress: Progress) -> None:
    """Downloads one file. A connection that breaks is taken up again where it broke, by the client or from anew."""
    with told_as_ours(file):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import httpx

        came = 0

        def told(nbytes: int) -> None:
            nonlocal came
            came += nbytes
            progress(nbytes)

        for attempt in range(TRIES):
            try:
                hf_hub_download(
                    file.at.name.repo,
                    file.path,
                    revision=file.at.commit,
                    cache_dir=hub.cache,
                    library_name="modelbuild",
                    library_version=__version__,
                    tqdm_class=_meter(told),
                )
                break
            except httpx.NetworkError:
                if attempt == TRIES - 1:
                    raise
                told(-came)
                time.sleep(0.5 * (attempt + 1))
    path = cached(hub, file)
    if path is None:
        raise BuildFailed(f"{show(file.shown)} was downloaded and is not there", facts=[f"`{hub.cache}`"])
    settle(path)


def _meter(progress: Progress) -> Any:
    """A progress bar for the client that draws nothing and tells how many bytes came."""
    from tqdm import tqdm

    class Meter(tqdm):  # type: ignore[misc]
        """Told by the client of bytes in the file (`update`) and over the network (`update_transfer`)."""

        def __init__(self, *args: Any, **words: Any) -> None:
            known = {key: words[key] for key in ("total", "initial") if key in words}
            super().__init__(disable=True, **known)

        def update(self, n: float | None = 1) -> None:
            """So many bytes more are in the file; fewer where the client begins anew."""
            progress(int(n or 0))

        def update_transfer(self, n: float) -> None:
            """So many bytes more came; they are in the file soon."""

    return Meter
