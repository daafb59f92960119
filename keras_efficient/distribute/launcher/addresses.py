"""Addresses of workers: free ports of this machine, or the hosts of --hosts."""

import contextlib
import re
import socket

from keras_efficient._errors import InputError
from keras_efficient.distribute.launcher.job import check_at_least

#: [user@]host:port, except hosts that ssh would read as an option.
_ADDRESS = re.compile(r"(?:([^@\s-][^@\s]*)@)?(\[[0-9a-fA-F:.]+\]|[^-:@\s][^:@\s]*):(\d+)")


def free_addresses(workers: int, port: int | None = None) -> list[str]:
    """Return addresses on this machine.

    Args:
        workers: number of addresses.
        port: port of the first; the others follow. Default: None, any free ports.

    Returns:
        List of "127.0.0.1:port".

    Raises:
        InputError: there are no workers, or a port is out of range or in use.
    """
    check_at_least("--workers", workers, 1)
    if port is not None and not 0 < port <= 65536 - workers:
        raise InputError(
            f"--port must be from 1 to {65536 - workers}, as {workers} workers take one each. "
            f"Received: {port}. Choose another."
        )
    with contextlib.ExitStack() as stack:
        # All are kept open until the last is found, so that no port is chosen twice.
        sockets = [stack.enter_context(socket.socket()) for _ in range(workers)]
        for index, free in enumerate(sockets):
            # Ports that were in use until recently count as free.
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                free.bind(("127.0.0.1", 0 if port is None else port + index))
            except OSError as error:
                raise InputError(
                    f"The ports from --port on must be free. Received: {port}, but "
                    f"{(port or 0) + index} is not ({error.strerror}). Choose another, or omit "
                    "--port."
                ) from error
        return [f"127.0.0.1:{free.getsockname()[1]}" for free in sockets]


def parse_hosts(text: str) -> tuple[list[str], list[str | None]]:
    """Parse the addresses of --hosts, such as "a:1234,b:1234".

    Args:
        text: host:port, separated by commas. user@host:port logs in as that user; IPv6 addresses
            are written in brackets.

    Returns:
        `(addresses, hosts)`: the addresses for TF_CONFIG, and the destinations for ssh, None for
        this machine.

    Raises:
        InputError: an address has no valid port or occurs twice, there is none, or "localhost" is
            combined with another machine.
    """
    parts = [part.strip() for part in text.split(",")]
    addresses, hosts = [], []
    for part in parts:
        found = _ADDRESS.fullmatch(part)
        if not found or not 0 < int(found[3]) < 65536:
            raise InputError(
                "Each of --hosts must be host:port with a port from 1 to 65535. Received: "
                f"{part!r} in {text!r}. Use for example --hosts gpu1:12345,gpu2:12345."
            )
        user, host, port = found.groups()
        address = f"{host}:{int(port)}"
        if address in addresses:
            raise InputError(
                f"Every worker must have an address of its own. Received twice: {address}. Give "
                "workers on one machine different ports."
            )
        addresses.append(address)
        bare = host.strip("[]")
        hosts.append(None if is_this_machine(bare) else f"{user}@{bare}" if user else bare)
    loopback = [a for a in addresses if re.match(r"localhost:|127\.|\[::1\]", a, re.IGNORECASE)]
    if loopback and any(hosts):
        raise InputError(
            "Workers on several machines must be named as the others can reach them. Received: "
            f"{', '.join(loopback)}, which on each machine means that machine itself. Use this "
            f"machine's name or address, for example {socket.gethostname()}."
        )
    return addresses, hosts


def is_this_machine(host: str) -> bool:
    """Return whether a host is a name or an address of this machine."""
    own = {"localhost", "::1", socket.gethostname(), socket.getfqdn()}
    if host.lower() in {name.lower() for name in own}:
        return True
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return any(address.startswith("127.") or _is_local(address) for address in map(str, found))


def _is_local(address):
    """Return whether this machine can listen on an address, as only its own addresses allow."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
