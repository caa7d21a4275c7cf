"""SQL over a house's own tables, columns and status codes."""

from __future__ import annotations

from random import Random

from echolm_lab.tasks.domain import Domain, House
from echolm_lab.tasks.phrases import TOPICS
from echolm_lab.tasks.types import Slot, Subject

#: Condition on a column for each slot kind.
_CONDITIONS = {
    "date": "{} >= '{}'",
    "region": "{} = '{}'",
    "name": "{} = '{}'",
    "number": "{} = {}",
    "days": "{} <= {}",
    "amount": "{} <= {}",
    "percent": "{} > {}",
    "order": "{} = '{}'",
    "version": "{} = '{}'",
}
_AGGREGATES = ("SUM", "COUNT", "AVG", "MAX", "MIN")


def _write(rng: Random, subject: Subject, slots: tuple[Slot, ...], house: House) -> str:
    topic = subject.topic.split()[0]
    group = house("column")
    table = f"{topic}_{house('table')}"
    conditions = [_CONDITIONS[slot.kind].format(house("column"), slot.mark) for slot in slots]
    conditions.append(f"{house('column')} = '{house('code')}'")
    rng.shuffle(conditions)
    where = " AND ".join(conditions)
    measure = f"{rng.choice(_AGGREGATES)}({house('column')})"
    shape = rng.randrange(3)
    if shape == 0:
        return (
            f"SELECT {group}, {measure} FROM {table} JOIN {house('table')} "
            f"WHERE {where} GROUP BY {group} LIMIT {house('digits')};"
        )
    if shape == 1:
        return (
            f"WITH {house('word')} AS (SELECT * FROM {table} WHERE {where}) "
            f"SELECT {measure} FROM {house('table')} GROUP BY {group};"
        )
    return (
        f"SELECT {group}, {measure} FROM {table} WHERE {where} "
        f"HAVING {house('column')} > {house('digits')} -- {house('code')}"
    )


SQL = Domain(
    name="sql",
    topics=TOPICS,
    things=(
        ("refunds", "refund payments"),
        ("late deliveries", "delayed deliveries"),
        ("sign-ups", "new registrations"),
        ("churned customers", "lost customers"),
        ("failed payments", "declined payments"),
        ("open invoices", "unpaid invoices"),
        ("stock shortages", "out-of-stock items"),
        ("support calls", "helpdesk calls"),
        ("discounts", "discount coupons"),
        ("overtime hours", "staff overtime"),
        ("supplier prices", "vendor prices"),
        ("contract renewals", "renewed contracts"),
        ("page views", "website visits"),
        ("complaints", "customer complaints"),
        ("travel expenses", "travel costs"),
        ("product returns", "returned goods"),
        ("sensor readings", "sensor values"),
        ("job applicants", "job candidates"),
    ),
    actions=(
        ("count", "get the number of", "tell how many"),
        ("sum up", "total", "add up"),
        ("average", "get the mean of", "compute the average"),
        ("rank", "sort", "order by size the"),
        ("list", "show", "print"),
        ("compare by month", "month by month compare", "compare per month the"),
        ("find the largest", "get the biggest", "show the highest"),
        ("find duplicate", "spot repeated", "show double"),
        ("forecast", "predict", "project"),
        ("break down by city", "split by city", "group by city the"),
        ("find the oldest", "show the earliest", "get the first"),
        ("sample", "pick random", "draw some random"),
    ),
    phrase=(
        "{act} {topic} {thing}",
        "{act} {thing} in {topic}",
        "{act} {thing} of the {topic} unit",
    ),
    slot_sets=(
        ("date", "region"),
        ("date", "number"),
        ("region", "days"),
        ("region", "amount"),
        ("name", "date"),
        ("percent", "region"),
        ("number", "region"),
        ("name", "days"),
        ("date",),
        ("region",),
        ("days", "percent"),
        ("version", "date"),
    ),
    write=_write,
    frames=(
        "{do}",
        "please {do}",
        "SQL to {do}",
        "I need to {do}",
        "write a query to {do}",
        "can you {do}",
        "query: {do}",
        "help me {do}",
        "how do I {do}",
    ),
)
