"""Analyses: figures, tables and exports of the reports, made from finished trials."""
