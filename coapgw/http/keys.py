"""The operations on pre-shared keys: one at a time, and thousands in a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coapgw.http import schemas
from coapgw.http.device_json import time_text
from coapgw.http.devices import ICCID_SEGMENT
from coapgw.http.jobs import JobState, KeyJobs
from coapgw.http.operations import LARGE_BODY_BYTES, Answered, Call, Operation, Parameter, Reply, json_reply
from coapgw.http.refusals import Mistake, RequestInvalid
from coapgw.http.schema import SHOWN_MISTAKES
from coapgw.interfaces import IDeviceKeys
from coapgw.model import DeviceKey, KeyFormat, WrittenKey

_DEVICE = "/v1/integrate/devices/{iccid}"
_JOBS = "/v1/integrate/devices/psk/jobs"


class KeyOperations:
    """What the API does with keys; every call blocks."""

    def __init__(self, keys: IDeviceKeys, jobs: KeyJobs) -> None:
        """Set and show *keys*, many at once through *jobs*."""
        self._keys = keys
        self._jobs = jobs

    def operations(self) -> Sequence[Operation]:
        """Return the rows of the table."""
        key = Answered("the key", schemas.KEY)
        one = (ICCID_SEGMENT,)
        return (
            Operation(
                *("POST", f"{_DEVICE}/psk", "setKey", "Set the pre-shared key of a device", self.set),
                answered={200: key},
                refused=(404,),
                path_parameters=one,
                body=schemas.NEW_KEY,
                aliases=(f"{_DEVICE}/presharedkey",),
            ),
            Operation(
                *("GET", f"{_DEVICE}/psk/COAP", "getKey", "Show the pre-shared key of a device", self.get),
                answered={200: key},
                refused=(404,),
                path_parameters=one,
                aliases=(f"{_DEVICE}/presharedkey/COAP",),
            ),
            Operation(
                *("POST", _JOBS, "startKeyJob", f"Set up to {schemas.KEYS_AT_ONCE} keys", self.start_job),
                answered={202: Answered("they will be set", schemas.KEY_JOB)},
                body=schemas.NEW_KEY_JOB,
                body_limit=LARGE_BODY_BYTES,
            ),
            Operation(
                *("GET", _JOBS, "listKeyJobs", "List jobs, the newest first", self.list_jobs),
                answered={200: Answered("the jobs that are known", schemas.KEY_JOBS)},
            ),
            Operation(
                *("GET", f"{_JOBS}/{{id}}", "getKeyJob", "Show a job and which keys it could not set", self.get_job),
                answered={200: Answered("the job", schemas.KEY_JOB)},
                refused=(404,),
                path_parameters=(Parameter("id", {"type": "string"}, "the job"),),
            ),
        )

    def set(self, call: Call) -> Reply:
        """Set a key; it is the user's from now on."""
        wanted = call.body
        return json_reply(key_json(self._keys.set(call.path["iccid"], wanted["secretKey"], _format_of(wanted))))

    def get(self, call: Call) -> Reply:
        """Show a key."""
        return json_reply(key_json(self._keys.get(call.path["iccid"])))

    def start_job(self, call: Call) -> Reply:
        """Have many keys set in the background."""
        keys = call.body["keys"]
        _expect_each_once([key["deviceId"] for key in keys])
        wanted = [WrittenKey(key["deviceId"], key["secretKey"], _format_of(key)) for key in keys]
        state = self._jobs.submit(wanted)
        return json_reply(_with_errors(state), 202, ("Location", f"{_JOBS}/{state.id}"))

    def list_jobs(self, call: Call) -> Reply:
        """Show every job that is known, without what went wrong in it."""
        return json_reply({"items": [_summary(state) for state in self._jobs.states()]})

    def get_job(self, call: Call) -> Reply:
        """Show one job."""
        return json_reply(_with_errors(self._jobs.state(call.path["id"])))


def key_json(key: DeviceKey) -> dict[str, str]:
    """Return a key as JSON shows it, written as it was set (PRODUCT section 8)."""
    return {
        "deviceId": key.iccid,
        "identity": key.iccid,
        "secretKey": key.written,
        "createdAt": time_text(key.created_at),
        "updatedAt": time_text(key.updated_at),
        "protocol": "COAP",
        "format": key.format.value,
    }


def _format_of(wanted: Mapping[str, str]) -> KeyFormat:
    return KeyFormat(wanted.get("format", KeyFormat.STRING.value))


def _expect_each_once(iccids: Sequence[str]) -> None:
    """Raise RequestInvalid if a device is there twice: which key it would get is nobody's guess."""
    first: dict[str, int] = {}
    repeated = [(place, iccid) for place, iccid in enumerate(iccids) if first.setdefault(iccid, place) != place]
    if repeated:
        raise RequestInvalid(
            Mistake(f"keys[{place}].deviceId", f"is the device of keys[{first[iccid]}]")
            for place, iccid in repeated[:SHOWN_MISTAKES]
        )


def _summary(state: JobState) -> dict[str, Any]:
    return {
        "id": state.id,
        "status": state.status.value,
        "createdAt": time_text(state.created_at),
        "updatedAt": time_text(state.updated_at),
        "total": state.total,
        "succeeded": state.succeeded,
        "failed": len(state.failures),
    }


def _with_errors(state: JobState) -> dict[str, Any]:
    errors = [{"deviceId": failure.iccid, "message": failure.message} for failure in state.failures]
    return {**_summary(state), "errors": errors}
