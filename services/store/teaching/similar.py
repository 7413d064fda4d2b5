"""Choosing by likeness: BM25, over the words that a question shares with the few texts there are to choose from.

No model, no network, no state: equal inputs give equal choices.
"""

from collections.abc import Sequence

import bm25s

WORD = r"(?u)\b\w+\b"  # one character is a word too: tasks are told apart by numbers and names


def rank(question: str, texts: Sequence[str]) -> list[int]:
    """The places of the texts, the most alike first. Equally alike ones keep their order."""
    if not texts:
        return []
    words = bm25s.tokenize([question, *texts], token_pattern=WORD, stopwords=[], return_ids=False, show_progress=False)
    asked, known = words[0], words[1:]
    if not asked or not any(known):
        return list(range(len(texts)))
    index = bm25s.BM25()
    index.index(known, show_progress=False)
    scores = index.get_scores(asked)
    return sorted(range(len(texts)), key=lambda place: -float(scores[place]))
