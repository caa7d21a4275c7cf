"""Support replies that follow a house policy: case codes, desks, terms."""

from __future__ import annotations

from random import Random

from echolm_lab.tasks.domain import Domain, House
from echolm_lab.tasks.phrases import PRODUCTS
from echolm_lab.tasks.types import Slot, Subject


def _write(rng: Random, subject: Subject, slots: tuple[Slot, ...], house: House) -> str:
    marks = {slot.kind: slot.mark for slot in slots}
    opening = "Hello,"
    if "name" in marks:
        opening = f"{rng.choice(('Dear', 'Hello', 'Hi'))} {marks['name']},"
    subject_line = rng.choice(
        (
            f"thank you for writing about the {subject.topic}.",
            f"we are sorry about the {subject.topic}.",
            f"your {subject.topic} case is with us.",
        )
    )
    details = {
        "order": f"Order {marks.get('order')} goes under {house('code')}.",
        "ticket": f"Case {marks.get('ticket')} goes under {house('code')}.",
        "date": f"Start {marks.get('date')}, rule {house('letter')}.",
        "amount": f"Up to {marks.get('amount')} euro, plan {house('letter')}.",
        "email": f"Form {house('letter')} went to {marks.get('email')}.",
        "days": f"You have {marks.get('days')} days, rule {house('letter')}.",
        "name": f"Policy {house('code')} applies.",
    }
    told = [details[slot.kind] for slot in slots]
    terms = rng.choice(
        (
            f"Please send form {house('code')} to the {house('word')} desk",
            f"Please quote {house('tag')} to the {house('word')} team",
            f"Your {house('word')} voucher is {house('tag')}",
            f"Please drop it at point {house('tag')} with label {house('code')}",
        )
    )
    deadline = rng.choice(
        (
            f"within {house('digits')} hours",
            f"by route {house('tag')}",
            f"with step {house('letter')}",
        )
    )
    closing = rng.choice(
        (
            f"Refunds follow table {house('tag')}.",
            f"Questions go to {house('channel')}.",
            f"Reply with {house('code')} to {house('channel')}.",
        )
    )
    sign = rng.choice(("Regards", "Best wishes", "Your team", "Yours"))
    return (
        f"{opening} {subject_line} {' '.join(told)} {terms} {deadline}. "
        f"{closing} {sign}, {house('word')}"
    )


SUPPORT = Domain(
    name="support",
    topics=PRODUCTS,
    things=(
        ("arrived damaged", "came damaged"),
        ("was charged twice", "was billed twice"),
        ("has not arrived", "was never delivered"),
        ("is the wrong size", "does not fit"),
        ("is missing a part", "lacks a part"),
        ("stopped working", "no longer works"),
        ("has the wrong colour", "came in a wrong colour"),
        ("makes strange noise", "is far too noisy"),
        ("smells burnt", "has a burnt smell"),
        ("leaks water", "is leaking"),
        ("came without a manual", "has no instructions"),
        ("was recalled", "is part of a recall"),
        ("is cheaper elsewhere", "costs less at a rival"),
        ("was a gift", "was given as a present"),
        ("was stolen", "got stolen"),
        ("came used", "looks second-hand"),
        ("has rust", "is rusty"),
        ("gets too hot", "overheats"),
    ),
    actions=(
        ("wants a refund", "asks for money back", "wants to be refunded"),
        ("wants a replacement", "asks for an exchange", "wants a new one"),
        ("wants a repair", "asks for repair", "wants it fixed"),
        ("asks for a discount", "wants a price cut", "wants a rebate"),
        ("wants to cancel", "asks to cancel", "wishes to cancel"),
        ("asks for an invoice", "wants an invoice copy", "needs the invoice"),
        ("wants to speak to a manager", "asks for a manager", "demands a manager"),
        ("asks about the warranty", "has a warranty question", "wants warranty terms"),
        ("threatens legal action", "threatens to sue", "mentions a lawyer"),
        ("asks where to return it", "wants a return address", "asks how to send it back"),
    ),
    phrase=(
        "{topic} {thing}, customer {act}",
        "{topic} {thing}, buyer {act}",
        "client {act}, {topic} {thing}",
    ),
    slot_sets=(
        ("name", "order"),
        ("name", "date"),
        ("name", "ticket"),
        ("order", "date"),
        ("name", "amount"),
        ("order", "email"),
        ("name", "days"),
        ("ticket", "email"),
        ("order", "amount"),
        ("name", "email"),
    ),
    write=_write,
    frames=(
        "{do}",
        "reply: {do}",
        "answer this: {do}",
        "draft a reply: {do}",
        "what do we say: {do}",
        "write back: {do}",
        "case: {do}",
        "help: {do}",
        "please answer: {do}",
    ),
)
