"""From a model to text: logit processors, the decode loop with its cache, text in and text out."""
