"""Chunks being filled: rows of a COPY, cut only between rows, or the output of pg_dump, cut anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pgkeep.modes.parallel_dump_outbox import Outbox
from pgkeep.modes.parallel_dump_plan import ParallelDumpPlan
from pgkeep.server.copy_out import Chunk, CopyOut
from pgkeep.server.plain_line import BUFFER_BYTES
from pgkeep.streams.compression import Compression, compress
from pgkeep.streams.item import CHUNK_BYTES, Buffer

Close = Callable[[], None]


def copied_chunks(answer: CopyOut, plan: ParallelDumpPlan, outbox: Outbox) -> Iterator[tuple[list[Buffer], int, Close]]:
    """Yield the chunks of a COPY: content, number of rows, and what gives their memory back."""
    is_over = False
    while not is_over:
        buffer = outbox.take_permit()
        if plan.compression is Compression.NONE:
            chunk = Chunk(plan.options.chunk_bytes, buffer)
            is_over = answer.read(chunk)
            if chunk.rows:
                yield [chunk.content], chunk.rows, _returning(outbox, chunk.buffer, plan)
                continue
        else:
            reader = _Reader(answer, plan.options.chunk_bytes)
            pieces = list(compress(reader.slabs(), plan.compression, plan.compression_level))
            is_over = reader.is_over
            if reader.rows:
                yield pieces, reader.rows, outbox.give_permit
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
            chunk = Chunk(limit + CHUNK_BYTES - BUFFER_BYTES, buffer)
            while first is not None:
                chunk.make_room(len(first))
                chunk.buffer[chunk.filled : chunk.filled + len(first)] = first
                chunk.filled += len(first)
                first = next(output, None)
                if chunk.filled >= limit:
                    break
            yield [chunk.content], _returning(outbox, chunk.buffer, plan)
        else:
            taken = _Taken(first, output, limit)
            pieces = list(compress(taken.chunks(), plan.compression, plan.compression_level))
            first = taken.rest
            yield pieces, outbox.give_permit


class _Reader:
    """Rows of one chunk on their way into a compressor."""

    def __init__(self, answer: CopyOut, limit: int) -> None:
        self._answer = answer
        self._limit = limit
        self.rows = 0
        self.is_over = False

    def slabs(self) -> Iterator[Buffer]:
        """Yield rows until there are enough; each slab is valid until the next."""
        slab, total = Chunk(CHUNK_BYTES), 0
        while not self.is_over and total < self._limit:
            slab.filled = slab.rows = 0
            self.is_over = self._answer.read(slab)
            self.rows += slab.rows
            total += slab.filled
            with slab.content as content:
                yield content


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


def _returning(outbox: Outbox, buffer: bytearray, plan: ParallelDumpPlan) -> Close:
    # One enormous row must not be paid for until the end of the job.
    is_usual = len(buffer) <= 2 * plan.options.chunk_bytes + CHUNK_BYTES

    def close() -> None:
        outbox.give_permit(buffer if is_usual else None)

    return close
