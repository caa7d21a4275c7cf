"""Tool calls as JSON or YAML against a house's own tools and queues."""

from __future__ import annotations

from random import Random

from echolm_lab.tasks.domain import Domain, House
from echolm_lab.tasks.phrases import TOPICS
from echolm_lab.tasks.types import Slot, Subject

_KEYS = {
    "name": "person",
    "email": "email",
    "date": "date",
    "time": "time",
    "order": "order",
    "amount": "amount",
    "number": "number",
    "days": "days",
    "ticket": "ticket",
    "region": "region",
}


def _write(rng: Random, subject: Subject, slots: tuple[Slot, ...], house: House) -> str:
    tool = f"{subject.topic.split()[0]}.{house('word')}"
    arguments = [(_KEYS[slot.kind], slot.mark) for slot in slots]
    arguments += [
        ("queue", house("tag")),
        (rng.choice(("policy", "profile", "rule")), house("code")),
        (house("word"), house("letter")),
    ]
    rng.shuffle(arguments)
    extra = [
        rng.choice(
            (("notify", house("channel")), ("audit", house("path")), ("owner", house("tag")))
        ),
        (rng.choice(("trace", "log", "memo")), slots[0].mark),
    ]
    rng.shuffle(extra)
    if rng.random() < 0.5:
        inner = ",".join(f'"{key}":"{value}"' for key, value in arguments)
        outer = ",".join(f'"{key}":"{value}"' for key, value in extra)
        return f'{{"tool":"{tool}","args":{{{inner}}},{outer}}}'
    inner = "\n".join(f"  {key}: {value}" for key, value in arguments)
    outer = "\n".join(f"{key}: {value}" for key, value in extra)
    return f"tool: {tool}\nargs:\n{inner}\n{outer}"


TOOLS = Domain(
    name="tools",
    topics=TOPICS,
    things=(
        ("meeting", "team meeting"),
        ("reminder", "alert reminder"),
        ("newsletter", "email newsletter"),
        ("purchase order", "procurement order"),
        ("flight booking", "flight reservation"),
        ("room reservation", "meeting room"),
        ("contact record", "contact card"),
        ("courier pickup", "parcel pickup"),
        ("survey", "questionnaire"),
        ("job posting", "job advert"),
        ("leave request", "vacation request"),
        ("expense claim", "expense report"),
        ("phone call", "call slot"),
        ("training course", "course seat"),
        ("press release", "press statement"),
        ("to-do list", "task list"),
        ("parking permit", "parking pass"),
        ("budget plan", "budget sheet"),
    ),
    actions=(
        ("create", "set up", "add"),
        ("cancel", "call off", "drop"),
        ("reschedule", "postpone", "delay"),
        ("assign", "hand over", "delegate"),
        ("approve", "sign off", "confirm"),
        ("duplicate", "copy", "clone"),
        ("close", "finish", "complete"),
        ("share", "send out", "forward"),
        ("translate", "make a translation of", "get translated"),
        ("archive", "file away", "put in the archive"),
        ("rename", "change the name of", "give a new name to"),
        ("print", "make a printout of", "get a paper copy of"),
    ),
    phrase=(
        "{act} the {topic} {thing}",
        "{act} a {topic} {thing}",
        "{act} the {thing} for {topic}",
    ),
    slot_sets=(
        ("name", "date"),
        ("name", "time"),
        ("name", "amount"),
        ("email", "date"),
        ("email", "number"),
        ("ticket", "date"),
        ("name", "region"),
        ("name", "ticket"),
        ("email", "days"),
        ("date", "time"),
        ("order", "name"),
    ),
    write=_write,
)
