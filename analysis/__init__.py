"""From finished trials to the figures, tables and exports of the reports."""
