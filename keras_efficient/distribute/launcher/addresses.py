"""Where workers listen: free ports of this machine, or the hosts that were named."""

import contextlib
import re
import socket

from keras_efficient._errors import InputError
from keras_efficient.distribute.launcher.job import at_least

#: [user@]host:port; nothing that ssh could take for an option.
_ADDRESS = re.compile(r"(?:([^@\s-][^@\s]*)@)?(\[[0-9a-fA-F:.]+\]|[^-:@\s][^:@\s]*):(\d+)")


def free_addresses(workers, port=None):
    """Addresses on this machine.

    Args:
        workers: how many.
        port: the first one's port, the others follow; default: any that are free.

    Returns:
        List of "127.0.0.1:port".

    Raises:
        InputError: fewer than one worker, or a port that does not exist or is taken.
    """
    at_least("--workers", workers, 1)
    if port is not None and not 0 < port <= 65536 - workers:
        raise InputError(
            f"--port must be from 1 to {65536 - workers}, as {workers} workers take one each. "
            f"Received: {port}. Choose another."
        )
    with contextlib.ExitStack() as stack:
        # All are held until the last is found: no port twice.
        sockets = [stack.enter_context(socket.socket()) for _ in range(workers)]
        for index, free in enumerate(sockets):
            # A port that was in use a minute ago is free.
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                free.bind(("127.0.0.1", 0 if port is None else port + index))
            except OSError as error:
                raise InputError(
                    f"The ports from --port on must be free. Received: {port}, and {port + index} "
                    f"is not ({error.strerror}). Choose another, or leave --port out."
                ) from error
        return [f"127.0.0.1:{free.getsockname()[1]}" for free in sockets]


def parse_hosts(text):
    """The addresses of "a:1234,b:1234", and where to reach each.

    Args:
        text: host:port, separated by commas; user@host:port logs in as that user; an IPv6
            address in brackets.

    Returns:
        `(addresses, hosts)`: what TF_CONFIG lists, and what ssh takes, None for this machine.

    Raises:
        InputError: no address, one without a valid port, one that occurs twice, or "localhost"
            beside another machine.
    """
    parts = [part.strip() for part in text.split(",")]
    addresses, hosts = [], []
    for part in parts:
        found = _ADDRESS.fullmatch(part)
        if not found or not 0 < int(found[3]) < 65536:
            raise InputError(
                "Each of --hosts must be host:port with a port from 1 to 65535. Received: "
                f"{part!r} in {text!r}. Write for example --hosts gpu1:12345,gpu2:12345."
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
    inward = [a for a in addresses if re.match(r"localhost:|127\.|\[::1\]", a, re.IGNORECASE)]
    if inward and any(hosts):
        raise InputError(
            "Workers on several machines must be named as the others can reach them. Received: "
            f"{', '.join(inward)}, which each machine takes for itself. Write this machine's name "
            f"or address, for example {socket.gethostname()}."
        )
    return addresses, hosts


def is_this_machine(host):
    """Whether a host is a name or an address of this machine."""
    own = {"localhost", "::1", socket.gethostname(), socket.getfqdn()}
    if host.lower() in {name.lower() for name in own}:
        return True
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return any(address.startswith("127.") or _is_bound_here(address) for address in found)


def _is_bound_here(address):
    """Only a machine's own addresses can be listened on."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
