"""A process that annotates, for tests that kill it: `python -m openai_server.annotating ROOT URL OPTIONS`, the options as JSON."""

from __future__ import annotations

import json
import sys
from decimal import Decimal
from pathlib import Path

from data.annotate import annotate
from data.annotation.costs import list_price
from data.annotation.live import Pace
from data.annotation.requests import AnnotatorConfig
from data.annotation.settings import Where
from data.manifest import open_corpus


def main() -> None:
    """Annotate once and print the counts of the report."""
    root, url, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    price = list_price("gpt-4o")
    assert price is not None
    where = Where(
        url=url,
        price=price,
        batched=options.get("batched", False),
        max_cost=Decimal(options["max_cost"]) if "max_cost" in options else None,
        pace=Pace(**options["pace"]),
    )
    config = AnnotatorConfig(api=options.get("api", "chat"))
    done = annotate(open_corpus(root), config, where)
    assert done is not None
    print(json.dumps({"accepted": done[1].accepted, "too_dear": done[1].too_dear}))


if __name__ == "__main__":
    main()
