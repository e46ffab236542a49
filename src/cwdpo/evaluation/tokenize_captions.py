"""Captions as tokens, in the way that the figures of papers are made (PTB, Java), or without Java."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cwdpo.data.words import words
from cwdpo.evaluation.java import Unavailable, run_java

__all__ = ["PTB", "WORDS", "Tokenizer", "ptb_tokens", "tokenize"]

Tokenizer = Literal["ptb", "words"]

PTB = "PTB (Stanford CoreNLP 3.4.1, lower case, no punctuation), as in COCO's evaluation"
WORDS = "lower-case words without punctuation; no Java; near PTB, but not the figures of papers"


def tokenize(texts: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Return each text as tokens with one space between them.

    Raises:
        Unavailable: `ptb` without Java.
    """
    return ptb_tokens(texts) if tokenizer == "ptb" else [words(text) for text in texts]


def ptb_tokens(texts: Sequence[str]) -> list[str]:
    """Tokenise by the jar and the list of punctuation that pycocoevalcap brings.

    Raises:
        Unavailable: There is no Java.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    tool = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    # A text of nothing would lose its line; a dash is punctuation and goes again.
    lines = run_java([*tool, "-encoding", "UTF-8"], "".join((" ".join(text.split()) or "-") + "\n" for text in texts))
    found = [
        " ".join(token for token in line.split(" ") if token not in ptbtokenizer.PUNCTUATIONS)
        for line in lines.removesuffix("\n").split("\n")
    ]
    if len(found) != len(texts):
        raise Unavailable(f"the PTB tokenizer gave {len(found)} lines for {len(texts)} captions")
    return found
