"""What a model is worth: perplexity of a text, and the questions of HellaSwag and LAMBADA."""
