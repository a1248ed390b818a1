"""Measures a model: perplexity of a text, and the questions of HellaSwag and LAMBADA."""
