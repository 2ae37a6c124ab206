"""Corpora of radiographs with reports: one format, converters from public layouts, and what is wrong with a corpus."""

from echo_model.corpora.entry import INDEX, Entry, Problem, read_index, write_index

__all__ = ["INDEX", "Entry", "Problem", "read_index", "write_index"]
