"""GPT-2 weights in the forms in which they are published, in and out."""
