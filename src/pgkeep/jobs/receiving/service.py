"""
Receive the WAL of one cluster and ship it into the vault: two threads, the spool between them, and a watchdog.

Where Bacula's jobs take the WAL, nothing is shipped here: they read the spool, and remove from it what they hold.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pgkeep.errors import PgkeepError, error_text
from pgkeep.jobs.receiving.ears import Ears
from pgkeep.jobs.receiving.receiver import Receiver
from pgkeep.jobs.receiving.ship import Shipper
from pgkeep.jobs.receiving.source import SourceOptions
from pgkeep.jobs.receiving.watchdog import Watchdog
from pgkeep.spool.directory import Spool
from pgkeep.vault.cluster_vault import ClusterVault
from pgkeep.vault.wal_holes import WalHole, add_hole, read_holes

_GOODBYE_SECONDS = 10.0
_LAST_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveRequest:
    """
    What to receive, and where to.

    Attributes:
        cluster: In the vault; None where Bacula's jobs take what is spooled.
        options: Which server.
        spool_dir: Directory of the cluster's spool.
        spool_bytes: What the spool may take.
        window_seconds: How often the segment that is being received is shipped.
        compression_level: Of zstd, in the vault.
        slot_wal_max: WAL that the slot may keep on the server before it is dropped, in bytes; 0 for any.
    """

    cluster: ClusterVault | None
    options: SourceOptions
    spool_dir: Path
    spool_bytes: int
    window_seconds: float
    compression_level: int
    slot_wal_max: int = 0


class ReceiveService:
    """
    The threads of one cluster; ``stop`` and ``finish`` end them in order.

    Args:
        request: What to do.
        say: Takes one line for the log; from any thread.
        warn: Takes one warning; from any thread.
        streams: Told, once or more, that the server streams.
        ended: Told when receiving has ended, by itself or not.

    Attributes:
        failure: What ended the receiving, if not ``stop`` did.
    """

    def __init__(
        self,
        request: ReceiveRequest,
        *,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        streams: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self.failure: BaseException | None = None
        self._directory = request.cluster.directory if request.cluster is not None else request.spool_dir
        self._ended = ended
        self._warn = warn
        self._stop = threading.Event()
        self._cancelled = threading.Event()
        archive = request.cluster.archive if request.cluster is not None else None
        self._spool = Spool(
            request.spool_dir,
            system_identifier=request.options.system_identifier,
            segment_size=request.options.segment_size,
            max_bytes=request.spool_bytes,
        )
        ears = Ears(say=say, warn=warn, record_hole=self._record_hole, streams=streams, arrived=self._wake_shipper)
        self._receiver = Receiver(
            self._spool, archive, request.options, ears, stop=self._stop, cancelled=self._cancelled
        )
        self._shipper = (
            Shipper(
                self._spool,
                archive,
                self._receiver.durable,
                window_seconds=request.window_seconds,
                compression_level=request.compression_level,
                say=say,
                warn=warn,
                is_behind=self._receiver.is_behind,
                proof=self._receiver.proof,
            )
            if archive is not None
            else None
        )
        self._watchdog = Watchdog(
            request.cluster,
            self._spool,
            self._receiver,
            self._shipper,
            request.options,
            window_seconds=request.window_seconds,
            slot_wal_max=request.slot_wal_max,
            record_hole=self._record_hole,
            say=say,
            warn=warn,
        )
        self._watching = threading.Thread(target=self._watchdog.run, args=(self._stop,), name="watchdog", daemon=True)
        self._receiving = threading.Thread(target=self._receive, name="wal-receive", daemon=True)
        self._shipping = (
            threading.Thread(target=self._ship, args=[self._shipper], name="wal-ship", daemon=True)
            if self._shipper is not None
            else None
        )

    def start(self) -> None:
        """Start all threads."""
        if self._shipping is not None:
            self._shipping.start()
        self._receiving.start()
        self._watching.start()

    @property
    def has_ended(self) -> bool:
        """Whether one of the threads has ended, which they do by themselves only when they fail."""
        return self.failure is not None or not self._receiving.is_alive()

    def stop(self) -> None:
        """Ask both threads to end."""
        self._stop.set()
        self._wake_shipper()

    def finish(self) -> None:
        """
        Wait until both have ended, and ship what is left, the last segment as far as it was received.

        What ended the receiving is raised; that the vault did not take the rest either is a warning then.

        Raises:
            PgkeepError: What ended the receiving; or the vault did not take the rest, which the spool keeps.
            Exception: The same, where pgkeep itself is at fault.
        """
        self.stop()
        self._receiving.join(_GOODBYE_SECONDS)
        # A server that does not answer is left without a farewell.
        self._cancelled.set()
        self._receiving.join(_LAST_SECONDS)
        if self._receiving.is_alive():
            # Nothing ends a connection attempt or a question from outside, and it writes nothing meanwhile.
            self._warn("the server does not answer: ending without waiting for it any longer")
        if self._shipping is not None:
            self._shipping.join()
        # Whatever server it may be waiting for, nothing depends on it.
        self._watching.join(_LAST_SECONDS)
        try:
            if self._shipper is not None:
                self._shipper.finish()
        except Exception as error:
            if self.failure is None:
                raise
            if str(error) != str(self.failure):
                self._warn(f"{error_text(error)}; the spool keeps what is not shipped")
        finally:
            self._watchdog.finish()
            # The end of the process closes it under a thread that may yet look into it.
            if not self._receiving.is_alive():
                self._spool.close()
        if self.failure is not None:
            raise self.failure

    def _receive(self) -> None:
        try:
            self._receiver.run()
        except BaseException as error:  # noqa: BLE001 - raised by finish
            self._fail(error)
        finally:
            self._ended()

    def _ship(self, shipper: Shipper) -> None:
        try:
            shipper.run(self._stop)
        except BaseException as error:  # noqa: BLE001 - raised by finish
            self._fail(error)
            self._ended()

    def _fail(self, error: BaseException) -> None:
        # What comes second is as a rule a consequence of the first.
        self.failure = self.failure or error

    def _wake_shipper(self) -> None:
        if self._shipper is not None:
            self._shipper.wake()

    def _record_hole(self, hole: WalHole) -> None:
        with contextlib.suppress(PgkeepError):
            here = (hole.timeline, hole.start, hole.stop)
            if any((known.timeline, known.start, known.stop) == here for known in read_holes(self._directory)):
                return
        add_hole(self._directory, hole)
