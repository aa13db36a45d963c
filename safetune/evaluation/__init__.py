"""Measuring: suites of prompts, sampling, the judge's rates, and the labels against the truth."""
