"""Who can: whether a device may run a function's calls, and if not, why (in words)."""

import re

from forage_controller.core.state import Device
from forage_wire.messages import DeviceCapabilities, Header

__all__ = ["minor_of", "why_not"]

_RESOURCE = re.compile(r"([A-Za-z0-9_.-]+)\s*>=\s*([0-9]+)")


def minor_of(python: str) -> int:
    """The minor of "3.11"; -1 where there is none."""
    return int(python[2:]) if python.startswith("3.") else -1


def why_not(device: Device, header: Header) -> str:
    """Why a device may not run calls with this header; "" if it may (busy or not).

    What is asked: alive and taking work, named by the task if that names any, its Python can
    run the code, it has what the task requires, and its packets hold the header.
    """
    if device.verdict == "dead":
        return f"dead ({device.why})"
    if device.state == "draining":
        return "draining: it takes no new work"
    if device.state != "online":
        return device.state
    capabilities = device.capabilities
    if capabilities is None:
        return "its capabilities are not known yet"
    if not device.verified:
        return "it has not answered yet"
    if not capabilities.slots:
        return "it has no slots"
    if header.options.devices and device.name not in header.options.devices:
        return "not one of the devices asked for"
    if header.options.exclusive and capabilities.profile == "mcu":
        return "a microcontroller keeps no leases, which exclusive calls need"
    if header.function in device.lacks:
        return "it refused this function as unknown"
    return _why_not_code(capabilities, header) or _why_not_required(capabilities, header)


def _why_not_code(capabilities: DeviceCapabilities, header: Header) -> str:
    if header.form == "named":
        name, version = header.function if isinstance(header.function, tuple) else ("", "")
        if name not in capabilities.functions:
            return f"it has no function {name}"
        if version and capabilities.functions[name] != version:
            return f"it has {name} {capabilities.functions[name]}, not {version}"
        return ""
    if capabilities.profile == "mcu":
        return "a microcontroller runs named functions only"
    if header.form == "pickle" and capabilities.python != header.python:
        return (
            f"it runs Python {capabilities.python or 'unknown'} and the function is pickled "
            f"for {header.python}"
        )
    if header.form == "source" and minor_of(capabilities.python) < header.python_min:
        return (
            f"it runs Python {capabilities.python or 'unknown'} and the source needs "
            f"3.{header.python_min}"
        )
    return ""


def _why_not_required(capabilities: DeviceCapabilities, header: Header) -> str:
    for wish in header.options.requires:
        match = _RESOURCE.fullmatch(wish)
        if match:
            name, least = match[1], int(match[2])
            has = _amount(capabilities, name)
            if has < least:
                return f"it has {name} {has}, less than {least}"
            continue
        name, _, value = wish.partition("=")
        known = _label(capabilities, name.strip())
        if known is None:
            return f"it has no label {name.strip()}"
        if value and known != value.strip():
            return f"its label {name.strip()} is {known}, not {value.strip()}"
    return ""


def _amount(capabilities: DeviceCapabilities, name: str) -> int:
    if name in capabilities.resources:
        return capabilities.resources[name]
    built_in = {
        "memory_bytes": capabilities.memory_bytes,
        "memory_mb": capabilities.memory_bytes // 1_000_000,
        "cores": capabilities.cores,
        "slots": capabilities.slots,
        "network_bytes_s": capabilities.network_bytes_s,
    }
    return built_in.get(name, 0)


def _label(capabilities: DeviceCapabilities, name: str) -> str | None:
    if name in capabilities.labels:
        return capabilities.labels[name]
    if name in capabilities.resources:
        return str(capabilities.resources[name])
    built_in = {
        "arch": capabilities.arch,
        "os": capabilities.os,
        "python": capabilities.python,
        "profile": capabilities.profile,
        "network": capabilities.network,
    }
    return built_in.get(name) or None
