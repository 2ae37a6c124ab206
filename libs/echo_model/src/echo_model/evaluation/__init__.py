"""Evaluation of generated reports."""

from echo_model.evaluation.phantoms import evaluate_phantoms, score_reports

__all__ = ["evaluate_phantoms", "score_reports"]
