"""Different texts such as people send to an LLM, for measurements of the embedder."""

from __future__ import annotations

import random
from collections.abc import Callable


def _list(text: str) -> list[str]:
    return text.split("|")


# Subject: (objects, verbs, circumstances); FORMS puts them together. Different subjects,
# lengths and moods, so that neighbours are related and not all near-duplicates.
SUBJECTS = {
    "shell": (
        "files|directories|log files|symbolic links|processes|open ports|cron jobs|"
        "environment variables|disk partitions|tar archives",
        "list|delete|rename|compress|count|watch|copy to another host|sort by size|"
        "change the owner of|search inside",
        "older than {n} days|larger than {n} MB|under /{w}/{w}|owned by {p}|"
        "in the folder {w}|matching *.{w}|on the server {w}-{n}",
    ),
    "sql": (
        "customers|orders|invoices|shipments|employees|sensors|subscriptions|"
        "page views|refunds|warehouses",
        "select|count|join|group|update|deduplicate|rank|average|export|index",
        "placed in {m} {y}|with more than {n} rows|from {c}|whose status is {w}|"
        "per month|by {w} descending|without a matching {w}",
    ),
    "cooking": (
        "a sourdough loaf|lentil soup|roast chicken|vegan lasagne|pad thai|"
        "apple crumble|pickled onions|a birthday cake|risotto|fish tacos",
        "bake|season|reheat|freeze|scale up|substitute the butter in|"
        "plan the shopping for|serve|store leftovers of|thicken",
        "for {n} people|without gluten|in under {n} minutes|using only {w}|"
        "in {c} style|on a weekday|for {p}'s party",
    ),
    "travel": (
        "a train ticket|a hotel|a rental car|a visa|travel insurance|a window seat|"
        "a ferry crossing|a guided tour|an airport transfer|a hostel bed",
        "book|cancel|change the date of|find a cheaper|get a refund for|upgrade|share|"
        "extend|compare prices for|complain about",
        "from {c} to {c}|in {m}|for {n} nights|for {p} and two children|with a dog|"
        "near the {w}|under {n} euros",
    ),
    "health": (
        "a sore knee|hay fever|a migraine|back pain|insomnia|a sprained ankle|"
        "high blood pressure|a vitamin D deficiency|heartburn|a dry cough",
        "treat|prevent|explain the causes of|track|describe to a doctor|exercise with|"
        "sleep with|eat well with|recognise|manage",
        "at age {n}|during {m}|after a flight to {c}|while training for a {w}|"
        "without medication|for {p}|at night",
    ),
    "law": (
        "a rental contract|a parking fine|a warranty claim|a trademark|a will|"
        "a non-compete clause|a privacy notice|a late invoice|a noise complaint|"
        "a work permit",
        "draft|contest|terminate|explain|translate|renew|sign electronically|summarise|file|review",
        "in {c}|before {m} {n}|on behalf of {p}|for a small {w} company|"
        "without a lawyer|within {n} days|as a tenant",
    ),
    "python": (
        "a dictionary|a CSV reader|an async queue|a decorator|a dataclass|"
        "a REST client|a regular expression|a unit test|a thread pool|a memory leak",
        "write|debug|profile|type-annotate|refactor|mock|parallelise|document|cache|serialise",
        "with {n} workers|that reads {w}.json|for the class {w}|in version 3.{d}|"
        "without dependencies|that retries {n} times|for {p}'s pull request",
    ),
    "history": (
        "the Treaty of Westphalia|the Silk Road|the printing press|"
        "the French Revolution|the Meiji era|the fall of Constantinople|"
        "the Hanseatic League|the Space Race|the Black Death|the Suez crisis",
        "summarise|date|explain the causes of|name three figures of|compare with today|"
        "teach|find sources on|draw a timeline of|debate|describe daily life in",
        "in {n} sentences|for a class in {c}|as {p} would|with a focus on {w}|"
        "before {y}|for children|in plain words",
    ),
    "sport": (
        "a marathon plan|a penalty kick|a rowing machine|a chess opening|"
        "a tennis serve|a climbing route|a swimming stroke|a yoga routine|"
        "a league table|a bike fit",
        "improve|analyse|schedule|warm up for|score|teach|record|explain the rules of|"
        "avoid injuries with|find a partner for",
        "in {n} weeks|for a beginner|in {c}|with {p}|on {w} ground|twice a week|before {m}",
    ),
    "finance": (
        "a mortgage|an index fund|a tax return|a pension|a payslip|an exchange rate|"
        "a credit card|a budget|a start-up valuation|an expense report",
        "calculate|compare|optimise|explain|split|refinance|audit|automate|forecast|close",
        "of {n} thousand|for {y}|in {c}|with {n} percent interest|for a freelance {w}|"
        "after a divorce|for {p}",
    ),
    "garden": (
        "tomatoes|roses|an apple tree|a lawn|a compost heap|slugs|a greenhouse|basil|"
        "bees|a rain barrel",
        "plant|prune|water|protect|fertilise|get rid of|harvest|move|choose a place for|photograph",
        "in {m}|in clay soil|on a balcony in {c}|with {n} litres a week|next to {w}|"
        "without chemicals|for {p}",
    ),
    "support": (
        "the invoice|the app|my password|the delivery|the subscription|the router|"
        "the coffee machine|the discount code|the screen|the account of {p}",
        "reset|return|repair|track|replace|upgrade|cancel|locate|unlock|merge",
        "ordered on {m} {n}|since the last update|that shows error {n}|"
        "with order number {n}{n}|bought in {c}|because of a {w}|before the weekend",
    ),
    "music": (
        "a guitar solo|a string quartet|a drum loop|a vinyl record|a piano scale|"
        "a choir|a synthesiser|a playlist|a ukulele|a film score",
        "tune|record|transcribe|practise|mix|sell|describe|arrange|identify|restore",
        "in B flat|at {n} beats per minute|from {y}|for a {w} festival|"
        "for {p}'s wedding|by ear|in a small flat",
    ),
    "devops": (
        "a Kubernetes pod|a Dockerfile|a TLS certificate|a load balancer|"
        "a Terraform module|a CI pipeline|a Redis cluster|a DNS record|a Git branch|"
        "a Grafana panel",
        "deploy|roll back|scale|monitor|rotate|debug|migrate|lint|restart|clean up",
        "to {n} replicas|in the namespace {w}|in region {c}|after {n} failures|"
        "for team {w}|without downtime|as user {p}",
    ),
    "science": (
        "photosynthesis|black holes|CRISPR|plate tectonics|superconductivity|"
        "the immune system|prime numbers|entropy|coral reefs|neural networks",
        "explain|simulate|measure|draw|question|prove something about|find papers on|"
        "teach|correct a misconception about|write a quiz on",
        "to a {n} year old|with an example from {w}|in {n} bullet points|as of {y}|"
        "for {p}|using no formulas|in {c}",
    ),
    "writing": (
        "a cover letter|a haiku|a product description|an apology|a eulogy|"
        "a press release|a limerick|a thank-you note|a job advert|a short story",
        "write|shorten|proofread|translate into French|make friendlier|rewrite|title|"
        "continue|rate|make more formal",
        "about {w}|for {p}|in {n} words|set in {c}|from {y}|without adjectives|for the {w} team",
    ),
}
FORMS = (
    "{v} {o} {k}",
    "how do I {v} {o} {k}?",
    "Please {v} {o} {k}.",
    "can you help me {v} {o} {k}",
    "I need to {v} {o} {k}, what is the best way?",
    "What goes wrong when people {v} {o} {k}?",
    "Give me {n} tips: {v} {o} {k}",
    "is it possible to {v} {o} {k}, and how long does it take?",
    "{p} asked me to {v} {o} {k}. Where do I start, and what should I avoid?",
    "Write a short checklist: {v} {o} {k}; then {v2} {o2}.",
    "My colleague in {c} wants to {v} {o} but not to {v2} it; {k}. Answer in {n} lines.",
    "Step by step, {v} {o} {k}, keeping in mind that we also have to {v2} {o2} {k2} later on.",
    "never {v} {o} {k}?",
    "{o} {k}: {v} or {v2}?",
)
WORDS = _list(
    "amber|anchor|apple|archive|atlas|badge|bamboo|barley|beacon|billing|bison|blossom|"
    "bridge|bronze|cabin|cactus|candle|canyon|caravan|castle|cedar|cello|chapel|cherry|"
    "cinder|clover|cobalt|comet|copper|coral|cotton|crater|cricket|crystal|dagger|dahlia|"
    "delta|desert|dolphin|dragon|eagle|ember|falcon|fern|festival|fiddle|forest|fossil|"
    "galaxy|garnet|ginger|glacier|granite|harbor|hazel|heron|honey|indigo|island|ivory|"
    "jasmine|jigsaw|juniper|kettle|ladder|lagoon|lantern|lemon|lentil|lily|linen|lobster|"
    "lotus|magnet|maple|marble|meadow|melon|meteor|mirror|mosaic|nectar|nickel|oasis|olive|"
    "onyx|orbit|orchid|otter|paddle|panda|pebble|pepper|pigeon|pine|planet|plaza|pocket|"
    "prairie|quartz|quiver|rabbit|radar|raven|reef|ribbon|river|rocket|saddle|saffron|salmon|"
    "sapphire|shadow|signal|silver|spruce|stable|summit|sunset|tiger|timber|topaz|tulip|"
    "tundra|turbine|valley|velvet|violet|walnut|whale|willow|window|winter|wizard|zebra"
)
NAMES = _list(
    "Aisha|Bruno|Chiara|Deniz|Elena|Farid|Greta|Hiro|Ines|Jamal|Katya|Liam|Mei|Nadia|Oscar|"
    "Priya|Quinn|Rosa|Sven|Tariq|Uma|Viktor|Wanda|Xavier|Yara|Zoltan"
)
CITIES = _list(
    "Accra|Athens|Bogota|Brno|Cairo|Cape Town|Chennai|Dublin|Hanoi|Helsinki|Istanbul|Jakarta|"
    "Kyoto|Lagos|Lima|Lisbon|Madrid|Montreal|Nairobi|Oslo|Perth|Porto|Quito|Riga|Rotterdam|"
    "Santiago|Seoul|Tbilisi|Toronto|Warsaw"
)
MONTHS = _list(
    "January|February|March|April|May|June|July|August|September|October|November|December"
)


def request_texts(count: int, seed: int) -> list[str]:
    """Different texts such as people send to an LLM."""
    rng = random.Random(seed)
    subjects = [tuple(map(_list, parts)) for parts in SUBJECTS.values()]
    slots: dict[str, Callable[[], str]] = {
        "{n}": lambda: str(rng.randint(2, 60)),
        "{d}": lambda: str(rng.randint(8, 14)),
        "{y}": lambda: str(rng.randint(1890, 2030)),
        "{w}": lambda: rng.choice(WORDS),
        "{p}": lambda: rng.choice(NAMES),
        "{c}": lambda: rng.choice(CITIES),
        "{m}": lambda: rng.choice(MONTHS),
    }
    texts: dict[str, None] = {}
    while len(texts) < count:
        objects, verbs, circumstances = rng.choice(subjects)
        text = rng.choice(FORMS)
        for key, words in (("v", verbs), ("o", objects), ("k", circumstances)):
            first, second = rng.sample(words, 2)
            text = text.replace(f"{{{key}}}", first).replace(f"{{{key}2}}", second)
        for slot, make in slots.items():
            while slot in text:
                text = text.replace(slot, make(), 1)
        texts[text] = None
    return list(texts)
