"""What the front door calls, for its tests: ``selection``, ``router`` and LLMs that do as told.

The text of a client's request says, as JSON, how each of them behaves (``tests/front_door.py``
writes it). What they see is noted in ``$FRONT_DOOR_TEST/events.jsonl``, a line an event; ``hang``
waits until there is a file ``$FRONT_DOOR_TEST/open``.
"""

import json
import os
import struct
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

FOLDER = Path(os.environ.get("FRONT_DOOR_TEST", "."))
SETTINGS = {
    "max_in_flight": 4096,
    "selections_in_flight": 2,
    "selection_timeout_ms": 5_000,
    "request_timeout_ms": 60_000,
    "stream_interval_ms": 40.0,
}
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def note(**event):
    if "quiet" in os.environ.get("FRONT_DOOR_NOTES", ""):
        return
    line = json.dumps(event) + "\n"
    descriptor = os.open(FOLDER / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def wait_open(until=lambda: False):
    while not (FOLDER / "open").exists() and not until():
        time.sleep(0.005)


def values(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def text(value):
    return value.decode() if isinstance(value, bytes) else value


def packed_text(value):
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<I", len(raw)) + raw


def packed_tensor(name, datatype, data, size=1):
    shape = struct.pack("<Iq", 1, size)
    return packed_text(name) + packed_text(datatype) + shape + packed_text(data)


def pack_plan(plan):
    """A plan as the front door reads it; see ``echolm/router/packed.py``."""
    settings = {**SETTINGS, **plan.get("settings", {})}
    stored = "stored" in plan
    status = plan.get("status", 0)
    llm = "stored" if stored else plan.get("llm", "alpha")
    model = "" if stored or status else llm
    ids = plan.get("example_ids", [1, 2])
    stop = plan.get("stop", [])
    script = json.dumps(plan.get("script", {}))
    inputs = [
        packed_tensor("text_input", "BYTES", packed_text(script)),
        packed_tensor("streaming", "BOOL", bytes([plan["streaming"]])),
    ]
    reason, count = ("stop", 0) if stored else ("", -1)
    rules = {
        "finish_reason": 1,
        "num_input_tokens": 1,
        "num_output_tokens": 1,
        **plan.get("rules", {}),
    }
    outputs = [
        ("llm", "BYTES", packed_text(llm)),
        ("example_ids", "INT64", struct.pack(f"<{len(ids)}q", *ids)),
        ("predicted_quality", "FP32", struct.pack("<f", plan.get("quality", 0.5))),
        ("solicit_feedback", "BOOL", bytes([plan.get("solicit", False)])),
        ("feedback_token", "BYTES", packed_text("token " + plan["request_id"])),
        ("degraded", "BYTES", packed_text(plan.get("degraded", ""))),
        ("finish_reason", "BYTES", packed_text(reason)),
        ("num_input_tokens", "INT32", struct.pack("<i", count)),
        ("num_output_tokens", "INT32", struct.pack("<i", count)),
    ]
    outputs += [("logprobs", "BYTES", packed_text(""))] if "logprobs" in rules else []
    parts = [
        struct.pack("<ii", status, plan.get("token_limit", -1)),
        struct.pack("<iiiid", *settings.values()),
        struct.pack("<BB6x", plan.get("cumulative", False), plan.get("gathers", False)),
        packed_text("" if status else plan["request_id"]),
        *map(packed_text, (llm, model, plan.get("stored", plan.get("refusal", "")))),
        struct.pack("<I", len(stop)),
        *map(packed_text, stop),
        struct.pack("<I", len(inputs)),
        *inputs,
        struct.pack("<I", len(outputs)),
    ]
    for name, datatype, data in outputs:
        size = len(ids) if name == "example_ids" else 1
        parts += [bytes([rules.get(name, 0)]), packed_tensor(name, datatype, data, size)]
    return b"".join(parts)[: plan.get("cut")]


def outputs(packed):
    """The output tensor of packed plans."""
    array = np.empty((len(packed), 1), dtype=np.object_)
    array[:, 0] = packed
    return [pb_utils.Tensor("plan", array)]


class Planner:
    """``selection`` or ``router``: plans for the rows of requests, and reports."""

    def __init__(self, name):
        self.name = name

    def answer(self, request):
        if values(request, "report") is not None:
            return self.take_reports(request)
        stream = values(request, "stream")
        degraded = values(request, "retrieval_degraded")
        rows = []
        for n, raw in enumerate(values(request, "text_input")[:, 0]):
            row = json.loads(text(raw))
            row["streaming"] = stream is not None and bool(stream[n, 0])
            row["note"] = "" if degraded is None else text(degraded[n, 0])
            rows.append(row)
        note(
            model=self.name,
            event="plan",
            names=[row.get("name", "") for row in rows],
            inputs=sorted(t.name() for t in request.inputs()),
            degraded=[row["note"] for row in rows],
        )
        behaviour = [row.get(self.name, "") for row in rows]
        if "hang" in behaviour:
            wait_open()
        if "error" in behaviour:
            raise pb_utils.TritonModelException(f"no {self.name} today")
        if "nothing" in behaviour:
            return []
        return outputs([pack_plan(self.first(row)) for row in rows])

    def first(self, row):
        plan, *others = row.get("plans") or [{}]
        request_id = uuid.uuid4().hex
        if others:
            rest = {"plans": others, "streaming": row["streaming"]}
            (FOLDER / "plans").mkdir(exist_ok=True)
            (FOLDER / "plans" / request_id).write_text(json.dumps(rest))
        if not plan.get("status"):
            note(model=self.name, event="id", request_id=request_id, name=row.get("name", ""))
        plan = {"degraded": row["note"], **plan}
        return {**plan, "request_id": request_id, "streaming": row["streaming"]}

    def take_reports(self, request):
        found = []
        for raw in values(request, "report")[:, 0]:
            report = unpack_report(raw)
            note(model=self.name, event="report", **report)
            if report["kind"] == 1:
                plan = {"request_id": report["request_id"], "streaming": False}
                found.append(pack_plan({**plan, **self.next(report)}))
            else:
                found.append(b"")
        return outputs(found)

    def next(self, report):
        file = FOLDER / "plans" / report["request_id"]
        if not file.exists():
            message = f"[unavailable] no LLM answered: {report['reason']}"
            return {"status": 4, "refusal": message}
        row = json.loads(file.read_text())
        plan, *others = row["plans"]
        if others:
            file.write_text(json.dumps({**row, "plans": others}))
        else:
            file.unlink()
        if plan.get("router") == "error":
            raise pb_utils.TritonModelException("no router today")
        if plan.get("router") == "hang":
            wait_open()
        return {"streaming": row["streaming"], "degraded": f"{report['llm']} unavailable", **plan}


def unpack_report(raw):
    at = 0

    def take(form):
        nonlocal at
        (value,) = struct.unpack_from("<" + form, raw, at)
        at += struct.calcsize("<" + form)
        return value

    def take_text():
        nonlocal at
        size = take("I")
        at += size
        return raw[at - size : at].decode("utf-8", "surrogateescape")

    report = {"kind": take("B")}
    for name in ("request_id", "llm", "text"):
        report[name] = take_text()
    report["finish_reason"] = take_text()[4:]  # a tensor's contents, its length in front
    for name in ("num_input_tokens", "num_output_tokens"):
        contents = take_text().encode("utf-8", "surrogateescape")
        report[name] = struct.unpack("<i", contents)[0] if contents else None
    for name in ("selection_s", "generation_s", "first_token_s", "total_s"):
        report[name] = take("d")
    report["refused"] = take("B")
    report["reason"] = take_text()
    assert at == len(raw)
    return report


class LLM:
    """Answers a script: see the keys that ``answer`` reads."""

    def __init__(self, name, decoupled):
        self.name = name
        self.decoupled = decoupled

    def answer(self, request, sender):
        request_id = request.request_id()
        script = json.loads(text(values(request, "text_input")[0]))
        streaming = bool(values(request, "streaming")[0]) and self.decoupled
        parameters = json.loads(request.parameters() or "{}")
        note(model=self.name, event="begin", request_id=request_id, parameters=parameters)
        cancelled = sender.is_cancelled
        pieces = script.get("pieces", ["hello"])
        counts = script.get("counts", [3, len(pieces)])
        for n, piece in enumerate(pieces if streaming else [None]):
            if script.get("hang") == n:
                wait_open(cancelled)
            if script.get("fail") == n:
                status = getattr(pb_utils.TritonError, script.get("status", "INTERNAL"))
                error = pb_utils.TritonError(script.get("message", "out of memory"), status)
                sender.send(pb_utils.InferenceResponse([], error), FINAL)
                note(model=self.name, event="failed", request_id=request_id)
                return
            delay = script.get("delay_s", 0)
            if delay:
                time.sleep(delay)
            if cancelled():
                note(model=self.name, event="cancelled", request_id=request_id)
                error = pb_utils.TritonError("stopped", pb_utils.TritonError.CANCELLED)
                sender.send(pb_utils.InferenceResponse([], error), FINAL)
                return
            if script.get("silent"):
                continue
            whole = not streaming or n + 1 == len(pieces)
            if piece is None:
                piece = pieces[-1] if script.get("cumulative") else "".join(pieces)
            tensors = [pb_utils.Tensor("text_output", np.array([piece.encode()], np.object_))]
            reason = script.get("reason", "stop") if whole else "None"
            tensors.append(
                pb_utils.Tensor("finish_reason", np.array([reason.encode()], np.object_))
            )
            if script.get("counts", True):
                told = 1 if script.get("adds") and streaming else counts[1]
                for name, count in (("input", counts[0]), ("output", told)):
                    tensors.append(
                        pb_utils.Tensor(f"num_{name}_tokens", np.array([count], np.int32))
                    )
            if "ids" in script:
                ids = np.array(script["ids"][n], np.int64)
                tensors.append(pb_utils.Tensor("example_ids", ids))
            if "json" in script:
                made = script["json"][n] if streaming else script["json"][0]
                tensors.append(pb_utils.Tensor("logprobs", np.array([made.encode()], np.object_)))
            sender.send(pb_utils.InferenceResponse(tensors), 0 if self.decoupled else FINAL)
        if self.decoupled:
            sender.send(flags=FINAL)
        note(model=self.name, event="end", request_id=request_id)


class TritonPythonModel:
    """One of them; each request in a thread of its own, so that one that hangs delays no other."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        # `planner` is the only step of the ensemble `selection`.
        name = {"planner": "selection"}.get(args["model_name"], args["model_name"])
        decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        planner = name in ("selection", "router")
        self.part = Planner(name) if planner else LLM(name, decoupled)
        self.planner = planner

    def execute(self, requests):
        for request in requests:
            threading.Thread(
                target=self.serve, args=(request, request.get_response_sender())
            ).start()

    def serve(self, request, sender):
        try:
            if not self.planner:
                self.part.answer(request, sender)
                return
            sender.send(pb_utils.InferenceResponse(self.part.answer(request)), FINAL)
        except Exception as error:
            sender.send(pb_utils.InferenceResponse([], pb_utils.TritonError(str(error))), FINAL)
