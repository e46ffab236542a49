"""Captions as tokens: plain words, or as the figures of papers are made (PTB, Java)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from cwdpo.data.words import words
from cwdpo.errors import RecipeError
from cwdpo.evaluation.java import Unavailable, find_java, run_java

__all__ = ["TOKENS", "Tokenizer", "choose_tokenizer", "ptb_tokens", "tokenize"]

Tokenizer = Literal["ptb", "words"]

TOKENS: Mapping[Tokenizer, str] = {
    "ptb": "PTB (Stanford CoreNLP 3.4.1, lower case, no punctuation), as in COCO's evaluation",
    "words": "lower-case words without punctuation; near PTB, but not the figures of papers (--tokenizer ptb, Java)",
}
"""What each way does."""


def choose_tokenizer(asked: Literal["auto", "ptb", "words"], note: Callable[[str], None], where: str) -> Tokenizer:
    """Return the tokenizer; `auto` is `ptb` where there is Java, and says so where there is none.

    Raises:
        RecipeError: `ptb` without Java; `where` names the option.
    """
    if asked == "words":
        return "words"
    try:
        find_java()
    except Unavailable as reason:
        if asked == "ptb":
            raise RecipeError(f"{where} ptb: {reason}") from reason
        note(f"plain words in place of PTB tokens, so figures do not compare with papers': {reason}")
        return "words"
    return "ptb"


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
    # An empty text would lose its line; a dash is punctuation and goes again.
    lines = run_java([*tool, "-encoding", "UTF-8"], "".join((" ".join(text.split()) or "-") + "\n" for text in texts))
    found = [
        " ".join(token for token in line.split(" ") if token not in ptbtokenizer.PUNCTUATIONS)
        for line in lines.removesuffix("\n").split("\n")
    ]
    if len(found) != len(texts):
        raise Unavailable(f"the PTB tokenizer gave {len(found)} lines for {len(texts)} captions")
    return found
