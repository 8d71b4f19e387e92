"""Starting a server for good: as its own configuration says, by the service of this host that runs it."""

from __future__ import annotations

import os
from collections.abc import Callable

from pgkeep.datadir.instance import Instance, ServerStatus
from pgkeep.datadir.processes import own_unit
from pgkeep.datadir.service import Service, ServiceKind, start_server
from pgkeep.errors import RecoveryFailed


def start_as_configured(
    instance: Instance, service: Service, *, timeout_seconds: float, warn: Callable[[str], None]
) -> None:
    """
    Start a stopped server that is to stay, and wait until it is ready.

    Args:
        instance: Nothing of pgkeep's is left in its configuration.
        service: What ran the server of that directory before; the server is started directly where there is none.
        timeout_seconds: For the start.
        warn: Is told when the server was started otherwise than it will be the next time.

    Raises:
        RecoveryFailed: It does not come up, or its service does not start it.
    """
    if service.kind is not ServiceKind.NONE:
        try:
            start_server(service, instance.data_directory, timeout_seconds=timeout_seconds)
            return
        except RecoveryFailed as failure:
            # Only root may tell systemd to. The owner of the data directory may start its server all the same.
            if os.geteuid() == 0 or instance.status() is not ServerStatus.STOPPED:
                raise
            warn(f"{failure}: the server is started directly, and its service does not know of it")
    instance.start({}, is_final=True)
    instance.wait_for({ServerStatus.READY, ServerStatus.STANDBY}, timeout_seconds=timeout_seconds)
    unit = own_unit()
    if unit:
        warn(f"the server in {instance.data_directory} was started within {unit} and ends with it: give it a service")
