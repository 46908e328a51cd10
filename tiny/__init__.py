"""The small checkpoint that ships with the project: its synthetic world, its training and its obedience check."""
