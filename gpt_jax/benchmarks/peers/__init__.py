"""Scripts for the Python of a peer: a specification on standard input, a line of JSON out."""
