"""Every table together, and the allowed status changes; a test compares the migrated database with them."""

from services.contracts.answers import ANSWER_CHANGES
from services.contracts.base import S, StatusChanges
from services.contracts.consultations import CONSULTATION_CHANGES
from services.contracts.corrections import CORRECTION_CHANGES
from services.contracts.effects import EFFECT_CHANGES
from services.contracts.evaluations import EVALUATION_CHANGES
from services.contracts.experts import EXPERT_CHANGES
from services.contracts.lessons import LESSON_CHANGES
from services.contracts.measurements import MEASUREMENT_CHANGES
from services.contracts.policies import POLICY_CHANGES
from services.contracts.rollouts import GROUP_CHANGES, ROLLOUT_CHANGES
from services.contracts.updates import UPDATE_CHANGES
from services.store.tables.corrections import CorrectionRow, EffectRow
from services.store.tables.housekeeping import StatusChangeRow
from services.store.tables.ledger import LessonRow, PolicyVersionRow, UpdateRow
from services.store.tables.loop import AnswerRow, ConsultationRow, EvaluationRow, ExpertRow, GroupRow, RolloutRow
from services.store.tables.teaching import MeasurementRow

METADATA = StatusChangeRow.metadata
"""Every table: the modules imported here import the others."""


def _words(changes: StatusChanges[S]) -> dict[str, frozenset[str]]:
    return {old.value: frozenset(new.value for new in news) for old, news in changes.items()}


STATUS_CHANGES: dict[str, dict[str, frozenset[str]]] = {
    GroupRow.__tablename__: _words(GROUP_CHANGES),
    RolloutRow.__tablename__: _words(ROLLOUT_CHANGES),
    ExpertRow.__tablename__: _words(EXPERT_CHANGES),
    ConsultationRow.__tablename__: _words(CONSULTATION_CHANGES),
    AnswerRow.__tablename__: _words(ANSWER_CHANGES),
    CorrectionRow.__tablename__: _words(CORRECTION_CHANGES),
    EffectRow.__tablename__: _words(EFFECT_CHANGES),
    LessonRow.__tablename__: _words(LESSON_CHANGES),
    UpdateRow.__tablename__: _words(UPDATE_CHANGES),
    PolicyVersionRow.__tablename__: _words(POLICY_CHANGES),
    EvaluationRow.__tablename__: _words(EVALUATION_CHANGES),
    MeasurementRow.__tablename__: _words(MEASUREMENT_CHANGES),
}
"""By table with a status: the allowed changes."""
