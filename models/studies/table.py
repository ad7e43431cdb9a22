"""The studies there are, in the order of the page."""

from attnserve.models.studies import digits, leak, nt, text
from attnserve.models.studies.study import Study

STUDIES: dict[str, Study] = {study.name: study for study in (nt.STUDY, leak.STUDY, digits.STUDY, text.STUDY)}
