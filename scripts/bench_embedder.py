#!/usr/bin/env python3
"""Compare forms of the embedder on this CPU: speed, cosine to fp32, recall@10.

All forms take turns in one process, so that the load of other programs falls on each of
them alike; the figures to keep are the ratios. Recall: of the 10 nearest of --corpus
texts to each of --queries others by fp32, the share that the form finds, with the same
form for queries and corpus. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python_backends"))

import onnx
from echolm.embedding import EmbedderSpec, OnnxEmbedder, TextTokenizer, minilm
from echolm.embedding.runtimes import default_threads
from onnx import helper, numpy_helper

Vectors = npt.NDArray[np.float32]
BATCHES = (1, 8, 32)
SPEED_TOKENS = 22
MIN_COSINE = 0.99
MIN_RECALL = 0.98


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


def int8_dynamic(source: Path, target: Path) -> None:
    """ONNX Runtime's dynamic int8: weights per channel, activations per tensor."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source, target, per_channel=True, reduce_range=False, weight_type=QuantType.QInt8
    )


def int8_ffn(source: Path, target: Path) -> None:
    """As int8_dynamic, the first product of each feed-forward block only."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = [node.name for node, name in _products(onnx.load(source)) if "intermediate" in name]
    quantize_dynamic(
        source, target, per_channel=True, weight_type=QuantType.QInt8, nodes_to_quantize=nodes
    )


def int8_blocks(source: Path, target: Path, *, block: int) -> None:
    """ONNX Runtime's MatMulNBits: a scale per block of weights and of activations."""
    model = onnx.load(source)
    constants = {constant.name: constant for constant in model.graph.initializer}
    for node, name in _products(model):
        weight = numpy_helper.to_array(constants[name]).T
        blocks = weight.reshape(len(weight), -1, block)
        scales = np.abs(blocks).max(axis=2) / 127
        values = (np.rint(blocks / scales[:, :, None]) + 128).astype(np.uint8)
        model.graph.initializer.remove(constants[name])
        model.graph.initializer.extend(
            [
                numpy_helper.from_array(values, f"{name}.q"),
                numpy_helper.from_array(scales.reshape(-1), f"{name}.s"),
            ]
        )
        replacement = helper.make_node(
            "MatMulNBits",
            [node.input[0], f"{name}.q", f"{name}.s"],
            list(node.output),
            domain="com.microsoft",
            K=weight.shape[1],
            N=weight.shape[0],
            bits=8,
            block_size=block,
            accuracy_level=4,
        )
        node.CopyFrom(replacement)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, target)


def _products(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Products with a constant matrix, and its name."""
    constants = {constant.name for constant in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            yield node, node.input[1]


@dataclass(frozen=True)
class Candidate:
    """A form: how to make its file from the fp32 graph (None: as it is) and how to run it."""

    name: str
    runtime: str = "onnxruntime"
    precision: str = "fp32"
    make: Callable[[Path, Path], None] | None = None


CANDIDATES = (
    Candidate("fp32 (onnxruntime)"),
    Candidate("int8 dynamic (onnxruntime)", make=int8_dynamic),
    Candidate("int8 ffn-up only (onnxruntime)", make=int8_ffn),
    Candidate("int8 blocks of 32 (onnxruntime)", make=functools.partial(int8_blocks, block=32)),
    Candidate("int8 blocks of 128 (onnxruntime)", make=functools.partial(int8_blocks, block=128)),
    Candidate("fp32 (openvino)", "openvino"),
    Candidate("bf16 (openvino)", "openvino", "bf16"),
    Candidate("int8 (openvino)", "openvino", "int8"),
    Candidate("fast (openvino)", "openvino", "fast"),
)


def load(candidates: tuple[Candidate, ...], folder: Path, threads: int) -> dict[str, OnnxEmbedder]:
    base = EmbedderSpec.read(folder)
    loaded = {}
    for index, candidate in enumerate(candidates):
        path = folder / "model.onnx"
        try:
            if candidate.make is not None:
                path = folder / f"{index}.onnx"
                candidate.make(folder / "model.onnx", path)
            changes: dict[str, Any] = {
                "runtime": candidate.runtime,
                "precision": candidate.precision,
            }
            spec = dataclasses.replace(base, **changes)
            loaded[candidate.name] = OnnxEmbedder(path, spec, threads=threads)
        except Exception as error:  # a form that this machine lacks is a result, too
            print(f"{candidate.name}: left out: {error}", file=sys.stderr)
    return loaded


def speed(forms: dict[str, OnnxEmbedder], rounds: int) -> dict[str, dict[int, float]]:
    """Median milliseconds per call, by form and batch size."""
    rng = np.random.default_rng(0)
    result: dict[str, dict[int, float]] = {name: {} for name in forms}
    for batch in BATCHES:
        ids = rng.integers(1000, 30000, (batch, SPEED_TOKENS))
        mask = np.ones_like(ids)
        times: dict[str, list[float]] = {name: [] for name in forms}
        repeat = max(1, 16 // batch)
        for turn in range(rounds + 1):
            for name, form in forms.items():
                form.embed(ids, mask)
                start = time.perf_counter()
                for _ in range(repeat):
                    form.embed(ids, mask)
                if turn:
                    times[name].append((time.perf_counter() - start) / repeat * 1e3)
        for name in forms:
            result[name][batch] = float(np.median(times[name]))
    return result


def embed_all(
    form: OnnxEmbedder, tokenizer: TextTokenizer, texts: list[str], label: str
) -> Vectors:
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    vectors = np.empty((len(texts), form.dimension), np.float32)
    for start in range(0, len(texts), 64):
        rows = order[start : start + 64]
        batch = tokenizer.encode([texts[row] for row in rows])
        vectors[rows] = form.embed(batch.input_ids, batch.attention_mask)
        if sys.stderr.isatty():
            print(f"\r{label}: {start + len(rows)}/{len(texts)} ", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return vectors


def nearest(vectors: Vectors, corpus: int, count: int = 10) -> npt.NDArray[np.intp]:
    return np.argpartition(-(vectors[corpus:] @ vectors[:corpus].T), count, axis=1)[:, :count]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=12, help="turns of the speed measurement")
    parser.add_argument("--corpus", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=7, help="of the texts")
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser recommends, on each call

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        minilm.build(folder, "fp32")
        forms = load(CANDIDATES, folder, options.threads)
        tokenizer = TextTokenizer.load(folder)
        milliseconds = speed(forms, options.rounds)
        texts = request_texts(options.corpus + options.queries, options.seed)
        base = next(iter(forms))
        reference, expected = None, None
        rows: list[dict[str, Any]] = []
        for name, form in forms.items():
            vectors = embed_all(form, tokenizer, texts, name)
            found = nearest(vectors, options.corpus)
            if reference is None or expected is None:
                reference, expected = vectors, found
            cosine = (vectors * reference).sum(axis=1)
            shared = [len(set(a) & set(b)) / 10 for a, b in zip(expected, found, strict=True)]
            ratio = {b: milliseconds[base][b] / milliseconds[name][b] for b in BATCHES}
            rows.append(
                {
                    "form": name,
                    "precision": form.precision,
                    "batch_1_ms": round(milliseconds[name][1], 2),
                    "batch_8_ms": round(milliseconds[name][8], 2),
                    "batch_32_texts_per_s": round(32e3 / milliseconds[name][32]),
                    "speedup_1_8_32": [round(ratio[b], 2) for b in BATCHES],
                    "cosine_mean": round(float(cosine.mean()), 5),
                    "cosine_min": round(float(cosine.min()), 5),
                    "recall_at_10": round(float(np.mean(shared)), 4),
                }
            )

    print(f"{SPEED_TOKENS} tokens, {options.threads} threads, {options.corpus} texts")
    print(
        f"{'form':34}{'batch 1':>10}{'batch 8':>10}{'batch 32':>10}{'speed-up 1/8/32':>20}"
        f"{'cosine mean':>13}{'min':>9}{'recall@10':>11}"
    )
    for row in rows:
        ratios = " ".join(f"{value:.2f}x" for value in row["speedup_1_8_32"])
        print(
            f"{row['form']:34}{row['batch_1_ms']:>7} ms{row['batch_8_ms']:>7} ms"
            f"{row['batch_32_texts_per_s']:>8}/s{ratios:>20}{row['cosine_mean']:>13}"
            f"{row['cosine_min']:>9}{row['recall_at_10']:>11}"
        )
    good = [
        row for row in rows if row["cosine_min"] >= MIN_COSINE and row["recall_at_10"] >= MIN_RECALL
    ]
    fastest = max(good, key=lambda row: row["batch_32_texts_per_s"])["form"]
    host = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": options.threads}
    print(json.dumps({"benchmark": "embedder", "fastest": fastest, "host": host, "forms": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
