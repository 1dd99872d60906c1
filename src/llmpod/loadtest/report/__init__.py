"""A run's figures for people and machines: page, terminal, CSV, JUnit, Markdown."""
