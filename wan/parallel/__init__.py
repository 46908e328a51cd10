"""One video on several devices: guidance branches and parts of the sequence (arXiv:2309.14509) on ranks of their own."""
