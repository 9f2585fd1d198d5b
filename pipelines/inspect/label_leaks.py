"""Columns that give the label away: copies, shifted copies, columns that decide it, columns in line with it.

A column that equals the label, or decides it, makes every metric look wonderful and the model useless, unless it is
known when the prediction is made. Knows no torch, no Ray.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.inspect.label_relations import NEXT, PREVIOUS, Relation
from pipelines.inspect.roles import CONTEXT, SEQUENCE, UNUSED
from pipelines.inspect.survey import Survey

ALMOST_ALL = 0.999
LEAST_COMPARED = 20  # pairs, or repetitions of a value, from which a pattern counts
IN_LINE = 0.99999  # correlation
STILL_WRONG = 0.05  # of what guessing gets wrong: a column that leaves more decides nothing

Told = tuple[str, str, str, str]  # severity, code, column, text


def leak_findings(survey: Survey) -> Iterator[Told]:
    """One line for each column that tells the label."""
    for name, relation in survey.relations.items():
        column = name if name in survey.columns else name.rpartition("[")[0]
        told = leak(relation) if survey.roles[column].role in (SEQUENCE, CONTEXT, UNUSED) else None
        if told is not None:
            severity, code, text = told
            which = [f"its number {name[len(column) + 1 : -1]}"] if name != column else []
            if relation.last:
                which.append("at its last step" if name == column else "at the last step")
            yield severity, code, column, " ".join([*which, text])


def leaking_columns(survey: Survey) -> frozenset[str]:
    """Columns that a model should not read."""
    return frozenset(column for severity, _, column, _ in leak_findings(survey) if severity == "warning")


def leak(relation: Relation) -> tuple[str, str, str] | None:
    """(severity, code, text) of how a column tells the label; None where it does not. The clearest sign counts."""
    if relation.compared < LEAST_COMPARED or not _varies(relation):
        return None
    if _right(relation.equal / relation.compared, relation):
        return "warning", "label-copy", f"equals the label {_share(relation.equal / relation.compared)}"
    shifted = _shifted(relation)
    if shifted is not None:
        return shifted
    correlation = relation.correlation
    if correlation is not None and abs(correlation) >= IN_LINE:
        text = f"is the label on another scale: their correlation is {correlation:.6f}"
        return "warning", "label-correlated", text
    return _decides(relation)


def _varies(relation: Relation) -> bool:
    """Whether the label has several values; nothing can be told of a constant one."""
    guessed = relation.guessed
    return guessed is None or guessed < 1


def _shifted(relation: Relation) -> tuple[str, str, str] | None:
    following, before = relation.shift(NEXT), relation.shift(PREVIOUS)
    guessed = relation.guessed or 0.0
    if guessed > 1 - STILL_WRONG:  # neighbours of an almost constant label are equal anyway
        return None
    if following is not None and following >= ALMOST_ALL:
        return "note", "next-step", "the label is this column one step later: next-step prediction"
    if before is not None and before >= ALMOST_ALL:
        return "warning", "label-delayed", "the label is this column one step before: a model needs only to remember it"
    return None


def _decides(relation: Relation) -> tuple[str, str, str] | None:
    decided = relation.decided
    if decided is None:
        return None
    right, repeated = decided
    if repeated < LEAST_COMPARED or repeated < 0.5 * relation.compared:
        return None
    if _right(right, relation):
        text = f"decides the label: each of its values goes with one label {_share(right)}"
        return "warning", "label-decided", text
    return None


def _right(share: float, relation: Relation) -> bool:
    """Whether so many right answers are more than guessing the most frequent label gives."""
    return share >= ALMOST_ALL and 1 - share <= STILL_WRONG * (1 - (relation.guessed or 0.0))


def _share(share: float) -> str:
    return "always" if share == 1 else f"in {share:.2%} of cases"
