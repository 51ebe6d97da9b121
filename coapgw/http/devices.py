"""The operations on devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coapgw.http import schemas
from coapgw.http.device_json import device_json
from coapgw.http.operations import Answered, Call, Operation, Parameter, Reply, json_reply
from coapgw.interfaces import IDeviceRegistry, ILastSeen, IWireBytes
from coapgw.model import Device, DeviceStatus

ICCID_SEGMENT = Parameter("iccid", schemas.ICCID, "the device")


class DeviceOperations:
    """What the API does with the registry; every call blocks."""

    def __init__(self, registry: IDeviceRegistry, last_seen: ILastSeen, wire_bytes: IWireBytes) -> None:
        """Work on *registry*."""
        self._wire_bytes = wire_bytes
        self._registry = registry
        self._last_seen = last_seen

    def operations(self) -> Sequence[Operation]:
        """Return the rows of the table."""
        page = Answered("devices in the order of their ICCIDs", schemas.DEVICE_PAGE)
        device = Answered("the device", schemas.DEVICE)
        one = (ICCID_SEGMENT,)
        many, single = "/v1/devices", "/v1/devices/{iccid}"
        return (
            Operation(
                *("GET", many, "listDevices", "List devices", self.list),
                answered={200: page},
                query=(
                    Parameter(
                        "limit",
                        {"type": "integer", "minimum": 1, "maximum": schemas.PAGE_LIMIT},
                        f"devices of a page; {schemas.PAGE_DEFAULT} if absent",
                    ),
                    Parameter("cursor", schemas.CURSOR, "next of the page before"),
                    Parameter("status", schemas.STATUS, "only these"),
                    Parameter(
                        "q", {"type": "string", "maxLength": 64}, "only with this in ICCID, IMSI, address or name"
                    ),
                ),
            ),
            Operation(
                *("POST", many, "addDevice", "Register a device", self.add),
                answered={201: Answered("it is registered", schemas.DEVICE)},
                refused=(409,),
                body=schemas.NEW_DEVICE,
            ),
            Operation(
                *("GET", single, "getDevice", "Show a device", self.get),
                answered={200: device},
                refused=(404,),
                path_parameters=one,
            ),
            Operation(
                *("PATCH", single, "changeDevice", "Change a device", self.change),
                answered={200: device},
                refused=(404, 409),
                path_parameters=one,
                body=schemas.DEVICE_CHANGES,
            ),
            Operation(
                *("DELETE", single, "removeDevice", "Forget a device, and its key", self.remove),
                answered={204: Answered("it is gone")},
                refused=(404,),
                path_parameters=one,
            ),
        )

    def list(self, call: Call) -> Reply:
        """Return a page; one device more than asked for is read, to know whether there is a next."""
        query = call.query
        limit: int = query.get("limit", schemas.PAGE_DEFAULT)
        after = _iccid_of(query["cursor"]) if "cursor" in query else None
        found = self._registry.list(limit + 1, after, query.get("status"), query.get("q"))
        shown = found[:limit]
        seen = self._last_seen.of(shown)
        page: dict[str, Any] = {"items": [device_json(device, seen.get(device.iccid)) for device in shown]}
        if len(found) > limit:
            page["next"] = _cursor_of(shown[-1].iccid)
        return json_reply(page)

    def add(self, call: Call) -> Reply:
        """Register a device."""
        fields: dict[str, str | None] = call.body
        device = self._registry.add(
            Device(
                iccid=str(fields["iccid"]),
                imsi=fields.get("imsi"),
                ip=fields.get("ip"),
                name=fields.get("name"),
                status=DeviceStatus(fields.get("status", DeviceStatus.ACTIVE.value)),
            )
        )
        return json_reply(device_json(device), 201, ("Location", f"/v1/devices/{device.iccid}"))

    def get(self, call: Call) -> Reply:
        """Show a device."""
        return self._shown(self._registry.get(call.path["iccid"]))

    def change(self, call: Call) -> Reply:
        """Change a device."""
        return self._shown(self._registry.update(call.path["iccid"], dict(call.body)))

    def remove(self, call: Call) -> Reply:
        """Forget a device."""
        self._registry.remove(call.path["iccid"])
        return Reply(204)

    def _shown(self, device: Device) -> Reply:
        seen = self._last_seen.of([device]).get(device.iccid)
        return json_reply(device_json(device, seen, self._wire_bytes.of(device.iccid)))


def _cursor_of(iccid: str) -> str:
    """Return a cursor that goes on behind *iccid*; not for others to read, so that it may change."""
    return f"c{iccid}"


def _iccid_of(cursor: str) -> str:
    """Return the ICCID to go on behind."""
    return cursor[1:]
