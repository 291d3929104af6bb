"""Near duplicates: statements that differ in a few words, found by MinHash."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fim_core.quality.check import SHOWN_ROWS, Evidence, Finding, PythonCheck

SAMPLE = 4000
SIMILARITY = 0.85
PERMUTATIONS = 64
SHINGLE_WORDS = 3

# One row represents its group, since rows of one group mostly hold the same statement. Ordering by digest makes the sample
# reproducible.
_STATEMENTS = """
    SELECT min(row_id) AS row_id, split, arg_min(prefix || response || suffix, row_id) AS statement
    FROM fim_prompts
    WHERE is_completion
    GROUP BY "group", split
    ORDER BY md5("group"), split
    LIMIT $sample
"""


def find(evidence: Evidence) -> Finding:
    """Find sampled statements that nearly equal another one: Jaccard similarity of word triples, estimated by MinHash.

    At most SAMPLE statements are compared, whatever the size of the table (Leskovec, Rajaraman, Ullman: Mining of Massive
    Datasets, chapter 3).
    """
    # Imported here because it imports scipy, which takes half a second; loading the checks does not need it.
    from datasketch import MinHash, MinHashLSH

    rows = evidence.connection.execute(_STATEMENTS, {"sample": SAMPLE}).fetchall()
    shingles = [[shingle.encode() for shingle in shingles_of(statement)] for _, _, statement in rows]
    signatures: Sequence[MinHash] = MinHash.bulk(shingles, num_perm=PERMUTATIONS, seed=1)
    # Candidates are compared below, so the index is tuned to return too many rather than too few.
    index = MinHashLSH(threshold=SIMILARITY, num_perm=PERMUTATIONS, weights=(0.1, 0.9))
    for number, signature in enumerate(signatures):
        index.insert(number, signature)
    repeated = []
    for number, signature in enumerate(signatures):
        others = (other for other in index.query(signature) if other != number)
        if any(signature.jaccard(signatures[other]) >= SIMILARITY for other in others):
            repeated.append(number)
    sampled = f"The first {SAMPLE:,} statements by digest were compared." if len(rows) == SAMPLE else ""
    return Finding(
        rows=len(repeated),
        total=len(rows),
        row_ids=sorted(rows[number][0] for number in repeated)[:SHOWN_ROWS],
        note=sampled,
        breakdown=[
            {
                "split": split,
                "rows": sum(rows[number][1] == split for number in repeated),
                "total": sum(row[1] == split for row in rows),
            }
            for split in sorted({row[1] for row in rows})
        ],
    )


def shingles_of(statement: str) -> set[str]:
    """Runs of SHINGLE_WORDS words or punctuation marks, case folded; the whole statement if it is shorter."""
    words = re.findall(r"\w+|[^\w\s]", statement.casefold())
    last = max(len(words) - SHINGLE_WORDS, 0)
    return {" ".join(words[start : start + SHINGLE_WORDS]) for start in range(last + 1)}


CHECK = PythonCheck(
    description=f"Few statements nearly equal another one (Jaccard similarity of word triples of {SIMILARITY} or more). "
    "Many near duplicates make held-out figures look better than they are.",
    severity="warn",
    find=find,
    max_rows=None,
    max_share=0.5,
)
