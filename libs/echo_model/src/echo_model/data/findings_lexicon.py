"""Words and phrases by which reports name findings, deny them, hedge them and place them. All patterns: lower case."""

from __future__ import annotations

import re
from typing import Final

_GAP: Final = r"(?:,?\s+[\w-]+){0,4}?\s+"

#: Headings of sections that speak of this image, and of those that do not (why it was made, what came before).
HEADING: Final = re.compile(
    r"(?:^|(?<=[.;!?])\s|\n)[ \t]*(?:"
    r"(?P<told>findings?|impressions?|conclusions?|report|opinion|interpretation|observations?|summary"
    r"|lungs?(?: and pleura| fields| parenchyma)?|pleura(?:l spaces?)?|heart(?: and mediastinum)?|mediastinum"
    r"|cardiomediastinal silhouette|hil[ai]|bones?|osseous structures|soft tissues|(?:support )?devices"
    r"|(?:support devices|lines)(?:,? and tubes)?|tubes(?: and lines|, lines)?|diaphragms?|thorax|trachea)"
    r"|(?P<untold>(?:(?:clinical|brief|patient|relevant|medical|past) )*(?:history|information|details"
    r"|indications?|data"
    r"|question|notes?)|indications?|reason for (?:the )?(?:exam(?:ination)?|study|test|request|order)|reason"
    r"|comparisons?"
    r"|technique|protocol|exam(?:ination)?s?|procedure(?: comments)?|study|views?|priors?|provisional findings"
    r"|recommendations?|notifications?|communication|accession number|age|sex|date)"
    r")\s*:(?!\d)",
    re.IGNORECASE,
)
#: Headings that say nothing about a region.
WHOLE_REPORT: Final = re.compile(
    r"findings?|report|observations?|(?P<summed>impressions?|conclusions?|opinion|interpretation|summary)"
)
#: An untold section also ends at an empty line.
PARAGRAPH: Final = re.compile(r"\n[ \t]*\n")
#: Line ends that end no sentence: the line was wrapped at the margin. A line of a list starts anew.
SOFT_WRAP: Final = re.compile(r"(?<=[^\n]{40})(?<![.!?:;])[ \t]*\n[ \t]*(?=[^\W\d_])")
SENTENCE_END: Final = re.compile(
    r"(?<=[.!?])(?<!\bdr\.)(?<!\bapprox\.)(?<!\bvs\.)(?<!\be\.g\.)(?<!\bi\.e\.)\s+(?=\S)|\n+",
    re.IGNORECASE,
)
#: Said in passing, between commas.
ASIDE: Final = re.compile(r", (?:previously|formerly|as)(?: \w+){1,3},")
CLAUSE_BREAK: Final = re.compile(
    r";|,?\s*\b(?:but|however|although|though|whereas|while|except(?: for)?|apart from|aside from|other than)\b",
    re.IGNORECASE,
)

#: A clause with none of these stems mentions nothing: a quick look before the patterns below.
WORTH_READING: Final = re.compile(
    r"heart|card|effusion|pleura|thora|costophrenic|\bcp\b|consolidat|air-? ?space|infiltrat|pneumoni|edema"
    r"|nodul|coin|atelecta"
    r"|collapse|\brib|fractur|pace|pac[ei]|icd|defibrill|tracheal|\bett?\b|tubat|central|\bcvc|picc|port|swan"
    r"|dialysis|hickman"
    r"|permcath|jugular|subclavian|\bij\b|femoral|lung|bon[ey]|osseous|skelet|devices?|hardware|tubes?|lines?"
)

MENTIONS: Final[dict[str, re.Pattern[str]]] = {
    "cardiomegaly": re.compile(
        r"\bcardiomegaly\b|\bheart (?:is|appears|remains) (?:\w+ )?large\b|\bcardiac enlargement\b"
        r"|\benlarge(?:d|ment)(?: of)?(?: the| a)? (?:heart|cardiac|cardio-?mediastinal|cardiopericardial)\b"
        rf"|\b(?:heart|(?:cardiac|cardio-?mediastinal|cardiopericardial) (?:silhouette|size|shadow|contour))\b:?"
        rf"(?:{_GAP}|\s+)(?:enlarged|increased|prominent in size)\b"
        r"|\bcardiothoracic ratio (?:is |remains )?(?:increased|enlarged|elevated)\b"
        r"|\bcardiac silhouette enlargement\b"
    ),
    "pleural_effusion": re.compile(
        r"(?<!pericardial )(?<!joint )\b(?:pleural )?effusions?\b|\bpleural fluid\b|\bhydro(?:pneumo)?thora(?:x"
        r"|ces)\b"
        r"|\bblunt(?:ed|ing)(?: of)?(?: the| both)?(?: (?:left|right|lateral|posterior|bilateral))*"
        r" (?:costophrenic|cp)\b"
        rf"|\bcostophrenic (?:angles?|sulc(?:us|i)|recess(?:es)?)(?:{_GAP}|\s+)blunted\b"
    ),
    "pneumothorax": re.compile(r"\b(?:hydro)?pneumothora(?:x|ces)\b"),
    "consolidation": re.compile(
        r"\bconsolidat(?:ions?|ed|ive)\b|\bair-?\s?space (?:disease|opacit(?:y|ies)|opacification)\b|\binfiltrates?\b"
        r"|(?<!prior )(?<!previous )(?<!past )\b(?:broncho)?pneumonias?\b"
    ),
    "pulmonary_edema": re.compile(
        r"(?<!soft tissue )(?<!subcutaneous )(?<!peripheral )(?<!cerebral )(?<!chest wall )(?<!body wall )(?<!leg )"
        r"\bo?edema\b"
    ),
    "nodule": re.compile(
        r"(?<!thyroid )\bnodules?\b|\bnodular (?:opacit(?:y|ies)|densit(?:y|ies)|lesions?|shadows?)\b"
        r"|\bcoin lesions?\b"
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
        r"\bendo-?\s?tracheal (?:(?:and [\w-]+ )?tubes?|intubation)\b|\b(?<!nasogas)(?:et|tracheal) tubes?\b|\bett\b"
        r"|(?<!ex)\bintubated\b"
    ),
    "central_line": re.compile(
        r"\bcentral (?:venous )?(?:lines?|catheters?|access)\b|\bcvcs?\b|\bpiccs?(?: lines?)?\b|\bport-?a-?cath\b"
        r"|\bchest ports?\b|\bmediports?\b|\bport catheters?\b|\bswan-?\s?ganz\b|\b(?:dialysis|hickman"
        r"|permcath) catheters?\b"
        r"|\b(?:jugular|subclavian|ij|femoral)(?: (?:central|venous|vein))* (?:lines?|catheters?)\b"
    ),
}

#: Statements of normality, and the findings they deny.
NORMAL_STATEMENTS: Final[tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]] = (
    (
        re.compile(
            r"\b(?:heart|cardiac silhouette|cardio-?mediastinal (?:silhouette|contours?)|cardiac (?:size|shadow"
            r"|contours?))\b:?"
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
            r"\s+clear\b|\blungs?(?: fields)?:? clear\b|\bclear lungs?\b|\bno(?: \w+){0,2} lung opacit(?:y|ies)\b"
        ),
        ("consolidation", "pulmonary_edema", "nodule", "atelectasis"),
    ),
    (
        re.compile(
            r"\b(?:bones?|ribs?|bony (?:thorax|structures|thoracic cage)|osseous structures"
            r"|skeleton)\b:?(?:\s+\w+){0,3}?"
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
    r"\b(?:no|not|without|neither|nor|never|denies|absence of|absent|negative for|free of|free from|clear of"
    r"|devoid of"
    r"|lack of|rules? out|ruled out|exclud(?:es|ed|ing)|resolution of|resolved|clearing of|removal of|removed"
    r"|rather than|instead of)\b"
)
FALSE_NEGATION: Final = re.compile(
    r"(?:no|not|without)(?: (?:any|much|significant|interval|appreciable|substantial|definite|relevant|overall"
    r"|major|new"
    r"|further|notable|real|great|marked|obvious))* (?:change|increase|decrease|improvement|worsening|progression"
    r"|difference|growth|enlargement)\b"
    r"|not (?:only|just|(?:\w+ )?changed|(?:been )?excluded|improved|(?:yet )?(?:resolved|cleared)|without|absent)\b"
    r"|not (?:free|clear|devoid) (?:of|from)\b|(?:no|neither)(?: [\w-]+){1,3} (?:is|are) (?:free|clear"
    r"|devoid) (?:of|from)\b"
    r"|no doubt\b|without contrast\b|no (?:prior|previous|recent)\b[^,;]*[,;]"
    r"|no (?:other|further|additional)\b(?=.*\bapart\b)"
)
#: Negations that another one turns round.
DENIABLE: Final = re.compile(
    r"without|free (?:of|from)|clear of|devoid of|resolution of|resolved|clearing of|absent|excluded"
)
#: Ahead of "free of", "without", "resolved": it is denied, or half true.
DENIED_NEGATION: Final = re.compile(
    r"\b(?:not|no longer|never|near(?:ly|-)?|almost|partial(?:ly)?|incomplete(?:ly)?|largely|mostly|nearing|towards?)"
    r"(?: (?:yet|been|complete(?:ly)?|interval|entirely|fully|quite))*[ -]$"
    r"|\b(?:not|no|neither)(?: [\w-]+){0,4} $(?<!, )"
)
#: Between a negation and a mention: a verb that begins another statement.
NEW_STATEMENT: Final = re.compile(
    r"\b(?:there (?:is|are|remains?|was|were)|is (?:seen|present|noted|visible|again)"
    r"|are (?:seen|present|noted|visible)"
    r"|shows?|demonstrates?|reveals?|has|have|with (?:a |an )?(?:new|residual|remaining|mild|minimal|some|small"
    r"|large|moderate|persistent|stable"
    r"|left|right)"
    r"|consistent with|compatible with|in keeping with|due to|because of|secondary to|in place)\b"
)
#: A comma or "and" followed by a description of its own ends a negation, unless an "or" carries the list on.
NEW_DESCRIPTION: Final = re.compile(
    r"(?:,|\band\b)\s*(?:and\s+)?(?:a|an|the|new|small|large|moderate|mild|minimal|tiny|trace|stable|unchanged|"
    r"persistent|increas(?:ed|ing)|decreas(?:ed|ing)|worsening|improv(?:ed|ing)|left|right|bilateral|both"
    r"|status|with|"
    r"bibasilar|bibasal|biapical|multiple|several|moderately|mildly)\b"
)
#: What may lie between the members of a list that shares its negation or doubt.
LIST_GLUE: Final = re.compile(
    r"\s*(?:,|/|(?:,\s*)?\b(?:and|or|nor)(?: (?:the|an?|any|left|right|left-sided|right-sided|bilateral))*)\s*"
    r"(?:(?:acute|focal|large|sizable|sizeable|definite|significant|overt|new|pleural|discrete|displaced|frank)\s+)*"
)
SAME_LIST: Final = re.compile(r"and (?:the|left|right|both)")
NEGATED_AFTER: Final = re.compile(
    r"(?:\s+[\w-]+){0,6}?\s+(?:is|are|was|were|has been|have been|be)?\s*"
    r"(?:not (?:seen|present|identified|visible|visuali[sz]ed|evident|demonstrated|detected|noted"
    r"|appreciated|found|shown)"
    r"|(?<!not )absent|no longer (?:seen|present|visible|visuali[sz]ed|identified|evident|apparent)"
    r"|(?<!not )ruled out"
    r"|(?<!not )removed|withdrawn|(?<!not )excluded|explanted|pulled|negative)\b"
)
NEGATED_LATER: Final = re.compile(
    r"\b(?:has|have) (?:(?!not|nearly|almost|partially|incompletely|largely|mostly)\w+ )?"
    r"(?:resolved|cleared|disappeared|been (?:removed|explanted|pulled|withdrawn))\b"
    r"|(?<!almost )(?<!nearly )(?<!not )\bcompletely resolved\b"
)
NEGATED_INSIDE: Final = re.compile(r"\b(?:not|no longer|nor)\b")

UNCERTAIN_BEFORE: Final = re.compile(
    r"\b(?:possibl[ey]|probabl[ey]|likely|may|might|could|suspect(?:ed|s)?|suspicious|suspicion|questionable"
    r"|suggest\w*"
    r"|concern(?:ing)? for|worrisome for|equivocal|cannot (?:be )?exclude|can not exclude|not excluded?|presumed"
    r"|versus|vs"
    r"|differential|question of|potential(?:ly)?|not exclude|apparent|borderline|perhaps|indeterminate for"
    r"|(?:difficult|hard) to exclude|favou?r(?:s|ed|ing)?)\b|\?"
)
UNCERTAIN_INSIDE: Final = re.compile(r"\b(?:possibly|probably|likely|perhaps|may be|might be|borderline|could be)\b")
UNCERTAIN_AFTER: Final = re.compile(
    r"\b(?:cannot|can not|can't|could not|not) (?:be |been )?(?:entirely |completely |fully |definitely )?"
    r"(?:excluded?|ruled out)\b"
    r"|\b(?:is|are) (?:possible|suspected|likely|unlikely|questionable|equivocal|not excluded|(?:\w+ )?favou?red)\b"
    r"|\bnot excluded\b|\b(?:difficult|hard) to exclude\b|\b(?:remains?|is|are) a (?:\w+ )?(?:consideration"
    r"|possibility|concern)\b"
    r"|\b(?:should|could|can|may) be (?:considered|suspected)\b|\b(?:represent\w*|reflect\w*|be"
    r"|due to)(?: an?)? (?:nipple|skin|summation|overl\w+|art[ei]fact)"
    r"|^\s+or (?:an? )?(?:vessel|nipple|summation"
    r"|art[ei]fact)"
    r"|^\s*(?:versus|vs\.?)\s|\?|\b(?:may|might|could) be (?:present|considered)\b|\bunlikely\b"
    r"|^\s+(?:is|are) considered\b"
)
#: Reasons for the examination, history, advice and look-alikes say nothing about this image.
NOT_A_STATEMENT: Final = re.compile(
    r"\b(?:rule out|r/o|evaluate for|assess for|evaluation (?:for|of)|assessment (?:for|of)|history of|h/o"
    r"|indication|"
    r"look for|follow-?up (?:of|for)|query|(?<!difficult )(?<!hard )to (?:exclude|rule out)|correlat(?:e|ion)"
    r"(?: \w+)? for|treat(?:ed|ment) (?:for|of)|mimic(?:s|king)?|simulat(?:es|ing)|(?:status post|s/p)[^,;]* for)\b"
    r"|\b(?:if|in case of)\b(?=[^,;]*$)"
)
#: Here what was said of history or advice is over.
STATEMENT_AGAIN: Final = re.compile(
    r"[,;]\s*(?:now|no|not|new|with|without|there|today|currently|the|an?)\b|\band no\b"
)

LEFT: Final = re.compile(r"\bleft(?:-sided)?\b|\b(?:lul|lll)\b|\blingula\w*|\blt\b")
RIGHT: Final = re.compile(r"\bright(?:-sided)?\b|\b(?:rul|rml|rll)\b|\bmiddle lobe\b|\brt\b")
BOTH: Final = re.compile(
    r"\bbilateral(?:ly)?\b|\bboth\b|\bbibas(?:al|ilar)\b|\bbiapical\b|\bon either side\b|\b(?:each"
    r"|neither) lung\b|\bb/l\b"
)
#: Both sides, compared.
COMPARED: Final = re.compile(
    r"\b(?:left|right)(?:-sided)? (?:is )?(?:greater|larger|more|worse|bigger|smaller|less)(?: \w+)? than (?:the )?"
    r"(?:left|right)\b|\b(?:left|right) ?> ?(?:left|right)\b"
)
#: Places and movements whose names hold a side without telling the side of the finding.
NOT_A_SIDE: Final = re.compile(
    r"\b(?:right|left)[- ](?:atri\w+|ventric\w+|heart|cardiac|paratracheal|main(?:stem)?|bronch\w+|mediastin\w+"
    r"|pulmonary arter\w+)\b"
    r"|\b(?:shift\w*|deviat\w+|displace[dm]\w*|rotat\w+)(?: \w+){0,2} (?:to|towards?) (?:the )?(?:left|right)\b"
    r"|\b(?:left|right) of (?:the )?midline\b"
)
#: A side that counts only where no other is stated.
WEAK_SIDE: Final = re.compile(r"\b(?:right|left)[- ](?:hil\w+|hemidiaphragm)\b")
