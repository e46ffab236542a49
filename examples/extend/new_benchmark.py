"""A benchmark of your own: questions to be answered by yes or no."""

# --8<-- [start:benchmark]
import json
from collections.abc import Sequence
from pathlib import Path

from cwdpo.data.schema import ImageRef, PromptGroup, user_message
from cwdpo.evaluation.benchmarks import Benchmark, Question, Scored


class YesNo(Benchmark):
    """JSON lines of `{image, question, answer}`."""

    name = "yes_no"
    title = "Yes or no"
    data = "JSON lines; pictures beside the file"

    ending: str = "Answer yes or no."
    """What is said after the question."""

    def read(self, path: Path) -> list[Question]:
        """Return a question a line."""
        questions: list[Question] = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            row = json.loads(line)
            message, image = (
                user_message(f"{row['question']} {self.ending}"),
                ImageRef(path=str(path.parent / row["image"])),
            )
            prompt = PromptGroup(str(number), (image,), (message,), (), origin=f"{path}:{number}")
            options = {"yes": "yes", "no": "no"}  # what --by likelihood scores
            questions.append(Question(id=prompt.id, prompt=prompt, options=options, gold=(row["answer"],)))
        return questions

    def score(self, questions: Sequence[Question], answers: Sequence[str]) -> Scored:
        """Return the accuracy and how often the answer was yes."""
        read = ["yes" if answer.lower().startswith("yes") else "no" for answer in answers]
        right = [said in question.gold for said, question in zip(read, questions, strict=True)]
        return Scored(
            questions=len(right),
            figures={"accuracy": sum(right) / len(right), "yes": read.count("yes") / len(read)},
            matching="yes where the answer begins so, else no",
            categories={},
            rows=[{"id": q.id, "answer": a, "right": r} for q, a, r in zip(questions, answers, right, strict=True)],
        )


# --8<-- [end:benchmark]
