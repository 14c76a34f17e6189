"""The tables and figures of the OPT-IML paper: its numbers, and the same cells of evaluations.

`definitions.py` says what a column averages, `numbers.py` reads the paper's cells (`tasks/catalog/paper_tables/`),
`runs.py` computes ours, `layout.py` puts both in the paper's layout, `rendering.py` and `figures.py` draw it.
"""
