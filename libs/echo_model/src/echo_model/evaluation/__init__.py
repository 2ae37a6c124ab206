"""Evaluation of generated reports."""

from echo_model.evaluation.ngram_metrics import bleu4, meteor
from echo_model.evaluation.phantoms import evaluate_corpus, evaluate_phantoms, score_reports
from echo_model.evaluation.text_metrics import cider, rouge_l

__all__ = ["bleu4", "cider", "evaluate_corpus", "evaluate_phantoms", "meteor", "rouge_l", "score_reports"]
