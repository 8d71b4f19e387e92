"""
One conversation, from ``Hello`` to ``T``.

::

    Hello            ->  Hello Bacula
    Job ... F        ->  F
    Params ... F     ->  F
    [RESTOREOPTIONS ->  OK]                extended only
    BackupStart | EstimateStart | ListingStart | QueryStart | RestoreStart
                     ->  F                  the verb's own part follows
    END, or FINISH   ->  F
    T

Each verb is a module with ``run(session)``, which is called when its start command has been read and not yet answered,
and which returns when its own part is over.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, replace

from pgkeep import __version__
from pgkeep.bacula.channel import Channel
from pgkeep.bacula.ring import Ring
from pgkeep.errors import BridgeError, ChannelClosed, WireError
from pgkeep.settings import (
    PLUGIN_LINE,
    Assignment,
    PluginLine,
    Resolved,
    assignments,
    find,
    read_config,
    resolve,
)
from pgkeep.settings.unbuilt import NOT_BUILT
from pgkeep.wire.job_block import (
    EXTENDED_API,
    HELLO_ANSWER,
    PLUGIN_NAME,
    Hello,
    JobBlock,
    parse_hello,
    parse_job_block,
)
from pgkeep.wire.packet import PacketKind

MAX_RESTORE_OPTIONS_BYTES = 1 << 20

_VERBS = {
    "BackupStart": "pgkeep.bacula.backup",
    "EstimateStart": "pgkeep.bacula.estimate",
    "ListingStart": "pgkeep.bacula.listing",
    "QueryStart": "pgkeep.bacula.query",
    "RestoreStart": "pgkeep.bacula.restore",
}

_RESERVED = frozenset({"listing", "query", "accurate", "estimate"})
"""Words that a bridge adds to those of the Plugin line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """
    What the opening said.

    Attributes:
        channel: The conversation.
        hello: Who speaks.
        job: The job.
        words: The Plugin line's words, name and value, in order.
        listing: The path that ``.ls`` asks for; None when nobody does.
        query: What ``.query`` asks for; None when nobody does.
        restore_options: What was chosen in the restore menu: text of a configuration file; empty for nothing.
    """

    channel: Channel
    hello: Hello
    job: JobBlock
    words: tuple[tuple[str, str | None], ...] = ()
    listing: str | None = None
    query: str | None = None
    restore_options: str = ""

    def assignments(self) -> list[Assignment]:
        """Return the Plugin line's words as assignments."""
        return assignments(self.words, PLUGIN_LINE)

    def settings(self, verb: str, further: list[Assignment] | None = None) -> Resolved:
        """
        Return what holds for this line, and put its warnings into the job's log.

        Args:
            verb: The verb that will use it.
            further: Restore options and their like.

        Raises:
            SettingsError, UsageError: Something that was written cannot be.
        """
        written = [*self.assignments(), *(further or [])]
        settings = resolve(written, verb=verb, config=read_config(self.config_path()))
        for warning in settings.warnings:
            self.channel.warn(warning)
        for name in sorted(NOT_BUILT.intersection(settings.given)):
            self.channel.warn(f"{name} is set, but this version of pgkeep does not act on it")
        self.channel.limit_silence(settings.number("timeout"))
        if settings.number("debug"):
            self._explain(settings)
        return settings

    def config_path(self) -> str | None:
        """Return the configuration file that the Plugin line or the bridge names; None for the default one."""
        for name, value in self.words:
            parameter = find(name)
            if parameter is not None and parameter.name == "config" and value:
                return value
        return os.environ.get("PGKEEP_CONFIG") or None

    def _explain(self, settings: Resolved) -> None:
        self.channel.say(
            f"debug: pgkeep {__version__}, API {self.hello.api}, daemon {self.job.fd_version or 'unknown'}"
        )
        self.channel.say(
            f"debug: job {self.job.name}, type {self.job.type}, level {self.job.level or '-'}, "
            f"previous {self.job.previous or '-'}, accurate {int(self.job.is_accurate)}, "
            f"ring {self.job.ring or 'none'}"
        )
        if settings.number("debug") > 1:
            for name, value, where in settings.explain():
                if settings.is_given(name):
                    self.channel.say(f"debug: {name}={value} {where}")


def converse(channel: Channel) -> None:
    """Hold one conversation to its end."""
    hello = parse_hello(channel.expect_command())
    if hello.is_extended:
        channel.extend()
    elif hello.plugin == PLUGIN_NAME and hello.api.isdigit() and int(hello.api) > int(EXTENDED_API):
        raise BridgeError(
            f"the plugin speaks version {hello.api} of the protocol, this pgkeep {EXTENDED_API}",
            hint="install plugin and backend of the same version of pgkeep",
        )
    channel.command(HELLO_ANSWER)
    channel.start_heart()
    job = parse_job_block(_block(channel, "Job"))
    if job.ring:
        if not hello.is_extended:
            raise WireError("the Job block has a ring, but the plugin did not agree to pgkeep's extensions")
        channel.attach_ring(Ring.from_key(job.ring))
    channel.end()
    session = _with_words(Session(channel=channel, hello=hello, job=job), _block(channel, "Params"))
    channel.end()
    command = channel.expect_command()
    if command.startswith("RESTOREOPTIONS:") and hello.is_extended:
        content = bytearray()
        for piece in channel.data():
            content += piece
            if len(content) > MAX_RESTORE_OPTIONS_BYTES:
                raise WireError(f"restore options of more than {MAX_RESTORE_OPTIONS_BYTES} bytes")
        session = replace(session, restore_options=content.decode("utf-8", "surrogateescape"))
        channel.command("OK")
        command = channel.expect_command()
    if command not in _VERBS:
        raise WireError(f'expected one of {", ".join(_VERBS)}, found "{command[:80]}"')
    importlib.import_module(_VERBS[command]).run(session)
    _part(channel)


def expect_end_of_job(channel: Channel) -> None:
    """Take the END that must come next; the caller answers it with F."""
    command = channel.expect_command()
    if command != "END":
        raise WireError(f'expected END, found "{command[:80]}"')


def _part(channel: Channel) -> None:
    """Take what ends the conversation: T, or the end of the pipe."""
    try:
        packet = channel.receive()
        while packet.kind is PacketKind.COMMAND and packet.text == "END":
            channel.end()
            packet = channel.receive()
    except ChannelClosed:
        return
    if packet.kind is not PacketKind.TERMINATE:
        raise channel.unexpected(packet, "T")


def _block(channel: Channel, name: str) -> list[str]:
    """Return the lines of a block that begins with the command *name* and ends with F."""
    command = channel.expect_command()
    if command != name:
        raise WireError(f'expected the {name} block, found "{command[:80]}"')
    lines = []
    while (packet := channel.receive()).kind is PacketKind.COMMAND:
        lines.append(packet.text)
    if packet.kind is not PacketKind.END:
        raise channel.unexpected(packet, f"a line of the {name} block or its end")
    return lines


def _with_words(session: Session, lines: list[str]) -> Session:
    """Return *session* with what the Params block says."""
    words: list[tuple[str, str | None]] = []
    reserved: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if name.lower() in _RESERVED:
            reserved[name.lower()] = value
        else:
            words.append((name, value if equals else None))
    job = session.job
    if reserved.get("accurate", "0") not in ("", "0"):
        # Plain bridges say it here.
        job = replace(job, is_accurate=True)
    return replace(
        session,
        job=job,
        words=PluginLine(PLUGIN_NAME, tuple(words)).words,
        listing=reserved.get("listing"),
        query=reserved.get("query"),
    )
