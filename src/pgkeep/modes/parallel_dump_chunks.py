"""Chunks being filled: rows of a COPY, cut only between rows, or the output of pg_dump, cut anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pgkeep.modes.parallel_dump_outbox import Outbox
from pgkeep.modes.parallel_dump_plan import ParallelDumpPlan
from pgkeep.server.copy_out import Chunk, CopyOut
from pgkeep.streams.compression import Compression, compress
from pgkeep.streams.item import CHUNK_BYTES, Buffer

Close = Callable[[], None]


def copied_chunks(answer: CopyOut, plan: ParallelDumpPlan, outbox: Outbox) -> Iterator[tuple[list[Buffer], int, Close]]:
    """Yield the chunks of a COPY: content, number of rows, and what gives their memory back."""
    is_over = False
    while not is_over:
        buffer = outbox.take_permit()
        large = _Large(outbox, plan.options.chunk_bytes)
        if plan.compression is Compression.NONE:
            chunk = Chunk(plan.options.chunk_bytes, buffer, ask=large.ask)
            is_over = answer.read(chunk)
            if chunk.rows:
                yield [chunk.content], chunk.rows, _returning(outbox, chunk.buffer, large)
                del chunk  # What it holds may have been sent before there is a permit for the next.
                continue
        else:
            reader = _Reader(answer, plan.options.chunk_bytes, large)
            pieces = list(compress(reader.slabs(), plan.compression, plan.compression_level))
            is_over = reader.is_over
            if reader.rows:
                yield pieces, reader.rows, _returning(outbox, None, large)
                continue
        outbox.give_permit(buffer)


def piped_chunks(
    output: Iterator[Buffer], plan: ParallelDumpPlan, outbox: Outbox
) -> Iterator[tuple[list[Buffer], Close]]:
    """Yield the chunks of a child's output: content, and what gives their memory back."""
    limit = plan.options.chunk_bytes
    first = next(output, None)
    while first is not None:
        buffer = outbox.take_permit()
        if plan.compression is Compression.NONE:
            # Buffers go round between workers: all of one size, or one after the other would have to grow.
            chunk = Chunk(limit, buffer)
            while first is not None and not chunk.is_full:
                part = memoryview(first)[: len(chunk.buffer) - chunk.filled]
                chunk.buffer[chunk.filled : chunk.filled + len(part)] = part
                chunk.filled += len(part)
                first = memoryview(first)[len(part) :] if len(part) < len(first) else next(output, None)
            yield [chunk.content], _returning(outbox, chunk.buffer, _Large(outbox, limit))
        else:
            taken = _Taken(first, output, limit)
            pieces = list(compress(taken.chunks(), plan.compression, plan.compression_level))
            first = taken.rest
            yield pieces, outbox.give_permit


class _Large:
    """Whether a chunk of usually *limit* bytes is larger than that, which one at a time may be."""

    def __init__(self, outbox: Outbox, limit: int) -> None:
        self._outbox = outbox
        self._usual_bytes = limit + CHUNK_BYTES
        self.is_held = False

    def ask(self, size_bytes: int) -> None:
        """Wait, before the chunk gets room for *size_bytes*, until it may."""
        if size_bytes > self._usual_bytes and not self.is_held:
            self._outbox.take_large()
            self.is_held = True


class _Reader:
    """Rows of one chunk on their way into a compressor."""

    def __init__(self, answer: CopyOut, limit: int, large: _Large) -> None:
        self._answer = answer
        self._limit = limit
        self._large = large
        self.rows = 0
        self.is_over = False

    def slabs(self) -> Iterator[Buffer]:
        """Yield rows until there are enough; each slab is valid until the next."""
        slab, total = Chunk(CHUNK_BYTES, ask=self._large.ask), 0
        while not self.is_over and total < self._limit:
            slab.filled = slab.rows = 0
            self.is_over = self._answer.read(slab)
            self.rows += slab.rows
            total += slab.filled
            # A compressor answers a whole slab at once.
            with slab.content as content:
                for offset in range(0, len(content), CHUNK_BYTES):
                    with content[offset : offset + CHUNK_BYTES] as part:
                        yield part
            if self._large.is_held:
                slab = Chunk(CHUNK_BYTES, ask=self._large.ask)


class _Taken:
    """Output of a child on its way into a compressor; *rest* is what comes after the chunk."""

    def __init__(self, first: Buffer, output: Iterator[Buffer], limit: int) -> None:
        self.rest: Buffer | None = first
        self._output = output
        self._limit = limit

    def chunks(self) -> Iterator[Buffer]:
        """Yield output until there is enough."""
        total = 0
        while self.rest is not None and total < self._limit:
            total += len(self.rest)
            yield self.rest
            self.rest = next(self._output, None)


def _returning(outbox: Outbox, buffer: bytearray | None, large: _Large) -> Close:
    # A row larger than usual must not be paid for until the end of the job.
    kept = None if large.is_held else buffer

    def close() -> None:
        if large.is_held:
            outbox.give_large()
        outbox.give_permit(kept)

    return close
