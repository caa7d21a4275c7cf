"""A grader for tests of learning from past traffic, and the log that it knows."""

from __future__ import annotations

import json
from pathlib import Path

TOPICS = (
    "parcels",
    "invoices",
    "passwords",
    "holidays",
    "printers",
    "salaries",
    "parking",
    "lunch",
)


def answer(topic: str) -> str:
    return f"The people of {topic} know, ask them."


def request(topic: str, number: int) -> str:
    asked = ("Who can help me with {}", "I have trouble with {}", "A question about {}")[number % 3]
    return f"{asked.format(topic)}, my number is {number}?"


def grade(request: str, answer_text: str, reference: str | None) -> float:
    """1 for an answer that says what it must; an echoed prompt says it if an example does."""
    topic = next(topic for topic in TOPICS if topic in request)
    return float(answer(topic) in answer_text)


def write_log(path: Path, count: int) -> None:
    """A log of OpenAI requests and responses, with a conversation and a broken line in it."""
    lines = []
    for number in range(count):
        topic = TOPICS[number % len(TOPICS)]
        messages = [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": request(topic, number)},
        ]
        choice = {"message": {"content": answer(topic)}, "finish_reason": "stop"}
        response = {"model": "gpt-4o-2024-08-06", "choices": [choice]}
        body = {"model": "gpt-4o", "messages": messages, "temperature": 0}
        lines.append(json.dumps({"request": body, "response": response}))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    conversation = {"messages": [*turns, {"role": "user", "content": "c"}]}
    lines.insert(3, json.dumps({"request": conversation, "response": "d"}))
    lines.insert(5, '{"request": ')
    path.write_text("\n".join(lines) + "\n")
