"""Words and phrases by which reports name findings, deny them, hedge them and place them. All patterns: lower case."""

from __future__ import annotations

import re
from typing import Final

_GAP: Final = r"(?:,?\s+[\w-]+){0,4}?\s+"

SENTENCE_END: Final = re.compile(
    r"(?<=[.!?])\s+(?=\S)|\n+|\b(?:findings|impression|conclusion|comparison|technique)\s*:", re.IGNORECASE
)
CLAUSE_BREAK: Final = re.compile(
    r";|,?\s*\b(?:but|however|although|though|whereas|while|except(?: for)?|apart from|aside from|other than)\b",
    re.IGNORECASE,
)

MENTIONS: Final[dict[str, re.Pattern[str]]] = {
    "cardiomegaly": re.compile(
        r"\bcardiomegaly\b|\bcardiac enlargement\b"
        r"|\benlarge(?:d|ment)(?: of)?(?: the| a)? (?:heart|cardiac|cardio-?mediastinal|cardiopericardial)\b"
        rf"|\b(?:heart|(?:cardiac|cardio-?mediastinal|cardiopericardial) (?:silhouette|size|shadow|contour))\b"
        rf"(?:{_GAP}|\s+)(?:enlarged|increased|prominent in size)\b"
        r"|\bcardiothoracic ratio (?:is |remains )?(?:increased|enlarged|elevated)\b|\bcardiac silhouette enlargement\b"
    ),
    "pleural_effusion": re.compile(
        r"(?<!pericardial )(?<!joint )\b(?:pleural )?effusions?\b|\bpleural fluid\b|\bhydro(?:pneumo)?thora(?:x|ces)\b"
        r"|\bblunt(?:ed|ing)(?: of)?(?: the| both)?(?: (?:left|right|lateral|posterior|bilateral))*"
        r" (?:costophrenic|cp)\b"
        rf"|\bcostophrenic (?:angles?|sulc(?:us|i)|recess(?:es)?)(?:{_GAP}|\s+)blunted\b"
    ),
    "pneumothorax": re.compile(r"\b(?:hydro)?pneumothora(?:x|ces)\b"),
    "consolidation": re.compile(
        r"\bconsolidat(?:ions?|ed|ive)\b|\bair-?\s?space (?:disease|opacit(?:y|ies)|opacification)\b|\binfiltrates?\b"
        r"|\b(?:broncho)?pneumonias?\b"
    ),
    "pulmonary_edema": re.compile(
        r"(?<!soft tissue )(?<!subcutaneous )(?<!peripheral )(?<!cerebral )(?<!chest wall )(?<!body wall )(?<!leg )"
        r"\bo?edema\b"
    ),
    "nodule": re.compile(
        r"(?<!thyroid )\bnodules?\b|\bnodular (?:opacit(?:y|ies)|densit(?:y|ies)|lesions?|shadows?)\b|\bcoin lesions?\b"
    ),
    "atelectasis": re.compile(r"\batelecta(?:sis|ses|tic)\b|\b(?:lobar|segmental|subsegmental) collapse\b"),
    "rib_fracture": re.compile(
        r"\brib(?:s|cage)? fractures?\b"
        r"|\bfractur(?:es?|ed)(?: of)?(?: (?!clavic|vertebr|humer|spin|scapul|stern)[\w-]+){0,6}? ribs?\b"
        rf"|\bribs?(?:{_GAP}|\s+)(?:fractured|broken|fractures?)\b|\bbroken ribs?\b"
        r"|(?<=no )fractures?\b(?! of)|(?<=no acute )fractures?\b(?! of)|(?<=no displaced )fractures?\b(?! of)"
    ),
    "pacemaker": re.compile(
        r"\bpace-?\s?makers?\b|\bpac(?:ing|er) (?:device|leads?|wires?|system)\b|\ba?icds?\b|\bdefibrillators?\b"
        r"|\bcardiac (?:implantable )?(?:electronic )?device\b"
    ),
    "endotracheal_tube": re.compile(
        r"\bendo-?\s?tracheal (?:tubes?|intubation)\b|\b(?<!nasogas)(?:et|tracheal) tubes?\b|\bett\b"
        r"|(?<!ex)\bintubated\b"
    ),
    "central_line": re.compile(
        r"\bcentral (?:venous )?(?:lines?|catheters?|access)\b|\bcvcs?\b|\bpiccs?(?: lines?)?\b|\bport-?a-?cath\b"
        r"|\b(?:chest )?port catheter\b|\bswan-?\s?ganz\b|\b(?:dialysis|hickman|permcath) catheters?\b"
        r"|\b(?:jugular|subclavian|ij|femoral)(?: (?:central|venous|vein))* (?:lines?|catheters?)\b"
    ),
}

#: Statements of normality, and the findings they deny.
NORMAL_STATEMENTS: Final[tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]] = (
    (
        re.compile(
            r"\b(?:heart|cardiac silhouette|cardio-?mediastinal silhouette|cardiac size|cardiac shadow)\b"
            r"(?:\s+[\w-]+){0,4}?"
            r"\s+(?:(?:with)?in normal limits|normal|unremarkable|not (?:\w+ )?enlarged)\b"
            r"|\bnormal(?: in)?(?: size)?(?: of)?(?: the)? (?:heart|cardiac|cardio-?mediastinal)\b"
        ),
        ("cardiomegaly",),
    ),
    (
        re.compile(
            r"\bcostophrenic (?:angles?|sulci|recesses)(?:\s+[\w-]+){0,3}?"
            r"\s+(?:sharp|clear|free|preserved|unremarkable)\b"
            r"|\b(?:sharp|clear|preserved)(?: both)? costophrenic (?:angles?|sulci|recesses)\b"
            r"|\bpleural spaces? (?:is|are|appears?|remains?)(?: \w+)? (?:clear|normal|unremarkable)\b"
        ),
        ("pleural_effusion",),
    ),
    (
        re.compile(
            r"\blungs?(?: fields| parenchyma)?\b(?: (?:and [\w ]+?))?(?:\s+(?:is|are|remains?|appears?))"
            r"(?:\s+\w+){0,4}?"
            r"\s+clear\b|\bclear lungs?\b|\bno(?: \w+){0,2} lung opacit(?:y|ies)\b"
        ),
        ("consolidation", "pulmonary_edema", "nodule", "atelectasis"),
    ),
    (
        re.compile(
            r"\b(?:bones?|ribs?|bony (?:thorax|structures|thoracic cage)|osseous structures|skeleton)\b(?:\s+\w+){0,3}?"
            r"\s+(?:intact|unremarkable|normal)\b"
            r"|\bno(?: \w+){0,2} (?:osseous|bony|skeletal) (?:abnormalit(?:y|ies)|lesions?|injur(?:y|ies))\b"
        ),
        ("rib_fracture",),
    ),
    (
        re.compile(
            r"\bno(?: (?:indwelling|support|medical|foreign|implanted))* (?:devices?|hardware)\b"
            r"|\bno (?:tubes?,? (?:or|and) (?:lines?|catheters?)|lines?,? (?:or|and) tubes?)\b"
        ),
        ("pacemaker", "endotracheal_tube", "central_line"),
    ),
    (re.compile(r"\bextubat(?:ed|ion)\b"), ("endotracheal_tube",)),
)
#: Ahead of a statement of normality: it is denied or limited to one side.
NOT_NORMAL: Final = re.compile(
    r"\b(?:not|no longer|nor|less|cannot)\b(?! (?:\w+ )?enlarged)|\b(?:left|right)\b.*costophrenic"
)

NEGATION: Final = re.compile(
    r"\b(?:no|not|without|neither|nor|never|denies|absence of|absent|negative for|free of|free from|clear of|devoid of"
    r"|lack of|rules? out|ruled out|exclud(?:es|ed|ing)|resolution of|resolved|clearing of|removal of|removed"
    r"|rather than|instead of)\b"
)
FALSE_NEGATION: Final = re.compile(
    r"no(?: (?:significant|interval|appreciable|substantial|definite|relevant|overall|major|new))* (?:change|increase|"
    r"decrease|improvement|worsening|progression|difference)\b|not (?:only|just|significantly changed|changed|excluded|"
    r"improved|resolved)\b|no doubt\b|without (?:\w+ )?change\b"
    r"|no (?:other|further|additional)\b(?=.*\bapart\b)"
)
#: Between a negation and a mention: a verb that begins another statement.
NEW_STATEMENT: Final = re.compile(
    r"\b(?:there (?:is|are|remains?|was|were)|is (?:seen|present|noted|visible|again)"
    r"|are (?:seen|present|noted|visible)"
    r"|shows?|demonstrates?|reveals?|has|have|with (?:a |an )?(?:new|small|large|moderate|persistent|stable|left|right)"
    r"|consistent with|compatible with|in keeping with|due to|because of|secondary to|in place)\b"
)
#: A comma or "and" followed by a description of its own ends a negation, unless an "or" carries the list on.
NEW_DESCRIPTION: Final = re.compile(
    r"(?:,|\band\b)\s*(?:and\s+)?(?:a|an|the|new|small|large|moderate|mild|minimal|tiny|trace|stable|unchanged|"
    r"persistent|increas(?:ed|ing)|decreas(?:ed|ing)|worsening|improv(?:ed|ing)|left|right|bilateral|both|status)\b"
)
NEGATED_AFTER: Final = re.compile(
    r"(?:[^,]*?\b(?:or|nor|and)\b[^,]*?)?(?:\s+[\w-]+){0,6}?\s+(?:is|are|was|were|has been|have been|be)?\s*"
    r"(?:not (?:seen|present|identified|visible|visuali[sz]ed|evident|demonstrated|detected|noted"
    r"|appreciated|found|shown)"
    r"|absent|no longer (?:seen|present|visible|identified|evident)|ruled out|removed|withdrawn|negative)\b"
)
NEGATED_LATER: Final = re.compile(
    r"\b(?:has|have) (?:\w+ )?(?:resolved|cleared|been removed)\b|\bcompletely resolved\b"
)
NEGATED_INSIDE: Final = re.compile(r"\b(?:not|no longer|nor)\b")

UNCERTAIN_BEFORE: Final = re.compile(
    r"\b(?:possibl[ey]|probabl[ey]|likely|may|might|could|suspect(?:ed|s)?|suspicious|suspicion|questionable"
    r"|suggest\w*"
    r"|concern(?:ing)? for|worrisome for|equivocal|cannot (?:be )?exclude|can not exclude|not excluded?|presumed"
    r"|versus|vs"
    r"|differential|question of|potential(?:ly)?|not exclude|apparent)\b|\?"
)
UNCERTAIN_INSIDE: Final = re.compile(r"\b(?:possibly|probably|may be|might be|borderline|could be)\b")
UNCERTAIN_AFTER: Final = re.compile(
    r"\b(?:cannot|can not|can't|could not|not) (?:be )?(?:entirely |completely |fully |definitely )?"
    r"(?:excluded?|ruled out)\b"
    r"|\b(?:is|are) (?:possible|suspected|likely|unlikely|questionable|equivocal|not excluded)\b|\bnot excluded\b"
    r"|^\s*(?:versus|vs\.?)\s|\?|\b(?:may|might|could) be (?:present|considered)\b|\bunlikely\b"
    r"|^\s+(?:is|are) considered\b"
)
#: Reasons for the examination and history say nothing about this image.
NOT_A_STATEMENT: Final = re.compile(
    r"\b(?:rule out|r/o|evaluate for|assess for|evaluation (?:for|of)|assessment (?:for|of)|history of|h/o|indication|"
    r"look for|follow-?up (?:of|for)|query)\b"
)

LEFT: Final = re.compile(r"\bleft\b|\bleft-sided\b")
RIGHT: Final = re.compile(r"\bright\b|\bright-sided\b")
BOTH: Final = re.compile(r"\bbilateral(?:ly)?\b|\bboth\b|\bbibas(?:al|ilar)\b|\bbiapical\b|\bon either side\b")
#: Places whose names hold a side without telling the side of the finding.
NOT_A_SIDE: Final = re.compile(
    r"\b(?:right|left)[- ](?:atri\w+|ventric\w+|heart|cardiac|hil\w+|paratracheal|main(?:stem)?|bronch\w+|greater than|"
    r"mediastin\w+|hemidiaphragm)\b"
)
