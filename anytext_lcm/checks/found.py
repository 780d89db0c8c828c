"""What a check found: one line a subject, and the error of a command that cannot begin."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from anytext_lcm.command import FAILURES, Missing, in_words
from anytext_lcm.files import printable

OK, NOTE, MISSING = "ok", "note", "missing"


@dataclass(frozen=True)
class Finding:
    """One subject and what was found: state is OK, NOTE (a run can begin) or MISSING (it cannot)."""

    subject: str
    state: str
    text: str


@dataclass
class Findings:
    """What was found so far, in order."""

    found: list[Finding] = field(default_factory=list)

    def ok(self, subject: str, text: str) -> None:
        """Note that something is there."""
        self.found.append(Finding(subject, OK, text))

    def note(self, subject: str, text: str) -> None:
        """Note something that a run can begin with, and that one should know."""
        self.found.append(Finding(subject, NOTE, text))

    def missing(self, subject: str, text: str) -> None:
        """Note something without which a run cannot begin."""
        self.found.append(Finding(subject, MISSING, text))

    @contextmanager
    def looking_at(self, subject: str, where: str = "") -> Iterator[None]:
        """Turn a failure in the block into something missing. where: a sentence on where it is published."""
        try:
            yield
        except FAILURES as error:
            self.missing(subject, " ".join(filter(None, (in_words(error), where))))

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return all(finding.state != MISSING for finding in self.found)

    def require(self) -> None:
        """Raise Missing with one sentence for each thing that is missing."""
        sentences = dict.fromkeys(finding.text for finding in self.found if finding.state == MISSING)
        if sentences:
            raise Missing(list(sentences))

    def table(self) -> str:
        """One line for each finding but those that `require` names: state, subject, text."""
        shown = [finding for finding in self.found if finding.state != MISSING]
        width = max((len(finding.subject) for finding in shown), default=0)
        return "\n".join(f"{f.state:<5} {f.subject:<{width}}  {printable(f.text)}" for f in shown)
