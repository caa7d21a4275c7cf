"""Shell commands written with a house's own tools, flags and channels."""

from __future__ import annotations

from random import Random

from echolm_lab.tasks.domain import Domain, House
from echolm_lab.tasks.phrases import TOPICS
from echolm_lab.tasks.types import Slot, Subject

_FLAGS = {
    "host": "--host",
    "path": "--dir",
    "file": "--file",
    "date": "--since",
    "ticket": "--ref",
    "version": "--release",
    "number": "--batch",
    "days": "--keep",
    "region": "--zone",
    "time": "--at",
    "percent": "--above",
}


def _write(rng: Random, subject: Subject, slots: tuple[Slot, ...], house: House) -> str:
    thing = subject.thing.split()[-1]
    topic = subject.topic.replace(" ", "-")
    options = [f"{_FLAGS[slot.kind]} {slot.mark}" for slot in slots]
    options += [
        f"--{house('word')} {house('tag')}",
        f"--policy {house('code')}",
        rng.choice((f"--{house('word')}", f"--tier {house('word')}", f"--lane {house('letter')}")),
    ]
    rng.shuffle(options)
    main = f"{house('word')} {topic}-{thing} {' '.join(options)}"
    then = rng.choice(
        (
            f"relay '{house('channel')}' --tag {house('code')} --note {slots[0].mark}",
            f"{house('word')} log --book {house('letter')} --ref {slots[0].mark}",
            f"post {house('channel')} {house('tag')} {slots[0].mark}",
        )
    )
    last = rng.choice(
        (
            f"{house('word')} --seal {house('code')}",
            f"touch /run/{house('path')}.{house('letter')}",
            f"exit-guard {house('tag')} --code {house('letter')}",
        )
    )
    joins = rng.choice(((" && ", " && "), (" | ", " && "), (" && ", " || "), ("; ", " && ")))
    return f"{main}{joins[0]}{then}{joins[1]}{last}"


SHELL = Domain(
    name="shell",
    topics=TOPICS,
    things=(
        ("log archive", "logs"),
        ("database replica", "replica database"),
        ("certificate", "TLS certificate"),
        ("disk volume", "storage volume"),
        ("cron job", "scheduled job"),
        ("container image", "docker image"),
        ("message queue", "queue"),
        ("cache cluster", "cache"),
        ("secret key", "key"),
        ("load balancer", "balancer"),
        ("build pipeline", "CI pipeline"),
        ("mail relay", "mail server"),
        ("firewall rules", "firewall"),
        ("web server", "http server"),
        ("backup job", "backup"),
        ("user accounts", "accounts"),
        ("search index", "index"),
        ("metrics agent", "metrics collector"),
    ),
    actions=(
        ("restart", "reboot", "bounce"),
        ("snapshot", "take a snapshot of", "make a snapshot of"),
        ("rotate", "roll over", "rotate out"),
        ("delete", "remove", "purge"),
        ("resize", "grow", "expand"),
        ("inspect", "check", "look into"),
        ("migrate", "move", "relocate"),
        ("freeze", "lock", "pause"),
        ("restore", "recover", "bring back"),
        ("install", "deploy", "set up"),
        ("compress", "zip", "shrink"),
        ("download", "fetch", "pull"),
    ),
    phrase=(
        "{act} the {topic} {thing}",
        "{act} our {topic} {thing}",
        "{act} the {thing} of {topic}",
    ),
    slot_sets=(
        ("host", "date"),
        ("host", "path"),
        ("host", "ticket"),
        ("host", "days"),
        ("host", "version"),
        ("region", "number"),
        ("region", "time"),
        ("region", "file"),
        ("path", "days"),
        ("file", "ticket"),
        ("host",),
        ("path",),
        ("region", "ticket"),
        ("version", "time"),
    ),
    write=_write,
)
